// The threads of a broadcast plane, what they share under one lock, and their conversations. An actor has one
// a rollout, which sends every version of its part: a rollout that is lost, or takes nothing for half the
// deadline, is left out and counted, and the others go on. A rollout has one an actor, which checks every
// message, fills that actor's slot and proves it by its checksum: it waits before it overwrites what is still
// needed, so an actor that is ahead of the others is held back, never stored; what is wrong ends that actor
// here, and receive says why.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_slots.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/peers.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

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

class WeightLinks : public Peers<WeightPeer> {
 protected:
  WeightLinks(const Roles& roles, int rank, std::chrono::nanoseconds deadline,
              std::vector<PartLayout> layouts, std::pmr::memory_resource& pool)
      : Peers("control plane", rank_name(roles, rank)),
        roles_(roles),
        actor_(roles.actor(rank)),
        rollout_(roles.rollout(rank)),
        actors_(static_cast<int>(roles.actors.size())),
        deadline_(deadline),
        layouts_(std::move(layouts)),
        slots_(layouts_, actor_, rollout_ >= 0, pool) {
    // Every rank goes through its pairs in the same order, so nobody waits in a circle.
    for (int rollout = 0; rollout < static_cast<int>(roles.rollouts.size()); ++rollout)
      for (int actor = 0; actor < actors_; ++actor) {
        const bool takes = rollout == rollout_, sends = actor == actor_;
        if (takes == sends) continue;  // not ours, or both ends are this rank
        peers_.emplace_back(sends ? rollout : actor, sends,
                            sends ? rollout_name(rollout) : actor_name(actor));
      }
  }

  static std::size_t place(int index) { return static_cast<std::size_t>(index); }
  const PartLayout& layout(int actor) const { return layouts_[place(actor)]; }
  int rank_of(const WeightPeer& peer) const {
    return (peer.takes ? roles_.rollouts : roles_.actors)[place(peer.index)];
  }
  std::string actor_name(int actor) const { return rank_name(roles_, roles_.actors[place(actor)]); }
  std::string rollout_name(int rollout) const { return rank_name(roles_, roles_.rollouts[place(rollout)]); }

  /// Lets a peer in, by channels that `connect` makes: what comes from an actor is listened to from now on, a
  /// rollout is served. Throws Error for a rollout whose incarnation is not newer than the one before.
  template <class Connect>
  void join(WeightPeer& peer, int incarnation, Connect connect) {
    const bool again = peer.channel != nullptr;
    const auto make = [&] { return std::make_unique<WeightStreams>(connect()); };
    connect_peer(peer, incarnation, make, [&] {
      if (again) ++report_.rejoined;
      peer.last = peer.sending = no_version;
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
  const WeightPeer* lagging_rollout() const {
    const WeightSlot& target = slots_.target(actor_);
    if (target.state != WeightSlot::State::ready) return nullptr;
    for (const WeightPeer& peer : peers_) {
      if (!peer.takes || !peer.live() || peer.lost()) continue;
      const bool waits = peer.last != no_version && peer.last < target.version;
      if (waits || peer.sending == target.version) return &peer;
    }
    return nullptr;
  }
  /// An actor that is lost, or has ended, and sent nothing that can make `version` or a later one whole.
  const WeightPeer* unavailable_actor(bool lost, std::int64_t version) const {
    for (const WeightPeer& peer : peers_)
      if (!peer.takes && (lost ? peer.lost() : peer.ended && !peer.lost()) &&
          !slots_.has_sent(peer.index, version))
        return &peer;
    return nullptr;
  }
  /// Somebody who is served or listened to, or null.
  const WeightPeer* live_peer() const {
    for (const WeightPeer& peer : peers_)
      if (peer.live()) return &peer;
    return nullptr;
  }

  const Roles roles_;
  const int actor_, rollout_, actors_;  // this rank's place among them, -1: not one of them; how many
  const std::chrono::nanoseconds deadline_;
  const std::vector<PartLayout> layouts_;  // by actor
  // What the lock guards:
  WeightSlots slots_;
  std::int64_t published_ = no_version, packing_ = no_version;
  bool finishing_ = false;
  WeightPlaneReport report_;

 private:
  /// Between versions an actor need not send anything: lanes that wait have deadlines of their own, and a
  /// peer that dies or stops closes the channel.
  static constexpr std::chrono::hours idle{1000};

  PlaneMessage message(const WeightPeer& peer, MessageKind kind, std::int64_t version) const {
    PlaneMessage message;
    message.kind = kind;
    message.actor = peer.takes ? actor_ : peer.index;
    message.rollout = peer.takes ? peer.index : rollout_;
    message.incarnation = peer.incarnation;
    message.batch = version;
    message.bytes = static_cast<std::int64_t>(layout(message.actor).bytes);
    message.fingerprint = layout(message.actor).identity;
    return message;
  }
  static WeightStreams& streams(const WeightPeer& peer) { return static_cast<WeightStreams&>(*peer.channel); }
  void say(const WeightPeer& peer, MessageKind kind, std::int64_t version, std::chrono::nanoseconds limit) {
    peer.channel->send(write_message(message(peer, kind, version)), limit);
  }

  // ---- An actor's side: a rollout that takes nothing for half the deadline is lost

  void serve(WeightPeer& peer) {
    const std::chrono::nanoseconds limit = deadline_ / 2;
    const auto leave = [this](WeightSlot* slot) {
      const std::scoped_lock lock(mutex_);
      --slot->readers;
      changed_.notify_all();
    };
    while (const auto slot = std::unique_ptr<WeightSlot, decltype(leave)>(next(peer), leave)) {
      say(peer, MessageKind::part, slot->version, limit);
      streams(peer).send_part(slot->bytes, limit);
      const std::scoped_lock lock(mutex_);
      peer.last = slot->version;
      peer.sending = no_version;
      ++report_.versions_sent;
      report_.bytes_sent += static_cast<std::int64_t>(slot->bytes.size());
    }
    say(peer, MessageKind::goodbye, peer.last, limit);
    MessageBytes accepted;  // without it, closing might overtake what was sent
    peer.channel->receive(accepted, deadline_);
  }
  /// Waits for what the rollout gets next, which is then being read. Null: there is no more. One that is new
  /// here begins with the newest version; after that it gets every one.
  WeightSlot* next(WeightPeer& peer) {
    std::unique_lock lock(mutex_);
    WeightSlot* slot = nullptr;
    changed_.wait(lock, [&] {
      slot = slots_.next(actor_, peer.last, peer.last != no_version);
      return closed_ || peer.lost() || slot || finishing_;
    });
    if (closed_ || peer.lost()) throw PeerError("it was given up while there was nothing to send");
    peer.sending = slot ? slot->version : no_version;
    if (slot) ++slot->readers;
    return slot;
  }

  // ---- A rollout's side

  void listen(WeightPeer& peer) {
    for (;;) {
      MessageBytes bytes;
      peer.channel->receive(bytes, idle);
      PlaneMessage next;
      const Refusal why = read_message(bytes, next)
                              ? check_weights(next, message(peer, MessageKind::part, peer.last))
                              : Refusal::malformed;
      if (why != Refusal::none)
        throw Error(concat("control plane: a message from ", peer.name, " after version ", peer.last,
                           " was refused: ", refusal_name(why),
                           "; trainer and sampler must have the same program, model and settings"));
      if (next.kind == MessageKind::goodbye) break;
      take_version(peer, next.batch);
      peer.last = next.batch;
    }
    say(peer, MessageKind::accepted, peer.last, deadline_);
  }
  void take_version(WeightPeer& peer, std::int64_t version) {
    WeightSlot& slot = claim(peer, version);
    try {
      if (!streams(peer).receive_part(slot.bytes, deadline_))
        throw Error(concat("control plane: version ", version, " from ", peer.name,
                           " does not match its checksum: it is torn or damaged; nobody may write to "
                           "published weights"));
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
  WeightSlot& claim(const WeightPeer& from, std::int64_t version) {
    std::unique_lock lock(mutex_);
    slots_.announce(from.index, version);
    changed_.notify_all();
    const bool free = wait_until(lock, deadline_after(deadline_), [&] { return slots_.free(from.index); });
    throw_if_closed();
    if (!free)
      throw DeadlineError(concat("control plane: version ", version, " of ", from.name, " waited ",
                                 seconds_text(deadline_), " at ", name_, " for ",
                                 actor_name(slots_.last_actor()), " to come beyond version ",
                                 slots_.newest(slots_.last_actor()), "; is it stuck?"));
    return slots_.take(from.index, version);
  }
};

}  // namespace detail
}  // namespace dvla
