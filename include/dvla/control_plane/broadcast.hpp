// The control plane between processes: every actor sends its own part of the flat float32 weights to every
// rollout, in the background, over a channel of the pair. Paper: control plane on the CPU, contiguous host
// buffers, sharded parameters broadcast in parallel, swapped at a chunk boundary. Torch-free: over LibTorch's
// Gloo by placement/c10d.hpp, over threads by testing/thread_cluster.hpp. Knows floats only: packing is the
// sharding's, and which of the sampler's copies takes the weights is front_back.hpp's business.
//
// Actor: two buffers of its part, packed and sent by turns; one sender thread a rollout. Rollout: two
// versions of all parts, one receiver thread an actor; a version is visible once all its parts are there and
// proven. A rank that is both reads its own part where it was packed. Nothing is skipped between versions, so
// a slow rollout holds the distribution lane back (begin waits, at most `deadline`), and never the memory.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_frame.hpp"
#include "dvla/control_plane/weight_slots.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// The actors have said that no more weights will come.
class EndOfWeights : public Error {
 public:
  using Error::Error;
};

/// Of this rank, since the start. Bytes are those of weights, without the 64 of each frame.
struct WeightPlaneReport {
  std::int64_t published = 0, versions_sent = 0, versions_received = 0;  ///< sent: summed over rollouts
  std::int64_t bytes_sent = 0, bytes_received = 0;
  std::int64_t bytes_saved = 0;      ///< that the full form would have sent besides
  double send_s = 0, receive_s = 0;  ///< summed over threads
  std::int64_t full_because_new = 0, full_because_changed = 0;  ///< forms trainable and delta only
  std::int64_t lost = 0, rejoined = 0;                          ///< rollouts
  std::string last_loss;                                        ///< why, for people
};

/// begin, publish: one distribution thread. receive: any number of reception threads. All others: any.
class BroadcastWeightPlane {
 public:
  /// Makes the channels: every rank of `roles` constructs its plane at the same time and with the same
  /// values. `parts`: of each actor; none: equal shares. `incarnation`: the same number for all at the start
  /// of a job; a rollout that joins later gives its own, and the actors call rejoin. `trainable`: the ranges
  /// that GlooKnobs{trainable} sends, of the flat weights. `cluster` and `pool` must outlive this.
  BroadcastWeightPlane(std::int64_t floats, std::vector<WeightPart> parts, const GlooKnobs& knobs,
                       Cluster& cluster, Roles roles, int incarnation, std::chrono::nanoseconds deadline,
                       std::pmr::memory_resource& pool, const WeightPart& trainable = {})
      : cluster_(cluster),
        roles_(std::move(roles)),
        actor_(roles_.actor(cluster.rank())),
        rollout_(roles_.rollout(cluster.rank())),
        incarnation_(incarnation),
        form_(knobs.form),
        deadline_(deadline),
        bytes_(static_cast<std::size_t>(floats) * 4),
        layouts_(make_layouts(floats, std::move(parts), roles_, knobs, trainable)),
        slots_(part_sizes(), held(), rollout_ >= 0, pool) {
    try {
      connect();
      for (auto& link : links_)
        if (link) start(*link);
      for (auto& inbound : inbounds_)
        if (inbound) inbound->thread = std::thread([this, &source = *inbound] { listen(source); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~BroadcastWeightPlane() { stop(); }
  BroadcastWeightPlane(const BroadcastWeightPlane&) = delete;
  BroadcastWeightPlane& operator=(const BroadcastWeightPlane&) = delete;

  /// Of all weights, what receive fills.
  std::size_t bytes() const { return bytes_; }
  /// What this actor packs, in this order; what begin gives has its size.
  const WeightPart& part() const { return layouts_.at(static_cast<std::size_t>(actor_)).part; }
  /// On a rollout the newest version that is whole here, on an actor only the newest published; -1: none.
  std::int64_t latest() const {
    const std::scoped_lock lock(mutex_);
    return rollout_ >= 0 ? slots_.newest_whole() : published_;
  }

  /// Distribution lane: where to pack this actor's part of `version`. Waits until no rollout needs what is in
  /// that buffer. Throws Error for a version that is not newer, DeadlineError naming who is slow.
  std::span<std::byte> begin(std::int64_t version) {
    if (actor_ < 0) throw Error("control plane: " + me() + " is no actor and has no weights to publish");
    std::unique_lock lock(mutex_);
    if (closed_)
      throw Error("control plane: closed; version " + std::to_string(version) + " cannot be packed");
    if (version <= published_) {
      throw Error("control plane: version " + std::to_string(version) + " cannot follow version " +
                  std::to_string(published_) + "; versions strictly increase");
    }
    if (packing_ != none) slots_.abandon(actor_);
    packing_ = none;
    slots_.announce(actor_, version);
    changed_.notify_all();
    const bool answered = changed_.wait_until(lock, detail::deadline_after(deadline_), [&] {
      return closed_ || stuck() || (slots_.free(actor_) && !behind());
    });
    if (closed_) throw Error("control plane: closed while version " + std::to_string(version) + " waited");
    if (!answered || stuck()) blame(version);
    packing_ = version;
    return slots_.take(actor_, version).bytes;
  }

  /// Distribution lane: what begin gave is complete. Checksummed, then on its way.
  void publish(std::int64_t version) {
    if (actor_ < 0 || version != packing_) {
      throw Error("control plane: publish(" + std::to_string(version) + ") without begin(" +
                  std::to_string(version) + "); pack a version before it is published");
    }
    const detail::WeightSlot& slot = slots_.target(actor_);  // only this thread changes which one it is
    seal(slot);
    {
      const std::scoped_lock lock(mutex_);
      slots_.ready(actor_);
      published_ = version;
      packing_ = none;
      ++report_.published;
    }
    changed_.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is whole, lays the newest out in `destination` (of
  /// bytes()) and returns its version. Throws DeadlineError after `limit`, EndOfWeights when the actors have
  /// ended without it, PeerError when an actor that should send it is lost, Error after close().
  std::int64_t receive(std::span<std::byte> destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    if (rollout_ < 0) throw Error("control plane: " + me() + " is no rollout and receives no weights");
    if (destination.size() != bytes_) {
      throw Error("control plane: weights are " + std::to_string(bytes_) + " bytes and the destination " +
                  std::to_string(destination.size()) + "; trainer and sampler must have the same model");
    }
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, detail::deadline_after(limit), [&] {
      return closed_ || slots_.newest_whole() >= wanted || without(State::lost, wanted) ||
             ended_before(wanted);
    });
    if (closed_)
      throw Error("control plane: closed while reception waited for version " + std::to_string(wanted));
    const std::int64_t version = slots_.newest_whole();
    if (version < wanted) explain(wanted, limit);
    for (int actor = 0; actor < actors(); ++actor) ++slots_.find(actor, version)->readers;
    lock.unlock();
    for (int actor = 0; actor < actors(); ++actor)
      scatter_part(at(actor, version).bytes, layout(actor).part, destination);
    lock.lock();
    for (int actor = 0; actor < actors(); ++actor) --slots_.find(actor, version)->readers;
    lock.unlock();
    changed_.notify_all();
    return version;
  }

  /// "weights/<rollout>/<actor>/<incarnation>", by place among the rollouts and the actors.
  static std::string channel_name(int rollout, int actor, int incarnation) {
    return "weights/" + std::to_string(rollout) + "/" + std::to_string(actor) + "/" +
           std::to_string(incarnation);
  }

  /// Actor: rollout `rollout` is there again, at the other end of `channel`; it gets the newest version in
  /// full at once. Throws Error unless the incarnation is newer than the one before.
  void rejoin(int rollout, std::unique_ptr<Channel> channel, int incarnation) {
    const std::scoped_lock one_at_a_time(rejoining_);
    Link* old = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      if (rollout < 0 || rollout >= static_cast<int>(links_.size()) || !links_[place(rollout)])
        throw Error("control plane: " + me() + " sends no weights to rollout " + std::to_string(rollout));
      old = links_[place(rollout)].get();
      if (incarnation <= old->incarnation)
        throw Error("control plane: incarnation " + std::to_string(incarnation) + " of rollout " +
                    std::to_string(rollout) + " is not newer than " + std::to_string(old->incarnation));
      if (closed_)
        throw Error("control plane: closed; rollout " + std::to_string(rollout) + " cannot rejoin");
    }
    old->channel->close();
    {
      const std::scoped_lock lock(mutex_);
      old->dismissed = true;
    }
    changed_.notify_all();
    old->thread.join();
    auto fresh = std::make_unique<Link>(rollout, incarnation, std::move(channel), *this);
    const std::scoped_lock lock(mutex_);
    if (closed_) throw Error("control plane: closed; rollout " + std::to_string(rollout) + " cannot rejoin");
    links_[place(rollout)] = std::move(fresh);
    ++report_.rejoined;
    start(*links_[place(rollout)]);
  }
  /// The same, making the channel.
  void rejoin(int rollout, int incarnation) {
    rejoin(rollout,
           cluster_.channel(channel_name(rollout, actor_, incarnation), roles_.rollouts.at(place(rollout)),
                            deadline_),
           incarnation);
  }

  /// A clean end, on every rank, before it goes. An actor publishes no more: what it published is sent, then
  /// the word that it was the last, and the rollouts' answers are waited for; lost ones are not. A rollout
  /// waits until all actors have ended or are lost. Throws DeadlineError naming who was waited for.
  void finish(std::chrono::nanoseconds limit) {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
    auto waited_for = [&]() -> std::string {
      for (const auto& link : links_)
        if (link && link->state == State::live)
          return rank_name(roles_, roles_.rollouts[place(link->rollout)]);
      for (const auto& inbound : inbounds_)
        if (inbound && inbound->state == State::live) return actor_name(inbound->terms.actor);
      return {};
    };
    if (!changed_.wait_until(lock, detail::deadline_after(limit),
                             [&] { return closed_ || waited_for().empty(); }))
      throw DeadlineError("control plane: " + me() + " waited " + detail::seconds_text(limit) + " for " +
                          waited_for() + " to end the weights; is it stuck?");
  }

  /// At once: wakes everyone who waits; they, and later calls, throw Error. The peers see a lost rank.
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
      for (const auto& link : links_)
        if (link) link->channel->close();
      for (const auto& inbound : inbounds_)
        if (inbound) inbound->channel->close();
    }
    changed_.notify_all();
  }

  WeightPlaneReport report() const {
    const std::scoped_lock lock(mutex_);
    return report_;
  }

 private:
  static constexpr std::int64_t none = -1;
  static constexpr std::size_t piece = std::size_t{4} << 20;
  /// Between versions nobody has to send anything: waiting lanes have deadlines of their own, and peers that
  /// die or stop close the channel.
  static constexpr std::chrono::hours idle{1000};
  enum class State : std::uint8_t { live, ended, lost };

  /// An actor's way to one rollout.
  struct Link {
    Link(int to, int its_incarnation, std::unique_ptr<Channel> its_channel, const BroadcastWeightPlane& plane)
        : rollout(to),
          incarnation(its_incarnation),
          channel(std::move(its_channel)),
          wire(*channel, piece, plane.deadline_) {}
    int rollout, incarnation;
    std::unique_ptr<Channel> channel;
    detail::WeightWire wire;
    std::int64_t sent = none;
    State state = State::live;
    bool dismissed = false;  ///< a newer incarnation takes its place
    std::thread thread;
  };
  /// A rollout's way from one actor.
  struct Inbound {
    Inbound(WeightFrameTerms its_terms, std::unique_ptr<Channel> its_channel,
            const BroadcastWeightPlane& plane)
        : terms(std::move(its_terms)),
          channel(std::move(its_channel)),
          wire(*channel, piece, plane.deadline_) {}
    WeightFrameTerms terms;
    std::unique_ptr<Channel> channel;
    detail::WeightWire wire;
    State state = State::live;
    std::string why;
    /// Which of the two slots has the whole part, so that a trainable version need not copy the rest.
    std::array<bool, 2> whole{};
    std::vector<std::byte> bitmap;
    std::vector<detail::ByteRange> ranges;
    std::thread thread;
  };
  /// What publish found out about a slot.
  struct Sealed {
    std::int64_t base = none;
    std::uint64_t sum = 0, trainable_sum = 0;
    bool has_sum = false, delta = false;
    std::vector<std::byte> bitmap;
    std::vector<detail::ByteRange> changed;
  };

  static std::size_t place(int index) { return static_cast<std::size_t>(index); }
  int actors() const { return static_cast<int>(roles_.actors.size()); }
  const detail::PartLayout& layout(int actor) const { return layouts_[place(actor)]; }
  std::string me() const { return rank_name(roles_, cluster_.rank()); }
  std::string actor_name(int actor) const { return rank_name(roles_, roles_.actors[place(actor)]); }
  std::string rollout_name(int rollout) const { return rank_name(roles_, roles_.rollouts[place(rollout)]); }

  static std::vector<detail::PartLayout> make_layouts(std::int64_t floats, std::vector<WeightPart> parts,
                                                      const Roles& roles, const GlooKnobs& knobs,
                                                      const WeightPart& trainable) {
    if (floats < 0) throw ConfigError("control plane: the weights cannot have a negative number of floats");
    if (parts.empty()) parts = equal_parts(floats, static_cast<int>(roles.actors.size()));
    check_weight_parts(floats, parts, roles.actors.size());
    if (knobs.form == WeightForm::trainable && trainable.empty())
      throw ConfigError(
          "control plane: form trainable needs a model that says which of its weights train; use full or "
          "delta");
    std::vector<detail::PartLayout> layouts;
    for (WeightPart& part : parts)
      layouts.emplace_back(std::move(part), knobs.form == WeightForm::trainable ? trainable : WeightPart{});
    return layouts;
  }
  std::vector<std::size_t> part_sizes() const {
    std::vector<std::size_t> sizes;
    for (const auto& each : layouts_) sizes.push_back(each.bytes);
    return sizes;
  }
  std::vector<int> held() const {
    std::vector<int> all;
    for (int actor = 0; actor < actors(); ++actor)
      if (rollout_ >= 0 || actor == actor_) all.push_back(actor);
    return all;
  }

  /// Every rank goes through its pairs in the same order, so nobody waits in a circle.
  void connect() {
    links_.resize(actor_ >= 0 ? roles_.rollouts.size() : 0);
    inbounds_.resize(rollout_ >= 0 ? roles_.actors.size() : 0);
    for (int rollout = 0; rollout < static_cast<int>(roles_.rollouts.size()); ++rollout) {
      for (int actor = 0; actor < actors(); ++actor) {
        if ((rollout == rollout_) == (actor == actor_)) continue;  // not ours, or both ends are this rank
        const int peer = rollout == rollout_ ? roles_.actors[place(actor)] : roles_.rollouts[place(rollout)];
        auto channel = cluster_.channel(channel_name(rollout, actor, incarnation_), peer, deadline_);
        if (actor == actor_)
          links_[place(rollout)] = std::make_unique<Link>(rollout, incarnation_, std::move(channel), *this);
        else
          inbounds_[place(actor)] = std::make_unique<Inbound>(terms(actor), std::move(channel), *this);
      }
    }
  }
  WeightFrameTerms terms(int actor) const {
    WeightFrameTerms terms;
    const detail::PartLayout& its = layout(actor);
    terms.from = actor_name(actor);
    terms.actor = static_cast<std::int16_t>(actor);
    terms.rollout = static_cast<std::int16_t>(rollout_);
    terms.incarnation = incarnation_;
    terms.layout = its.identity;
    terms.full_bytes = its.bytes;
    terms.trainable_bytes = detail::bytes_in(its.trainable);
    terms.delta_least = detail::bitmap_bytes(its.bytes);
    terms.delta_most = terms.delta_least + its.bytes;
    return terms;
  }

  // ---- Actor
  void start(Link& link) {
    link.thread = std::thread([this, &link] { serve(link); });
  }

  /// Sums, and what changed since the version before. Off the lock: senders do not look at this slot yet.
  void seal(const detail::WeightSlot& slot) {
    const detail::PartLayout& own = layout(actor_);
    Sealed& sealed = sealed_[slot.side];
    sealed.base = published_;
    sealed.has_sum = form_ != WeightForm::trainable || published_ == none;
    if (sealed.has_sum) sealed.sum = checksum(slot.bytes);
    sealed.delta = false;
    if (form_ == WeightForm::trainable) sealed.trainable_sum = detail::checksum_of(slot.bytes, own.trainable);
    if (form_ == WeightForm::delta && published_ != none) {
      const std::span<const std::byte> before = slots_.find(actor_, published_)->bytes;
      const std::size_t changed = detail::mark_changed(slot.bytes, before, sealed.bitmap);
      sealed.delta = changed * 2 <= detail::delta_blocks(own.bytes);
      if (sealed.delta) detail::marked_ranges(sealed.bitmap, own.bytes, sealed.changed);
    }
  }
  /// Whether a rollout still needs what lies where this actor packs next.
  const Link* behind() const {
    const detail::WeightSlot& target = slots_.target(actor_);
    if (target.state != detail::WeightSlot::State::ready) return nullptr;
    for (const auto& link : links_)
      if (link && link->state == State::live && link->sent != none && link->sent < target.version)
        return link.get();
    return nullptr;
  }
  /// Another actor is lost, so the version that this rank's reception holds on to will not be followed.
  const Inbound* stuck() const {
    return rollout_ >= 0 && !slots_.free(actor_)
               ? without(State::lost, std::numeric_limits<std::int64_t>::max())
               : nullptr;
  }
  [[noreturn]] void blame(std::int64_t version) const {
    const std::string who = "control plane: lane 'distribution' of " + me() + " waited ";
    const std::string what = " to pack version " + std::to_string(version);
    if (const Inbound* gone = stuck())
      throw PeerError(who + what + " for " + gone->terms.from + ", which is lost: " + gone->why);
    std::string whom = "this rank's lane 'reception' to leave its buffer";
    const std::int64_t old = slots_.target(actor_).version;
    if (const Link* slow = behind())
      whom = rollout_name(slow->rollout) + " to take version " + std::to_string(old);
    else if (slots_.target(actor_).readers == 0)
      whom = "the other actors' version " + std::to_string(slots_.newest_whole() + 1);
    throw DeadlineError(who + detail::seconds_text(deadline_) + what + " for " + whom + "; is it stuck?");
  }

  void serve(Link& link) {
    try {
      for (;;) {
        detail::WeightSlot* slot = nullptr;
        std::int64_t sent = none;
        {
          std::unique_lock lock(mutex_);
          sent = link.sent;
          // A rollout that is new here begins with the newest; after that it gets every version.
          changed_.wait(lock, [&] {
            slot = slots_.next(actor_, sent, sent != none);
            return closed_ || link.dismissed || slot || finishing_;
          });
          if (closed_) return;
          if (link.dismissed) throw PeerError("a newer incarnation of it has come");
          if (slot) ++slot->readers;
        }
        if (!slot) {
          send_end(link);
          const std::scoped_lock lock(mutex_);
          link.state = State::ended;
          changed_.notify_all();
          return;
        }
        try {
          send_version(link, *slot, sent);
        } catch (...) {
          release(*slot);
          throw;
        }
        const std::scoped_lock lock(mutex_);
        --slot->readers;
        link.sent = slot->version;
        changed_.notify_all();
      }
    } catch (const std::exception& error) {
      link.channel->close();
      const std::scoped_lock lock(mutex_);
      link.state = State::lost;
      if (!closed_) {
        ++report_.lost;
        report_.last_loss = rollout_name(link.rollout) + ": " + error.what();
      }
      changed_.notify_all();
    }
  }
  void release(detail::WeightSlot& slot) {
    const std::scoped_lock lock(mutex_);
    --slot.readers;
  }
  void send_version(Link& link, const detail::WeightSlot& slot, std::int64_t before) {
    const auto start = std::chrono::steady_clock::now();
    const detail::PartLayout& own = layout(actor_);
    const Sealed& sealed = sealed_[slot.side];
    const bool follows = before != none && before == sealed.base;
    WeightFrame frame = make_frame(link, FrameKind::full, slot.version);
    const std::vector<detail::ByteRange>* ranges = &own.all;
    std::span<const std::byte> bitmap;
    if (form_ == WeightForm::trainable && follows) {
      frame.kind = FrameKind::trainable;
      ranges = &own.trainable;
      frame.sum = sealed.trainable_sum;
    } else {
      frame.sum = sealed.has_sum ? sealed.sum : checksum(slot.bytes);
      if (form_ == WeightForm::delta && follows && sealed.delta) {
        frame.kind = FrameKind::delta;
        ranges = &sealed.changed;
        bitmap = sealed.bitmap;
      }
    }
    if (frame.kind != FrameKind::full) frame.base = sealed.base;
    frame.bytes = bitmap.size() + detail::bytes_in(*ranges);
    link.channel->send(frame.bytes_of(), deadline_);
    link.channel->send(bitmap, deadline_);
    link.wire.send(slot.bytes, *ranges);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const std::scoped_lock lock(mutex_);
    ++report_.versions_sent;
    report_.bytes_sent += static_cast<std::int64_t>(frame.bytes);
    report_.bytes_saved += static_cast<std::int64_t>(own.bytes) - static_cast<std::int64_t>(frame.bytes);
    report_.send_s += took.count();
    if (form_ != WeightForm::full && frame.kind == FrameKind::full)
      ++(follows ? report_.full_because_changed : report_.full_because_new);
  }
  WeightFrame make_frame(const Link& link, FrameKind kind, std::int64_t version) const {
    WeightFrame frame;
    frame.version = version;
    frame.layout = layout(actor_).identity;
    frame.actor = static_cast<std::int16_t>(actor_);
    frame.rollout = static_cast<std::int16_t>(link.rollout);
    frame.incarnation = link.incarnation;
    frame.kind = kind;
    return frame;
  }
  void send_end(Link& link) {
    link.channel->send(make_frame(link, FrameKind::end, link.sent).bytes_of(), deadline_);
    std::array<std::byte, 8> goodbye{};
    link.channel->receive(goodbye, deadline_);
  }

  // ---- Rollout
  detail::WeightSlot& at(int actor, std::int64_t version) {
    const std::scoped_lock lock(mutex_);
    return *slots_.find(actor, version);
  }

  void listen(Inbound& inbound) {
    try {
      std::array<std::byte, 64> head;
      for (;;) {
        inbound.channel->receive(head, idle);
        const WeightFrame frame = read_frame(head, inbound.terms);
        if (frame.kind == FrameKind::end) break;
        take_version(inbound, frame);
      }
      inbound.channel->send(std::array<std::byte, 8>{}, deadline_);
      const std::scoped_lock lock(mutex_);
      inbound.state = State::ended;
      changed_.notify_all();
    } catch (const std::exception& error) {
      inbound.channel->close();
      const std::scoped_lock lock(mutex_);
      inbound.state = State::lost;
      inbound.why = error.what();
      changed_.notify_all();
    }
  }
  void take_version(Inbound& inbound, const WeightFrame& frame) {
    const int actor = inbound.terms.actor;
    detail::WeightSlot* slot = nullptr;
    const detail::WeightSlot* base = nullptr;
    {
      std::unique_lock lock(mutex_);
      slots_.announce(actor, frame.version);
      changed_.notify_all();
      const bool free = changed_.wait_until(lock, detail::deadline_after(deadline_),
                                            [&] { return closed_ || slots_.free(actor); });
      if (closed_) throw Error("control plane: closed");
      if (!free)
        throw DeadlineError("control plane: version " + std::to_string(frame.version) + " of " +
                            actor_name(actor) + " waited " + detail::seconds_text(deadline_) + " at " + me() +
                            " for the other actors' version " + std::to_string(slots_.newest_whole() + 1) +
                            "; is one of them stuck?");
      base = slots_.find(actor, frame.base);
      slot = &slots_.take(actor, frame.version);
    }
    const auto start = std::chrono::steady_clock::now();
    try {
      fill(inbound, frame, *slot, base);
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      slots_.abandon(actor);
      throw;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const std::scoped_lock lock(mutex_);
    slots_.ready(actor);
    inbound.terms.last = frame.version;
    ++report_.versions_received;
    report_.bytes_received += static_cast<std::int64_t>(frame.bytes);
    report_.receive_s += took.count();
    changed_.notify_all();
  }
  void fill(Inbound& inbound, const WeightFrame& frame, detail::WeightSlot& slot,
            const detail::WeightSlot* base) {
    const detail::PartLayout& its = layout(inbound.terms.actor);
    std::uint64_t sum = 0;
    if (frame.kind == FrameKind::full) {
      sum = inbound.wire.receive(slot.bytes, its.all);
    } else {
      // The rest of the part is that of the version before.
      const bool has_rest = frame.kind == FrameKind::trainable && inbound.whole[slot.side];
      if (!has_rest && its.bytes > 0) std::memcpy(slot.bytes.data(), base->bytes.data(), its.bytes);
      if (frame.kind == FrameKind::trainable) {
        sum = inbound.wire.receive(slot.bytes, its.trainable);
      } else {
        inbound.bitmap.resize(detail::bitmap_bytes(its.bytes));
        inbound.channel->receive(inbound.bitmap, deadline_);
        detail::marked_ranges(inbound.bitmap, its.bytes, inbound.ranges);
        if (detail::bytes_in(inbound.ranges) + inbound.bitmap.size() != frame.bytes)
          throw Error("control plane: a delta from " + inbound.terms.from +
                      " marks another number of bytes than it announces; it is damaged");
        inbound.wire.receive(slot.bytes, inbound.ranges);
        sum = checksum(slot.bytes);
      }
    }
    if (sum != frame.sum)
      throw Error(
          "control plane: version " + std::to_string(frame.version) + " from " + inbound.terms.from +
          " does not match its checksum: it is torn or damaged; nobody may write to published weights");
    inbound.whole[slot.side] = true;
  }

  /// An actor that will not send `version` any more, because it is lost or has ended; null if none.
  const Inbound* without(State state, std::int64_t version) const {
    for (const auto& inbound : inbounds_)
      if (inbound && inbound->state == state && slots_.newest(inbound->terms.actor) < version)
        return inbound.get();
    return nullptr;
  }
  bool ended_before(std::int64_t version) const {
    return without(State::ended, version) || (finishing_ && actor_ >= 0 && published_ < version);
  }
  [[noreturn]] void explain(std::int64_t wanted, std::chrono::nanoseconds limit) const {
    const std::string who = "control plane: lane 'reception' of " + me() + " waited ";
    const std::string what = "for version " + std::to_string(wanted) + " from lane 'distribution' of ";
    if (const Inbound* gone = without(State::lost, wanted))
      throw PeerError(who + what + gone->terms.from + ", which is lost: " + gone->why);
    if (ended_before(wanted))
      throw EndOfWeights(who + "for version " + std::to_string(wanted) +
                         ", but the actors ended at version " + std::to_string(slots_.newest_whole()));
    int last = 0;
    for (int actor = 0; actor < actors(); ++actor)
      if (slots_.newest(actor) < slots_.newest(last)) last = actor;
    throw DeadlineError(who + detail::seconds_text(limit) + " " + what + actor_name(last) +
                        "; the newest from there is " + std::to_string(slots_.newest(last)) +
                        "; is the training lane behind?");
  }

  /// Threads end, channels close.
  void stop() {
    close();
    for (auto& link : links_)
      if (link && link->thread.joinable()) link->thread.join();
    for (auto& inbound : inbounds_)
      if (inbound && inbound->thread.joinable()) inbound->thread.join();
  }

  Cluster& cluster_;
  const Roles roles_;
  const int actor_, rollout_, incarnation_;
  const WeightForm form_;
  const std::chrono::nanoseconds deadline_;
  const std::size_t bytes_;
  const std::vector<detail::PartLayout> layouts_;  ///< by actor

  mutable std::mutex mutex_;
  std::condition_variable changed_;  ///< anything below
  detail::WeightSlots slots_;
  std::int64_t published_ = none, packing_ = none;
  bool closed_ = false, finishing_ = false;
  WeightPlaneReport report_;
  std::array<Sealed, 2> sealed_;                    ///< by side of this actor's slots
  std::vector<std::unique_ptr<Link>> links_;        ///< by rollout; null: this rank
  std::vector<std::unique_ptr<Inbound>> inbounds_;  ///< by actor; null: this rank
  std::mutex rejoining_;
};

template <class Pipeline>
struct machinery<Gloo, Pipeline> {
  using type = BroadcastWeightPlane;
};

}  // namespace dvla
