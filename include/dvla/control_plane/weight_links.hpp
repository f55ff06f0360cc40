// The threads of a broadcast plane, what they share under one lock, and their conversations. An actor has one
// a rollout, which sends every version of its part: a rollout that is lost, or takes nothing for half the
// deadline, is left out and counted, and the others go on. A rollout has one an actor, which checks every
// frame, fills that actor's slot and proves it by its checksum: it waits before it overwrites what is still
// needed, so an actor that is ahead of the others is held back, never stored; what is wrong ends that actor
// here, and receive says why.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_slots.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// Of this rank, since the start. Bytes are those of weights, without the 64 of each frame.
struct WeightPlaneReport {
  std::int64_t published = 0, versions_sent = 0;  ///< summed over peers, as the next two
  std::int64_t bytes_sent = 0, bytes_received = 0;
  std::int64_t installed = 0, installed_bytes = 0;  ///< by receive
  std::int64_t lost = 0, rejoined = 0;              ///< rollouts
  std::string last_loss;                            ///< why, for people
};

namespace detail {

enum class WeightPeer : std::uint8_t { live, ended, lost };

class WeightLinks {
 public:
  using Channels = std::vector<std::unique_ptr<Channel>>;
  static constexpr std::int64_t none = -1;

  WeightLinks(Roles its_roles, int rank, int its_incarnation, std::chrono::nanoseconds its_deadline,
              std::vector<PartLayout> its_layouts, std::pmr::memory_resource& pool)
      : roles(std::move(its_roles)),
        me(rank_name(roles, rank)),
        actor(roles.actor(rank)),
        rollout(roles.rollout(rank)),
        actors(static_cast<int>(roles.actors.size())),
        incarnation(its_incarnation),
        deadline(its_deadline),
        layouts(std::move(its_layouts)),
        slots(layouts, actor, rollout >= 0, pool),
        rollouts_(actor >= 0 ? roles.rollouts.size() : 0),
        actors_(rollout >= 0 ? roles.actors.size() : 0) {}
  /// After close().
  ~WeightLinks() {
    for_each([](Link& link) {
      if (link.thread.joinable()) link.thread.join();
    });
  }

  static std::size_t place(int index) { return static_cast<std::size_t>(index); }
  const PartLayout& layout(int which) const { return layouts[place(which)]; }
  std::string actor_name(int which) const { return rank_name(roles, roles.actors[place(which)]); }
  std::string rollout_name(int which) const { return rank_name(roles, roles.rollouts[place(which)]); }

  const Roles roles;
  const std::string me;              ///< "rank 3 (rollout 2)"
  const int actor, rollout, actors;  ///< this rank's place among them, -1: not one of them; how many
  const int incarnation;
  const std::chrono::nanoseconds deadline;
  const std::vector<PartLayout> layouts;  ///< by actor

  mutable std::mutex mutex;         ///< guards what stands below
  std::condition_variable changed;  ///< notified when any of it did
  WeightSlots slots;
  std::int64_t published = none, packing = none;
  bool closed = false, finishing = false;
  WeightPlaneReport report;

  /// The way from an actor, which is listened to from now on.
  void connect_actor(int which, Channels channels) {
    const std::scoped_lock lock(mutex);
    start(actors_[place(which)],
          std::make_unique<Link>(which, false, incarnation, std::move(channels), deadline));
  }
  /// The way to a rollout, which is served from now on. Throws Error for one whose incarnation is not newer
  /// than the one before.
  void connect_rollout(int which, Channels channels, int its_incarnation) {
    const std::scoped_lock one_at_a_time(connecting_);
    check(which, its_incarnation);
    auto& link = rollouts_[place(which)];
    const bool again = link != nullptr;
    if (again) {
      {
        const std::scoped_lock lock(mutex);
        dismiss(*link);
      }
      link->thread.join();
    }
    auto fresh = std::make_unique<Link>(which, true, its_incarnation, std::move(channels), deadline / 2);
    const std::scoped_lock lock(mutex);
    if (closed) throw Error("control plane: closed; " + rollout_name(which) + " gets no more weights");
    if (again) ++report.rejoined;
    start(link, std::move(fresh));
  }
  /// Throws as connect_rollout does, before a channel is made.
  void check_newer(int which, int its_incarnation) {
    const std::scoped_lock one_at_a_time(connecting_);
    check(which, its_incarnation);
  }

  // ---- With the lock held
  /// A rollout that still needs what lies where this actor packs next, or -1.
  int behind() const {
    const WeightSlot& target = slots.target(actor);
    for (const auto& link : rollouts_) {
      if (!link || link->state != WeightPeer::live || target.state != WeightSlot::State::ready) continue;
      const bool waits = link->last != none && link->last < target.version;
      if (waits || link->sending == target.version) return link->peer;
    }
    return -1;
  }
  struct Gone {
    int actor = -1;
    std::string why;
    explicit operator bool() const { return actor >= 0; }
  };
  /// An actor that has gone, and sent nothing that can make `version` or a later one whole.
  Gone without(WeightPeer how, std::int64_t version) const {
    for (const auto& link : actors_)
      if (link && link->state == how && !slots.has_sent(link->peer, version)) return {link->peer, link->why};
    return {};
  }
  /// Somebody who is served or listened to; empty: nobody is.
  std::string somebody() const {
    for (const auto& link : rollouts_)
      if (link && link->state == WeightPeer::live) return rollout_name(link->peer);
    for (const auto& link : actors_)
      if (link && link->state == WeightPeer::live) return actor_name(link->peer);
    return {};
  }
  void lose(int rank) {
    for_each([&](Link& link) {
      if ((link.sends ? roles.rollouts : roles.actors)[place(link.peer)] == rank) dismiss(link);
    });
  }
  void close() {
    closed = true;
    for_each([](Link& link) { link.wire.close(); });
  }

 private:
  /// Between versions an actor need not send anything: lanes that wait have deadlines of their own, and a
  /// peer that dies or stops closes the channel.
  static constexpr std::chrono::hours idle{1000};

  /// One way to a rollout or from an actor.
  struct Link {
    Link(int which, bool out, int its_incarnation, Channels channels, std::chrono::nanoseconds of_a_piece)
        : peer(which),
          sends(out),
          incarnation(its_incarnation),
          limit(of_a_piece),
          wire(std::move(channels), of_a_piece) {}
    const int peer;  ///< place among the rollouts, or the actors
    const bool sends;
    const int incarnation;  ///< of the rollout
    const std::chrono::nanoseconds limit;
    WeightWire wire;
    std::int64_t last = none, sending = none;  ///< versions that went or came, and that is on its way
    WeightPeer state = WeightPeer::live;
    std::string why;         ///< it is lost
    bool dismissed = false;  ///< known to be lost, or a newer incarnation takes its place
    std::thread thread;
  };
  template <class Visit>
  void for_each(Visit visit) {
    for (auto* links : {&rollouts_, &actors_})
      for (const auto& link : *links)
        if (link) visit(*link);
  }
  void dismiss(Link& link) {
    link.dismissed = true;
    link.wire.close();
    changed.notify_all();
  }
  void check(int which, int its_incarnation) const {
    if (which < 0 || place(which) >= rollouts_.size() || which == rollout)
      throw Error("control plane: " + me + " sends no weights to rollout " + std::to_string(which));
    const auto& link = rollouts_[place(which)];
    if (link && its_incarnation <= link->incarnation)
      throw Error("control plane: incarnation " + std::to_string(its_incarnation) + " of " +
                  rollout_name(which) + " is not newer than " + std::to_string(link->incarnation));
  }

  void start(std::unique_ptr<Link>& place_of_it, std::unique_ptr<Link> fresh) {
    place_of_it = std::move(fresh);
    place_of_it->thread = std::thread([this, &link = *place_of_it] {
      WeightPeer state = WeightPeer::ended;
      std::string why;
      try {
        link.sends ? serve(link) : listen(link);
      } catch (const std::exception& error) {
        link.wire.close();
        state = WeightPeer::lost;
        why = error.what();
      }
      const std::scoped_lock lock(mutex);
      link.state = state;
      link.why = why;
      if (link.sends && state == WeightPeer::lost && !closed) {
        ++report.lost;
        report.last_loss = rollout_name(link.peer) + ": " + why;
      }
      changed.notify_all();
    });
  }

  WeightFrame frame_of(const Link& link, std::int64_t version, FrameKind kind = FrameKind::weights) const {
    WeightFrame frame;
    frame.actor = link.sends ? actor : link.peer;
    frame.rollout = link.sends ? link.peer : rollout;
    frame.incarnation = link.incarnation;
    frame.version = version;
    frame.kind = kind;
    frame.layout = layout(frame.actor).identity;
    frame.bytes = kind == FrameKind::end ? 0 : layout(frame.actor).bytes;
    return frame;
  }

  // ---- An actor's side

  void serve(Link& link) {
    while (WeightSlot* slot = next(link)) {
      const Leave leave{*this, *slot};
      send_version(link, *slot);
    }
    link.wire.channel().send(frame_of(link, link.last, FrameKind::end).bytes_of(), link.limit);
    std::array<std::byte, 8> goodbye{};  // without it, closing might overtake what was sent
    link.wire.channel().receive(goodbye, deadline);
  }
  struct Leave {
    WeightLinks& links;
    WeightSlot& slot;
    ~Leave() {
      const std::scoped_lock lock(links.mutex);
      --slot.readers;
      links.changed.notify_all();
    }
  };
  /// Waits for what the rollout gets next, which is then being read. Null: there is no more. One that is new
  /// here begins with the newest version; after that it gets every one.
  WeightSlot* next(Link& link) {
    std::unique_lock lock(mutex);
    WeightSlot* slot = nullptr;
    changed.wait(lock, [&] {
      slot = slots.next(actor, link.last, link.last != none);
      return closed || link.dismissed || slot || finishing;
    });
    if (closed || link.dismissed) throw PeerError("it was given up while there was nothing to send");
    link.sending = slot ? slot->version : none;
    if (slot) ++slot->readers;
    return slot;
  }
  void send_version(Link& link, const WeightSlot& slot) {
    link.wire.channel().send(frame_of(link, slot.version).bytes_of(), link.limit);
    link.wire.send(slot.bytes);
    const std::scoped_lock lock(mutex);
    link.last = slot.version;
    link.sending = none;
    ++report.versions_sent;
    report.bytes_sent += static_cast<std::int64_t>(slot.bytes.size());
  }

  // ---- A rollout's side

  void listen(Link& link) {
    std::array<std::byte, 64> head;
    for (;;) {
      link.wire.channel().receive(head, idle);
      const WeightFrame frame = read_frame(head, frame_of(link, link.last), actor_name(link.peer));
      if (frame.kind == FrameKind::end) break;
      take_version(link, frame);
      link.last = frame.version;
    }
    link.wire.channel().send(std::array<std::byte, 8>{}, deadline);
  }
  void take_version(Link& link, const WeightFrame& frame) {
    WeightSlot& slot = claim(link.peer, frame.version);
    const std::string damage = "control plane: version " + std::to_string(frame.version) + " from " +
                               actor_name(link.peer) +
                               " does not match its checksum: it is torn or damaged; "
                               "nobody may write to published weights";
    try {
      if (!link.wire.receive(slot.bytes)) throw Error(damage);
    } catch (...) {
      const std::scoped_lock lock(mutex);
      slots.abandon(link.peer);
      throw;
    }
    const std::scoped_lock lock(mutex);
    slots.ready(link.peer);
    report.bytes_received += static_cast<std::int64_t>(frame.bytes);
    changed.notify_all();
  }
  WeightSlot& claim(int from, std::int64_t version) {
    std::unique_lock lock(mutex);
    slots.announce(from, version);
    changed.notify_all();
    const bool free =
        changed.wait_until(lock, deadline_after(deadline), [&] { return closed || slots.free(from); });
    if (closed) throw Error("control plane: closed");
    if (!free)
      throw DeadlineError("control plane: version " + std::to_string(version) + " of " + actor_name(from) +
                          " waited " + seconds_text(deadline) + " at " + me + " for " +
                          actor_name(slots.last_actor()) + " to come beyond version " +
                          std::to_string(slots.newest(slots.last_actor())) + "; is it stuck?");
    return slots.take(from, version);
  }

  std::vector<std::unique_ptr<Link>> rollouts_, actors_;  ///< null: this rank, or not yet
  std::mutex connecting_;                                 ///< taken before the other
};

}  // namespace detail
}  // namespace dvla
