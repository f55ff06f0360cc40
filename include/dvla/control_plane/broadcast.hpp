// The control plane between processes: every actor sends its own part of the trainable weights, in the
// precision that the model computes in, to every rollout, in the background, over channels of the pair.
// Paper: control plane on the CPU, contiguous host buffers, sharded parameters broadcast in parallel, swapped
// at a chunk boundary. Torch-free: over LibTorch's Gloo by placement/c10d.hpp, over threads by
// testing/thread_cluster.hpp. Knows bytes only: packing is the sharding's, and which of the sampler's copies
// takes the weights is front_back.hpp's business.
//
// Actor: two buffers of its part, packed and sent by turns; one sender thread a rollout. Rollout: two
// versions of all parts, one receiver thread an actor; a version is visible once all its parts are there and
// proven. A rank that is both reads its own part where it was packed. Nothing is skipped between versions, so
// a slow rollout holds the distribution lane back (begin waits, at most `deadline`), and never fills memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
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
#include "dvla/control_plane/weight_links.hpp"
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

/// begin, publish: one distribution thread. receive: any number of reception threads. All others: any.
class BroadcastWeightPlane {
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
      : cluster_(cluster),
        bytes_(bytes),
        streams_(knobs.streams),
        links_(roles, cluster.rank(), incarnation, deadline, layouts(bytes, std::move(parts), roles, knobs),
               pool) {
    try {
      connect();
    } catch (...) {
      close();
      throw;
    }
  }
  ~BroadcastWeightPlane() { close(); }
  BroadcastWeightPlane(const BroadcastWeightPlane&) = delete;
  BroadcastWeightPlane& operator=(const BroadcastWeightPlane&) = delete;

  /// Of all weights, what receive fills.
  std::size_t bytes() const { return bytes_; }
  /// What an actor packs, in this order; what begin gives has its size.
  const WeightPart& part() const {
    check_actor();
    return links_.layout(links_.actor).part;
  }
  /// On a rollout the newest version that is whole here, on an actor only the newest published; -1: none.
  std::int64_t latest() const {
    const std::scoped_lock lock(links_.mutex);
    return links_.rollout >= 0 ? links_.slots.newest_whole() : links_.published;
  }

  /// Distribution lane: where to pack this actor's part of `version`. Waits until no rollout needs what is in
  /// that buffer. Throws Error for a version that is not newer, DeadlineError naming who is slow, PeerError
  /// when another actor is lost without which this rank's own sampler cannot go on.
  std::span<std::byte> begin(std::int64_t version) {
    check_actor();
    std::unique_lock lock(links_.mutex);
    WeightSlots& slots = links_.slots;
    if (version <= links_.published) {
      throw Error("control plane: version " + std::to_string(version) + " cannot follow version " +
                  std::to_string(links_.published) + "; versions strictly increase");
    }
    if (links_.finishing)
      throw Error("control plane: version " + std::to_string(version) + " comes after finish(); " +
                  links_.me + " has said that there are no more");
    if (links_.packing != none) slots.abandon(links_.actor);
    links_.packing = none;
    slots.announce(links_.actor, version);
    links_.changed.notify_all();
    const bool answered = links_.changed.wait_until(lock, detail::deadline_after(links_.deadline), [&] {
      return links_.closed || stuck() || (slots.free(links_.actor) && links_.behind() < 0);
    });
    if (links_.closed)
      throw Error("control plane: closed; version " + std::to_string(version) + " cannot be packed");
    if (!answered || stuck()) explain_packing(version);
    links_.packing = version;
    return slots.take(links_.actor, version).bytes;
  }

  /// Distribution lane: what begin gave is complete, and on its way.
  void publish(std::int64_t version) {
    check_actor();
    if (version != links_.packing) {
      throw Error("control plane: publish(" + std::to_string(version) + ") without begin(" +
                  std::to_string(version) + "); pack a version before it is published");
    }
    {
      const std::scoped_lock lock(links_.mutex);
      links_.slots.ready(links_.actor);
      links_.published = version;
      links_.packing = none;
      ++links_.report.published;
    }
    links_.changed.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is whole. Throws as receive does.
  void await(std::int64_t at_least, std::chrono::nanoseconds limit) {
    std::unique_lock lock(links_.mutex);
    await(lock, at_least, limit);
  }

  /// Reception lane: as await; then lays the newest whole version out in `destination`, a model's units, and
  /// returns its number. Throws DeadlineError after `limit`, EndOfWeights when the actors have ended without
  /// it, PeerError when an actor that should send it is lost, Error after close().
  std::int64_t receive(std::span<const WeightUnit> destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    if (trainable_bytes(destination) != bytes_)
      throw Error("control plane: weights are " + std::to_string(bytes_) + " bytes and the destination " +
                  std::to_string(trainable_bytes(destination)) +
                  "; trainer and sampler must have the same model");
    std::unique_lock lock(links_.mutex);
    const std::int64_t version = await(lock, at_least, limit);
    WeightSlots& slots = links_.slots;
    slots.read(version, 1);
    lock.unlock();
    for (int actor = 0; actor < links_.actors; ++actor) {
      std::span<const std::byte> packed_part = packed(actor, version);
      for (const ByteRange& range : links_.layout(actor).part) {
        write_weights(destination, range.offset, packed_part.first(range.bytes));
        packed_part = packed_part.subspan(range.bytes);
      }
    }
    lock.lock();
    slots.read(version, -1);
    ++links_.report.installed;
    links_.report.installed_bytes += static_cast<std::int64_t>(bytes_);
    lock.unlock();
    links_.changed.notify_all();
    return version;
  }

  /// "weights/<rollout>/<actor>/<incarnation>", by place among the rollouts and the actors; streams after the
  /// first add "/<stream>".
  static std::string channel_name(int rollout, int actor, int incarnation, int stream = 0) {
    return "weights/" + std::to_string(rollout) + "/" + std::to_string(actor) + "/" +
           std::to_string(incarnation) + (stream > 0 ? "/" + std::to_string(stream) : "");
  }
  /// Actor: rollout `rollout` is there again, at the other ends of `channels`; it gets the newest version in
  /// full at once. Throws Error unless the incarnation is newer than the one before.
  void rejoin(int rollout, std::vector<std::unique_ptr<Channel>> channels, int incarnation) {
    links_.connect_rollout(rollout, std::move(channels), incarnation);
  }
  /// The same, making the channels, each within `limit` or the plane's deadline.
  void rejoin(int rollout, int incarnation,
              std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    links_.check_newer(rollout, incarnation);
    rejoin(rollout, channels(rollout, links_.actor, incarnation, limit), incarnation);
  }

  /// Whoever watches over the ranks (heartbeats) has found this one dead or stopped: nothing waits for it any
  /// more. A rollout may rejoin; an actor does not.
  void lose(int rank) {
    const std::scoped_lock lock(links_.mutex);
    links_.lose(rank);
  }

  /// A clean end, on every rank, before it goes. An actor publishes no more: what it published is sent, then
  /// the word that it was the last, and the rollouts' answers are waited for. A rollout waits until all
  /// actors have ended. Nobody waits for the lost. Throws DeadlineError naming who was waited for.
  void finish(std::chrono::nanoseconds limit) {
    std::unique_lock lock(links_.mutex);
    links_.finishing = true;
    links_.changed.notify_all();
    if (!links_.changed.wait_until(lock, detail::deadline_after(limit),
                                   [&] { return links_.closed || links_.somebody().empty(); }))
      throw DeadlineError("control plane: " + links_.me + " waited " + detail::seconds_text(limit) + " for " +
                          links_.somebody() + " to end the weights; is it stuck?");
  }

  /// At once: wakes everyone who waits; they, and later calls, throw Error. To the peers this rank is lost.
  void close() {
    const std::scoped_lock lock(links_.mutex);
    links_.close();
    links_.changed.notify_all();
  }

  WeightPlaneReport report() const {
    const std::scoped_lock lock(links_.mutex);
    return links_.report;
  }

 private:
  using WeightLinks = detail::WeightLinks;
  using WeightSlots = detail::WeightSlots;
  static constexpr std::int64_t none = WeightLinks::none;

  static std::vector<detail::PartLayout> layouts(std::size_t bytes, std::vector<WeightPart> parts,
                                                 const Roles& roles, const GlooKnobs& knobs) {
    if (knobs.streams < 1 || knobs.streams > 64)
      throw ConfigError("control plane: streams is " + std::to_string(knobs.streams) +
                        "; it must be from 1 to 64");
    if (parts.empty()) parts = equal_parts(bytes, static_cast<int>(roles.actors.size()));
    check_weight_parts(bytes, parts, roles.actors.size());
    std::vector<detail::PartLayout> all;
    for (WeightPart& part : parts) all.emplace_back(std::move(part));
    return all;
  }
  void check_actor() const {
    if (links_.actor < 0)
      throw Error("control plane: " + links_.me + " is no actor and has no weights to publish");
  }

  /// Every rank goes through its pairs in the same order, so nobody waits in a circle.
  void connect() {
    const Roles& roles = links_.roles;
    for (int rollout = 0; rollout < static_cast<int>(roles.rollouts.size()); ++rollout) {
      for (int actor = 0; actor < links_.actors; ++actor) {
        const bool takes = rollout == links_.rollout, sends = actor == links_.actor;
        if (takes == sends) continue;  // not ours, or both ends are this rank
        if (sends)
          links_.connect_rollout(rollout, channels(rollout, actor, links_.incarnation), links_.incarnation);
        else
          links_.connect_actor(actor, channels(rollout, actor, links_.incarnation));
      }
    }
  }
  /// As many as the actor's part is worth, from this rank, which is one of the two.
  std::vector<std::unique_ptr<Channel>> channels(
      int rollout, int actor, int incarnation,
      std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    const int peer = rollout == links_.rollout ? links_.roles.actors[WeightLinks::place(actor)]
                                               : links_.roles.rollouts[WeightLinks::place(rollout)];
    std::vector<std::unique_ptr<Channel>> all;
    const std::size_t count =
        detail::weight_streams(links_.layout(actor).bytes, static_cast<std::size_t>(streams_));
    while (all.size() < count)
      all.push_back(cluster_.channel(channel_name(rollout, actor, incarnation, static_cast<int>(all.size())),
                                     peer, std::min(limit, links_.deadline)));
    return all;
  }
  std::span<const std::byte> packed(int actor, std::int64_t version) {
    const std::scoped_lock lock(links_.mutex);
    return links_.slots.find(actor, version)->bytes;
  }

  // ---- With the board's lock held
  /// The newest whole version, once it is `at_least`.
  std::int64_t await(std::unique_lock<std::mutex>& lock, std::int64_t at_least,
                     std::chrono::nanoseconds limit) {
    if (links_.rollout < 0)
      throw Error("control plane: " + links_.me + " is no rollout and receives no weights");
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    WeightSlots& slots = links_.slots;
    links_.changed.wait_until(lock, detail::deadline_after(limit), [&] {
      return links_.closed || slots.newest_whole() >= wanted ||
             links_.without(detail::WeightPeer::lost, wanted) || ended_before(wanted);
    });
    if (links_.closed)
      throw Error("control plane: closed while reception waited for version " + std::to_string(wanted));
    const std::int64_t version = slots.newest_whole();
    if (version < wanted) explain(wanted, limit);
    return version;
  }
  /// Another actor is lost, so the version that this rank's reception holds on to will not be followed.
  WeightLinks::Gone stuck() const {
    if (links_.slots.free(links_.actor)) return {};
    return links_.without(detail::WeightPeer::lost, std::numeric_limits<std::int64_t>::max());
  }
  [[noreturn]] void explain_packing(std::int64_t version) const {
    const std::string who = "control plane: lane 'distribution' of " + links_.me + " waited ";
    const std::string what = "to pack version " + std::to_string(version);
    if (const auto gone = stuck())
      throw PeerError(who + what + " for " + links_.actor_name(gone.actor) + ", which is lost: " + gone.why);
    const detail::WeightSlot& target = links_.slots.target(links_.actor);
    std::string whom = "the lane 'reception' of this rank to leave version " + std::to_string(target.version);
    if (links_.behind() >= 0)
      whom = links_.rollout_name(links_.behind()) + " to take version " + std::to_string(target.version);
    else if (target.readers == 0)
      whom = links_.actor_name(links_.slots.last_actor()) + " to come beyond version " +
             std::to_string(links_.slots.newest(links_.slots.last_actor()));
    throw DeadlineError(who + detail::seconds_text(links_.deadline) + " " + what + " for " + whom +
                        "; is it stuck?");
  }
  bool ended_before(std::int64_t version) const {
    return links_.without(detail::WeightPeer::ended, version) ||
           (links_.finishing && links_.actor >= 0 && links_.published < version);
  }
  [[noreturn]] void explain(std::int64_t wanted, std::chrono::nanoseconds limit) const {
    const std::string who = "control plane: lane 'reception' of " + links_.me + " waited ";
    const std::string what = "for version " + std::to_string(wanted);
    if (const auto gone = links_.without(detail::WeightPeer::lost, wanted))
      throw PeerError(who + what + " from lane 'distribution' of " + links_.actor_name(gone.actor) +
                      ", which is lost: " + gone.why);
    if (ended_before(wanted))
      throw EndOfWeights(who + what + ", but the actors have ended; the last whole version is " +
                         std::to_string(links_.slots.newest_whole()));
    const int last = links_.slots.last_actor();
    throw DeadlineError(who + detail::seconds_text(limit) + " " + what + " from lane 'distribution' of " +
                        links_.actor_name(last) + "; the newest from there is " +
                        std::to_string(links_.slots.newest(last)) + "; is the training lane behind?");
  }

  Cluster& cluster_;
  const std::size_t bytes_;
  const int streams_;
  detail::WeightLinks links_;
};

template <class Pipeline>
struct machinery<Gloo, Pipeline> {
  using type = BroadcastWeightPlane;
};

}  // namespace dvla
