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
class BroadcastWeightPlane : detail::WeightLinks {
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
      : WeightLinks(roles, cluster.rank(), deadline, layouts(bytes, std::move(parts), roles, knobs), pool),
        cluster_(cluster),
        bytes_(bytes),
        streams_(static_cast<std::size_t>(knobs.streams)) {
    try {
      for (detail::WeightPeer& peer : peers_)
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
      throw Error(detail::concat("control plane: version ", version, " cannot follow version ", published_,
                                 "; versions strictly increase"));
    if (finishing_)
      throw Error(detail::concat("control plane: version ", version, " comes after finish(); ", name_,
                                 " has said that there are no more"));
    if (packing_ != detail::no_version) slots_.abandon(actor_);
    packing_ = detail::no_version;
    slots_.announce(actor_, version);
    changed_.notify_all();
    const bool answered = wait_until(lock, detail::deadline_after(deadline_),
                                     [&] { return stuck() || (slots_.free(actor_) && !lagging_rollout()); });
    if (closed_) throw Error(detail::concat("control plane: closed; version ", version, " cannot be packed"));
    if (!answered || stuck()) explain_packing(version);
    packing_ = version;
    return slots_.take(actor_, version).bytes;
  }

  /// Distribution lane: what begin gave is complete, and on its way.
  void publish(std::int64_t version) {
    check_actor();
    if (version != packing_)
      throw Error(detail::concat("control plane: publish(", version, ") without begin(", version,
                                 "); pack a version before it is published"));
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
      throw Error("control plane: weights are " + std::to_string(bytes_) + " bytes and the destination " +
                  std::to_string(trainable_bytes(destination)) +
                  "; trainer and sampler must have the same model");
    std::unique_lock lock(mutex_);
    const std::int64_t version = await(lock, at_least, limit);
    slots_.read(version, 1);
    for (int actor = 0; actor < actors_; ++actor) {
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
    const detail::WeightPeer& peer = rollout_peer(rollout);
    rejoin(rollout, incarnation, [&] { return channels(peer, incarnation, std::min(limit, deadline_)); });
  }

  /// Whoever watches over the ranks (heartbeats) has found this one dead or stopped: nothing waits for it any
  /// more. A rollout may rejoin; an actor does not.
  void lose(int rank) {
    const std::scoped_lock lock(mutex_);
    for (detail::WeightPeer& peer : peers_)
      if (rank_of(peer) == rank) WeightLinks::lose(peer, "it was found dead or stopped");
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
  using WeightLinks::close;

  WeightPlaneReport report() const {
    const std::scoped_lock lock(mutex_);
    return report_;
  }

 private:
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
    if (actor_ < 0) throw Error("control plane: " + name_ + " is no actor and has no weights to publish");
  }
  detail::WeightPeer& rollout_peer(int rollout) {
    for (detail::WeightPeer& peer : peers_)
      if (peer.takes && peer.index == rollout) return peer;
    throw Error(detail::concat("control plane: ", name_, " sends no weights to rollout ", rollout));
  }
  /// As many as the actor's part is worth.
  Channels channels(const detail::WeightPeer& peer, int incarnation, std::chrono::nanoseconds limit) {
    const int rollout = peer.takes ? peer.index : rollout_, actor = peer.takes ? actor_ : peer.index;
    Channels all;
    while (all.size() < detail::weight_streams(layout(actor).bytes, streams_))
      all.push_back(
          cluster_.channel(channel_name(rollout, actor, incarnation, all.size()), rank_of(peer), limit));
    return all;
  }

  // ---- With the lock held

  /// The newest whole version, once it is `at_least`.
  std::int64_t await(std::unique_lock<std::mutex>& lock, std::int64_t at_least,
                     std::chrono::nanoseconds limit) {
    if (rollout_ < 0) throw Error("control plane: " + name_ + " is no rollout and receives no weights");
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    wait_until(lock, detail::deadline_after(limit), [&] {
      return slots_.newest_whole() >= wanted || unavailable_actor(true, wanted) || ended_before(wanted);
    });
    if (closed_)
      throw Error(detail::concat("control plane: closed while reception waited for version ", wanted));
    const std::int64_t version = slots_.newest_whole();
    if (version < wanted) explain(wanted, limit);
    return version;
  }
  /// Another actor is lost, so the version that this rank's reception holds on to will not be followed.
  const detail::WeightPeer* stuck() const {
    return slots_.free(actor_) ? nullptr : unavailable_actor(true, std::numeric_limits<std::int64_t>::max());
  }
  [[noreturn]] void explain_packing(std::int64_t version) const {
    const std::string who = "control plane: lane 'distribution' of " + name_ + " waited ";
    const std::string what = detail::concat("to pack version ", version, " for ");
    if (const auto* gone = stuck())
      throw PeerError(who + what + gone->name + ", which is lost: " + gone->why_gone);
    const detail::WeightSlot& target = slots_.target(actor_);
    const int last = slots_.last_actor();
    const std::string whom =
        lagging_rollout() ? detail::concat(lagging_rollout()->name, " to take version ", target.version)
        : target.readers == 0
            ? detail::concat(actor_name(last), " to come beyond version ", slots_.newest(last))
            : detail::concat("the lane 'reception' of this rank to leave version ", target.version);
    throw DeadlineError(who + detail::seconds_text(deadline_) + " " + what + whom + "; is it stuck?");
  }
  bool ended_before(std::int64_t version) const {
    return unavailable_actor(false, version) || (finishing_ && actor_ >= 0 && published_ < version);
  }
  [[noreturn]] void explain(std::int64_t wanted, std::chrono::nanoseconds limit) const {
    const std::string who = "control plane: lane 'reception' of " + name_ + " waited ";
    const std::string what = detail::concat("for version ", wanted);
    if (const auto* gone = unavailable_actor(true, wanted))
      throw PeerError(who + what + " from lane 'distribution' of " + gone->name +
                      ", which is lost: " + gone->why_gone);
    if (ended_before(wanted))
      throw EndOfWeights(detail::concat(who, what, ", but the actors have ended; the last whole version is ",
                                        slots_.newest_whole()));
    const int last = slots_.last_actor();
    throw DeadlineError(detail::concat(
        who, detail::seconds_text(limit), " ", what, " from lane 'distribution' of ", actor_name(last),
        "; the newest from there is ", slots_.newest(last), "; is the training lane behind?"));
  }

  Cluster& cluster_;
  const std::size_t bytes_, streams_;
};

template <class Pipeline>
struct machinery<Gloo, Pipeline> {
  using type = BroadcastWeightPlane;
};

}  // namespace dvla
