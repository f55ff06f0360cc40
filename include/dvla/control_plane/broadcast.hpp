// The control plane between processes: every actor sends its own part of the trainable weights, in the
// precision that the model computes in, to every rollout, in the background, over channels of the pair.
// Paper: control plane on the CPU, contiguous host buffers, sharded parameters broadcast in parallel, swapped
// at a chunk boundary. Torch-free: over LibTorch's Gloo by placement/c10d.hpp, over threads by
// testing/thread_cluster.hpp. Knows bytes only: packing is the sharding's, and which of the sampler's copies
// takes the weights is front_back.hpp's business.
//
// Actor: two buffers of its part, packed and sent by turns; a thread a rollout sends every version: a rollout
// that is lost, or takes nothing for half the deadline, is left out and counted, and the others go on.
// Rollout: two versions of all parts; a thread an actor checks every message, fills that actor's slot and
// proves it by its checksum. It waits before it overwrites what is still needed, so an actor that is ahead of
// the others is held back, never stored; what is wrong ends that actor here, and receive says why. A version
// is visible once all its parts are there and proven. A rank that is both reads its own part where it was
// packed. Nothing is skipped between versions, so a slow rollout holds the distribution lane back (begin
// waits, at most `deadline`), and never fills memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_slots.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/placement/peers.hpp"

namespace dvla {

/// The actors have said that no more weights will come.
class EndOfWeights : public Error {
 public:
  using Error::Error;
};

/// Of this rank, since the start. Bytes are those of weights, without messages and checksums.
struct WeightPlaneReport {
  std::int64_t published = 0, versions_sent = 0;  ///< summed over peers, as the next two
  std::int64_t bytes_sent = 0, bytes_received = 0;
  std::int64_t installed = 0, installed_bytes = 0;  ///< by receive
  std::int64_t lost = 0, rejoined = 0;              ///< rollouts
  std::string last_loss;                            ///< why, for people
};

namespace detail {

inline constexpr std::int64_t no_version = -1;

/// A rollout, as an actor that sends to it sees it, or an actor, as a rollout does.
struct WeightPeer : Peer {
  WeightPeer(int index_, bool takes_, std::string name_) : Peer(index_, std::move(name_)), takes(takes_) {}
  const bool takes;                ///< it is a rollout
  std::int64_t last = no_version;  ///< version that went or came
  std::int64_t sending = no_version;
  bool live() const { return channel && !ended; }
  bool lost() const { return !why_gone.empty(); }
};

}  // namespace detail

/// begin, publish: one distribution thread. receive: any number of reception threads. All others: any.
class BroadcastWeightPlane : detail::Peers<detail::WeightPeer> {
  using Peer = detail::WeightPeer;

 public:
  using End = EndOfWeights;

  /// Makes the channels: every rank of `roles` constructs its plane at the same time and with the same
  /// values. `bytes`: of all trainable weights; `parts`: of each actor; none: equal shares. `incarnation`: the
  /// same number for all at the start of a job; a rollout that joins later gives its own, and the actors call
  /// rejoin. `cluster` and `pool` must outlive this. Throws ConfigError for parts that do not cover the
  /// weights, DeadlineError for a rank that does not come.
  BroadcastWeightPlane(std::size_t bytes, std::vector<WeightPart> parts, const GlooKnobs& knobs,
                       Cluster& cluster, const Roles& roles, int incarnation,
                       std::chrono::nanoseconds deadline, std::pmr::memory_resource& pool)
      : Peers("control plane", rank_name(roles, cluster.rank())),
        cluster_(cluster),
        roles_(roles),
        actor_(roles.actor(cluster.rank())),
        rollout_(roles.rollout(cluster.rank())),
        deadline_(deadline),
        bytes_(bytes),
        streams_(static_cast<std::size_t>(knobs.streams)),
        layouts_(layouts(bytes, std::move(parts), roles, knobs)),
        slots_(layouts_, actor_, rollout_ >= 0, pool) {
    // Every rank goes through its pairs in the same order, so nobody waits in a circle.
    for (int rollout = 0; rollout < static_cast<int>(roles.rollouts.size()); ++rollout)
      for (int actor = 0; actor < static_cast<int>(roles.actors.size()); ++actor) {
        const bool takes = rollout == rollout_, sends = actor == actor_;
        if (takes == sends) continue;  // not ours, or both ends are this rank
        const int rank = sends ? roles.rollouts[place(rollout)] : roles.actors[place(actor)];
        peers_.emplace_back(sends ? rollout : actor, sends, rank_name(roles, rank));
      }
    try {
      for (Peer& peer : peers_)
        join(peer, incarnation, [&] { return channels(peer, incarnation, deadline); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~BroadcastWeightPlane() { stop(); }

  /// Of all weights, what receive fills.
  std::size_t bytes() const { return bytes_; }
  /// What an actor packs, in this order; what begin gives has its size.
  const WeightPart& part() const {
    check_actor();
    return layout(actor_).part;
  }
  /// On a rollout the newest version that is whole here, on an actor only the newest published; -1: none.
  std::int64_t latest() const {
    const std::scoped_lock lock(mutex_);
    return rollout_ >= 0 ? slots_.newest_whole() : published_;
  }

  /// Distribution lane: where to pack this actor's part of `version`. Waits until no rollout needs what is in
  /// that buffer. Throws Error for a version that is not newer, DeadlineError naming who is slow, PeerError
  /// when another actor is lost without which this rank's own sampler cannot go on.
  std::span<std::byte> begin(std::int64_t version) {
    check_actor();
    std::unique_lock lock(mutex_);
    if (version <= published_)
      throw Error("control plane: version ", version, " cannot follow version ", published_,
                  "; versions strictly increase");
    if (finishing_)
      throw Error("control plane: version ", version, " comes after finish(); ", name_,
                  " has said that there are no more");
    if (packing_ != detail::no_version) slots_.abandon(actor_);
    packing_ = detail::no_version;
    slots_.announce(actor_, version);
    changed_.notify_all();
    const bool answered = wait_until(lock, detail::deadline_after(deadline_),
                                     [&] { return stuck() || (slots_.free(actor_) && !lagging_rollout()); });
    if (closed_) throw Error("control plane: closed; version ", version, " cannot be packed");
    if (!answered || stuck()) explain_packing(version);
    packing_ = version;
    return slots_.take(actor_, version).bytes;
  }

  /// Distribution lane: what begin gave is complete, and on its way.
  void publish(std::int64_t version) {
    check_actor();
    if (version != packing_)
      throw Error("control plane: publish(", version, ") without begin(", version,
                  "); pack a version before it is published");
    const std::scoped_lock lock(mutex_);
    slots_.ready(actor_);
    published_ = version;
    packing_ = detail::no_version;
    ++report_.published;
    changed_.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is whole. Throws as receive does.
  void await(std::int64_t at_least, std::chrono::nanoseconds limit) {
    std::unique_lock lock(mutex_);
    await(lock, at_least, limit);
  }

  /// Reception lane: as await; then lays the newest whole version out in `destination`, a model's units, and
  /// returns its number. Throws DeadlineError after `limit`, EndOfWeights when the actors have ended without
  /// it, PeerError when an actor that should send it is lost, Error after close().
  std::int64_t receive(std::span<const WeightUnit> destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    if (trainable_bytes(destination) != bytes_)
      throw Error("control plane: weights are ", bytes_, " bytes and the destination ",
                  trainable_bytes(destination), "; trainer and sampler must have the same model");
    std::unique_lock lock(mutex_);
    const std::int64_t version = await(lock, at_least, limit);
    slots_.read(version, 1);
    for (int actor = 0; actor < static_cast<int>(layouts_.size()); ++actor) {
      std::span<const std::byte> packed_part = slots_.find(actor, version)->bytes;
      lock.unlock();
      for (const ByteRange& range : layout(actor).part) {
        write_weights(destination, range.offset, packed_part.first(range.bytes));
        packed_part = packed_part.subspan(range.bytes);
      }
      lock.lock();
    }
    slots_.read(version, -1);
    ++report_.installed;
    report_.installed_bytes += static_cast<std::int64_t>(bytes_);
    changed_.notify_all();
    return version;
  }

  /// "weights/<rollout>/<actor>/<incarnation>", by place among the rollouts and the actors; streams after the
  /// first add "/<stream>".
  static std::string channel_name(int rollout, int actor, std::int64_t incarnation, std::size_t stream = 0) {
    return detail::concat("weights/", rollout, "/", actor, "/", incarnation) +
           (stream > 0 ? detail::concat("/", stream) : "");
  }
  using Channels = std::vector<std::unique_ptr<Channel>>;
  /// Actor: rollout `rollout` is there again, at the other ends of the channels that `connect` makes; it gets
  /// the newest version at once. Throws Error unless the incarnation is newer than the one before.
  void rejoin(int rollout, int incarnation, const std::function<Channels()>& connect) {
    join(rollout_peer(rollout), incarnation, connect);
  }
  /// The same, making the channels, each within `limit` or the plane's deadline.
  void rejoin(int rollout, int incarnation,
              std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    const Peer& peer = rollout_peer(rollout);
    rejoin(rollout, incarnation, [&] { return channels(peer, incarnation, std::min(limit, deadline_)); });
  }

  /// Whoever watches over the ranks (heartbeats) has found this one dead or stopped: nothing waits for it any
  /// more. A rollout may rejoin; an actor does not.
  void lose(int rank) {
    const std::scoped_lock lock(mutex_);
    for (Peer& peer : peers_)
      if (rank_of(peer) == rank) Peers::lose(peer, "it was found dead or stopped");
  }

  /// A clean end, on every rank, before it goes. An actor publishes no more: what it published is sent, then
  /// the word that it was the last, and the rollouts' answers are waited for. A rollout waits until all
  /// actors have ended. Nobody waits for the lost. Throws DeadlineError naming who was waited for.
  void finish(std::chrono::nanoseconds limit) {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
    if (!wait_until(lock, detail::deadline_after(limit), [&] { return !live_peer(); }))
      ran_out(limit, "for ", live_peer()->name, " to end the weights; is it stuck?");
  }

  /// At once: wakes everyone who waits; they, and later calls, throw Error. To the peers this rank is lost.
  using Peers::close;

  WeightPlaneReport report() const {
    const std::scoped_lock lock(mutex_);
    return report_;
  }

 private:
  static std::vector<detail::PartLayout> layouts(std::size_t bytes, std::vector<WeightPart> parts,
                                                 const Roles& roles, const GlooKnobs& knobs) {
    if (knobs.streams < 1 || knobs.streams > 64)
      throw ConfigError(
          detail::concat("control plane: streams is ", knobs.streams, "; it must be from 1 to 64"));
    if (parts.empty()) parts = equal_parts(bytes, static_cast<int>(roles.actors.size()));
    check_weight_parts(bytes, parts, roles.actors.size());
    std::vector<detail::PartLayout> all;
    for (WeightPart& part : parts) all.emplace_back(std::move(part));
    return all;
  }
  void check_actor() const {
    if (actor_ < 0) refuse("is no actor and has no weights to publish");
  }
  Peer& rollout_peer(int rollout) {
    for (Peer& peer : peers_)
      if (peer.takes && peer.index == rollout) return peer;
    refuse("sends no weights to rollout ", rollout);
  }
  /// As many as the actor's part is worth.
  Channels channels(const Peer& peer, int incarnation, std::chrono::nanoseconds limit) {
    const int rollout = peer.takes ? peer.index : rollout_, actor = peer.takes ? actor_ : peer.index;
    Channels all;
    while (all.size() < detail::weight_streams(layout(actor).bytes, streams_))
      all.push_back(
          cluster_.channel(channel_name(rollout, actor, incarnation, all.size()), rank_of(peer), limit));
    return all;
  }

  static std::size_t place(int index) { return static_cast<std::size_t>(index); }
  const detail::PartLayout& layout(int actor) const { return layouts_[place(actor)]; }
  int rank_of(const Peer& peer) const {
    return (peer.takes ? roles_.rollouts : roles_.actors)[place(peer.index)];
  }
  std::string actor_name(int actor) const { return rank_name(roles_, roles_.actors[place(actor)]); }

  /// Lets a peer in, by channels that `connect` makes: what comes from an actor is listened to from now on, a
  /// rollout is served. Throws Error for a rollout whose incarnation is not newer than the one before.
  template <class Connect>
  void join(Peer& peer, int incarnation, Connect connect) {
    const bool again = peer.channel != nullptr;
    const auto make = [&] { return std::make_unique<detail::WeightStreams>(connect()); };
    connect_peer(peer, incarnation, make, [&] {
      if (again) ++report_.rejoined;
      peer.last = peer.sending = detail::no_version;
      start(
          peer, [this, &peer] { peer.takes ? serve(peer) : listen(peer); },
          [this, &peer](const std::string& why) {
            if (why.empty()) return;
            if (!peer.lost()) peer.why_gone = why;
            if (!peer.takes || closed_) return;
            ++report_.lost;
            report_.last_loss = peer.name + ": " + peer.why_gone;
          });
    });
  }

  // ---- With the lock held

  /// A rollout that still needs what lies where this actor packs next, or null.
  const Peer* lagging_rollout() const {
    const detail::WeightSlot& target = slots_.target(actor_);
    if (target.state != detail::WeightSlot::State::ready) return nullptr;
    for (const Peer& peer : peers_) {
      if (!peer.takes || !peer.live() || peer.lost()) continue;
      const bool waits = peer.last != detail::no_version && peer.last < target.version;
      if (waits || peer.sending == target.version) return &peer;
    }
    return nullptr;
  }
  /// An actor that is lost, or has ended, and sent nothing that can make `version` or a later one whole.
  const Peer* unavailable_actor(bool lost, std::int64_t version) const {
    for (const Peer& peer : peers_)
      if (!peer.takes && (lost ? peer.lost() : peer.ended && !peer.lost()) &&
          !slots_.has_sent(peer.index, version))
        return &peer;
    return nullptr;
  }
  /// Somebody who is served or listened to, or null.
  const Peer* live_peer() const {
    for (const Peer& peer : peers_)
      if (peer.live()) return &peer;
    return nullptr;
  }

  /// The newest whole version, once it is `at_least`.
  std::int64_t await(std::unique_lock<std::mutex>& lock, std::int64_t at_least,
                     std::chrono::nanoseconds limit) {
    if (rollout_ < 0) refuse("is no rollout and receives no weights");
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    wait_until(lock, detail::deadline_after(limit), [&] {
      return slots_.newest_whole() >= wanted || unavailable_actor(true, wanted) || ended_before(wanted);
    });
    if (closed_) throw Error("control plane: closed while reception waited for version ", wanted);
    const std::int64_t version = slots_.newest_whole();
    if (version < wanted) explain(wanted, limit);
    return version;
  }
  /// Another actor is lost, so the version that this rank's reception holds on to will not be followed.
  const Peer* stuck() const {
    return slots_.free(actor_) ? nullptr : unavailable_actor(true, std::numeric_limits<std::int64_t>::max());
  }
  [[noreturn]] void explain_packing(std::int64_t version) const {
    const std::string who = "control plane: lane 'distribution' of " + name_ + " waited ";
    const std::string what = detail::concat("to pack version ", version, " for ");
    if (const auto* gone = stuck())
      throw PeerError(who, what, gone->name, ", which is lost: ", gone->why_gone);
    const detail::WeightSlot& target = slots_.target(actor_);
    const int last = slots_.last_actor();
    const std::string whom =
        lagging_rollout() ? detail::concat(lagging_rollout()->name, " to take version ", target.version)
        : target.readers == 0
            ? detail::concat(actor_name(last), " to come beyond version ", slots_.newest(last))
            : detail::concat("the lane 'reception' of this rank to leave version ", target.version);
    throw DeadlineError(who, detail::seconds_text(deadline_), " ", what, whom, "; is it stuck?");
  }
  bool ended_before(std::int64_t version) const {
    return unavailable_actor(false, version) || (finishing_ && actor_ >= 0 && published_ < version);
  }
  [[noreturn]] void explain(std::int64_t wanted, std::chrono::nanoseconds limit) const {
    const std::string who = "control plane: lane 'reception' of " + name_ + " waited ";
    const std::string what = detail::concat("for version ", wanted);
    if (const auto* gone = unavailable_actor(true, wanted))
      throw PeerError(who, what, " from lane 'distribution' of ", gone->name,
                      ", which is lost: ", gone->why_gone);
    if (ended_before(wanted))
      throw EndOfWeights(who, what, ", but the actors have ended; the last whole version is ",
                         slots_.newest_whole());
    const int last = slots_.last_actor();
    throw DeadlineError(who, detail::seconds_text(limit), " ", what, " from lane 'distribution' of ",
                        actor_name(last), "; the newest from there is ", slots_.newest(last),
                        "; is the training lane behind?");
  }

  /// Between versions an actor need not send anything: lanes that wait have deadlines of their own, and a
  /// peer that dies or stops closes the channel.
  static constexpr std::chrono::hours idle{1000};

  detail::PlaneMessage message(const Peer& peer, detail::MessageKind kind, std::int64_t version) const {
    detail::PlaneMessage message;
    message.kind = kind;
    message.actor = peer.takes ? actor_ : peer.index;
    message.rollout = peer.takes ? peer.index : rollout_;
    message.incarnation = peer.incarnation;
    message.batch = version;
    message.bytes = static_cast<std::int64_t>(layout(message.actor).bytes);
    message.fingerprint = layout(message.actor).identity;
    return message;
  }
  static detail::WeightStreams& streams(const Peer& peer) {
    return static_cast<detail::WeightStreams&>(*peer.channel);
  }
  void say(const Peer& peer, detail::MessageKind kind, std::int64_t version, std::chrono::nanoseconds limit) {
    peer.channel->send(write_message(message(peer, kind, version)), limit);
  }

  // ---- An actor's side: a rollout that takes nothing for half the deadline is lost

  void serve(Peer& peer) {
    const std::chrono::nanoseconds limit = deadline_ / 2;
    const auto leave = [this](detail::WeightSlot* slot) {
      const std::scoped_lock lock(mutex_);
      --slot->readers;
      changed_.notify_all();
    };
    while (const auto slot = std::unique_ptr<detail::WeightSlot, decltype(leave)>(next(peer), leave)) {
      say(peer, detail::MessageKind::part, slot->version, limit);
      streams(peer).send_part(slot->bytes, limit);
      const std::scoped_lock lock(mutex_);
      peer.last = slot->version;
      peer.sending = detail::no_version;
      ++report_.versions_sent;
      report_.bytes_sent += static_cast<std::int64_t>(slot->bytes.size());
    }
    say(peer, detail::MessageKind::goodbye, peer.last, limit);
    detail::MessageBytes accepted;  // without it, closing might overtake what was sent
    peer.channel->receive(accepted, deadline_);
  }
  /// Waits for what the rollout gets next, which is then being read. Null: there is no more. One that is new
  /// here begins with the newest version; after that it gets every one.
  detail::WeightSlot* next(Peer& peer) {
    std::unique_lock lock(mutex_);
    detail::WeightSlot* slot = nullptr;
    changed_.wait(lock, [&] {
      slot = slots_.next(actor_, peer.last, peer.last != detail::no_version);
      return closed_ || peer.lost() || slot || finishing_;
    });
    if (closed_ || peer.lost()) throw PeerError("it was given up while there was nothing to send");
    peer.sending = slot ? slot->version : detail::no_version;
    if (slot) ++slot->readers;
    return slot;
  }

  // ---- A rollout's side

  void listen(Peer& peer) {
    for (;;) {
      detail::PlaneMessage next;
      const Refusal why = receive_message(*peer.channel, idle, next)
                              ? check_weights(next, message(peer, detail::MessageKind::part, peer.last))
                              : Refusal::malformed;
      if (why != Refusal::none)
        throw Error("control plane: a message from ", peer.name, " after version ", peer.last,
                    " was refused: ", refusal_name(why),
                    "; trainer and sampler must have the same program, model and settings");
      if (next.kind == detail::MessageKind::goodbye) break;
      take_version(peer, next.batch);
      peer.last = next.batch;
    }
    say(peer, detail::MessageKind::accepted, peer.last, deadline_);
  }
  void take_version(Peer& peer, std::int64_t version) {
    detail::WeightSlot& slot = claim(peer, version);
    try {
      if (!streams(peer).receive_part(slot.bytes, deadline_))
        throw Error("control plane: version ", version, " from ", peer.name,
                    " does not match its checksum: it is torn or damaged; nobody may write to "
                    "published weights");
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      slots_.abandon(peer.index);
      throw;
    }
    const std::scoped_lock lock(mutex_);
    slots_.ready(peer.index);
    report_.bytes_received += static_cast<std::int64_t>(slot.bytes.size());
    changed_.notify_all();
  }
  detail::WeightSlot& claim(const Peer& from, std::int64_t version) {
    std::unique_lock lock(mutex_);
    slots_.announce(from.index, version);
    changed_.notify_all();
    const bool free =
        wait_until(lock, detail::deadline_after(deadline_), [&] { return slots_.free(from.index); });
    throw_if_closed();
    if (!free)
      throw DeadlineError("control plane: version ", version, " of ", from.name, " waited ",
                          detail::seconds_text(deadline_), " at ", name_, " for ",
                          actor_name(slots_.last_actor()), " to come beyond version ",
                          slots_.newest(slots_.last_actor()), "; is it stuck?");
    return slots_.take(from.index, version);
  }

  Cluster& cluster_;
  const Roles roles_;
  const int actor_, rollout_;  // this rank's place among them, -1: not one of them
  const std::chrono::nanoseconds deadline_;
  const std::size_t bytes_, streams_;
  const std::vector<detail::PartLayout> layouts_;  // by actor
  // What the lock guards:
  detail::WeightSlots slots_;
  std::int64_t published_ = detail::no_version, packing_ = detail::no_version;
  bool finishing_ = false;
  WeightPlaneReport report_;
};

template <class Pipeline>
struct machinery<Gloo, Pipeline> {
  using type = BroadcastWeightPlane;
};

}  // namespace dvla
