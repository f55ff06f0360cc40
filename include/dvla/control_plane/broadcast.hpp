// The control plane between processes: every actor sends its own part of the trainable weights, in the
// precision that the model computes in, to every rollout, in the background, over channels of the pair. Paper: control plane on the CPU, contiguous host
// buffers, sharded parameters broadcast in parallel, swapped at a chunk boundary. Torch-free: over LibTorch's
// Gloo by placement/c10d.hpp, over threads by testing/thread_cluster.hpp. Knows bytes only: packing is the
// sharding's, and which of the sampler's copies takes the weights is front_back.hpp's business.
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
#include "dvla/control_plane/weight_board.hpp"
#include "dvla/control_plane/weight_receivers.hpp"
#include "dvla/control_plane/weight_senders.hpp"
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
  /// values. `bytes`: of all trainable weights; `parts`: of each actor; none: equal shares. `incarnation`: the same number for all at the start
  /// of a job; a rollout that joins later gives its own, and the actors call rejoin. `cluster` and `pool` must outlive this. Throws
  /// ConfigError for parts that do not cover the weights, DeadlineError for a rank that does not come.
  BroadcastWeightPlane(std::size_t bytes, std::vector<WeightPart> parts, const GlooKnobs& knobs,
                       Cluster& cluster, const Roles& roles, int incarnation,
                       std::chrono::nanoseconds deadline, std::pmr::memory_resource& pool)
      : cluster_(cluster),
        bytes_(bytes),
        streams_(knobs.streams),
        board_(roles, cluster.rank(), incarnation, deadline, layouts(bytes, std::move(parts), roles, knobs),
               pool),
        senders_(board_),
        receivers_(board_) {
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
    return board_.layout(board_.actor).part;
  }
  /// On a rollout the newest version that is whole here, on an actor only the newest published; -1: none.
  std::int64_t latest() const {
    const std::scoped_lock lock(board_.mutex);
    return board_.rollout >= 0 ? board_.slots.newest_whole() : board_.published;
  }

  /// Distribution lane: where to pack this actor's part of `version`. Waits until no rollout needs what is in
  /// that buffer. Throws Error for a version that is not newer, DeadlineError naming who is slow, PeerError
  /// when another actor is lost without which this rank's own sampler cannot go on.
  std::span<std::byte> begin(std::int64_t version) {
    check_actor();
    std::unique_lock lock(board_.mutex);
    WeightSlots& slots = board_.slots;
    if (version <= board_.published) {
      throw Error("control plane: version " + std::to_string(version) + " cannot follow version " +
                  std::to_string(board_.published) + "; versions strictly increase");
    }
    if (board_.finishing)
      throw Error("control plane: version " + std::to_string(version) + " comes after finish(); " +
                  board_.me + " has said that there are no more");
    if (board_.packing != none) slots.abandon(board_.actor);
    board_.packing = none;
    slots.announce(board_.actor, version);
    board_.changed.notify_all();
    const bool answered = board_.changed.wait_until(lock, detail::deadline_after(board_.deadline), [&] {
      return board_.closed || stuck() || (slots.free(board_.actor) && senders_.behind() < 0);
    });
    if (board_.closed)
      throw Error("control plane: closed; version " + std::to_string(version) + " cannot be packed");
    if (!answered || stuck()) explain_packing(version);
    board_.packing = version;
    return slots.take(board_.actor, version).bytes;
  }

  /// Distribution lane: what begin gave is complete, and on its way.
  void publish(std::int64_t version) {
    check_actor();
    if (version != board_.packing) {
      throw Error("control plane: publish(" + std::to_string(version) + ") without begin(" +
                  std::to_string(version) + "); pack a version before it is published");
    }
    {
      const std::scoped_lock lock(board_.mutex);
      board_.slots.ready(board_.actor);
      board_.published = version;
      board_.packing = none;
      ++board_.report.published;
    }
    board_.changed.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is whole. Throws as receive does.
  void await(std::int64_t at_least, std::chrono::nanoseconds limit) {
    std::unique_lock lock(board_.mutex);
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
    std::unique_lock lock(board_.mutex);
    const std::int64_t version = await(lock, at_least, limit);
    WeightSlots& slots = board_.slots;
    slots.read(version, 1);
    lock.unlock();
    for (int actor = 0; actor < board_.actors; ++actor) {
      std::span<const std::byte> packed_part = packed(actor, version);
      for (const ByteRange& range : board_.layout(actor).part) {
        write_weights(destination, range.offset, packed_part.first(range.bytes));
        packed_part = packed_part.subspan(range.bytes);
      }
    }
    lock.lock();
    slots.read(version, -1);
    ++board_.report.installed;
    board_.report.installed_bytes += static_cast<std::int64_t>(bytes_);
    lock.unlock();
    board_.changed.notify_all();
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
    senders_.connect(rollout, std::move(channels), incarnation);
  }
  /// The same, making the channels, each within `limit` or the plane's deadline.
  void rejoin(int rollout, int incarnation,
              std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    senders_.check_newer(rollout, incarnation);
    rejoin(rollout, channels(rollout, board_.actor, incarnation, limit), incarnation);
  }

  /// Whoever watches over the ranks (heartbeats) has found this one dead or stopped: nothing waits for it any
  /// more. A rollout may rejoin; an actor does not.
  void lose(int rank) {
    {
      const std::scoped_lock lock(board_.mutex);
      senders_.lose(board_.roles.rollout(rank));
      receivers_.lose(board_.roles.actor(rank));
    }
    board_.changed.notify_all();
  }

  /// A clean end, on every rank, before it goes. An actor publishes no more: what it published is sent, then
  /// the word that it was the last, and the rollouts' answers are waited for. A rollout waits until all
  /// actors have ended. Nobody waits for the lost. Throws DeadlineError naming who was waited for.
  void finish(std::chrono::nanoseconds limit) {
    std::unique_lock lock(board_.mutex);
    board_.finishing = true;
    board_.changed.notify_all();
    if (board_.changed.wait_until(lock, detail::deadline_after(limit), [&] {
          return board_.closed || (senders_.live() < 0 && receivers_.live() < 0);
        }))
      return;
    const std::string whom =
        senders_.live() >= 0 ? board_.rollout_name(senders_.live()) : board_.actor_name(receivers_.live());
    throw DeadlineError("control plane: " + board_.me + " waited " + detail::seconds_text(limit) + " for " +
                        whom + " to end the weights; is it stuck?");
  }

  /// At once: wakes everyone who waits; they, and later calls, throw Error. To the peers this rank is lost.
  void close() {
    {
      const std::scoped_lock lock(board_.mutex);
      board_.closed = true;
      senders_.close();
      receivers_.close();
    }
    board_.changed.notify_all();
  }

  WeightPlaneReport report() const {
    const std::scoped_lock lock(board_.mutex);
    return board_.report;
  }

 private:
  using WeightSlots = detail::WeightSlots;
  static constexpr std::int64_t none = detail::WeightBoard::none;

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
    if (board_.actor < 0)
      throw Error("control plane: " + board_.me + " is no actor and has no weights to publish");
  }

  /// Every rank goes through its pairs in the same order, so nobody waits in a circle.
  void connect() {
    const Roles& roles = board_.roles;
    for (int rollout = 0; rollout < static_cast<int>(roles.rollouts.size()); ++rollout) {
      for (int actor = 0; actor < board_.actors; ++actor) {
        const bool takes = rollout == board_.rollout, sends = actor == board_.actor;
        if (takes == sends) continue;  // not ours, or both ends are this rank
        if (sends)
          senders_.connect(rollout, channels(rollout, actor, board_.incarnation), board_.incarnation);
        else
          receivers_.connect(actor, channels(rollout, actor, board_.incarnation));
      }
    }
  }
  /// As many as the actor's part is worth, from this rank, which is one of the two.
  std::vector<std::unique_ptr<Channel>> channels(
      int rollout, int actor, int incarnation,
      std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    const int peer = rollout == board_.rollout ? board_.roles.actors[detail::WeightBoard::place(actor)]
                                               : board_.roles.rollouts[detail::WeightBoard::place(rollout)];
    std::vector<std::unique_ptr<Channel>> all;
    const std::size_t count =
        detail::weight_streams(board_.layout(actor).bytes, static_cast<std::size_t>(streams_));
    while (all.size() < count)
      all.push_back(cluster_.channel(channel_name(rollout, actor, incarnation, static_cast<int>(all.size())),
                                     peer, std::min(limit, board_.deadline)));
    return all;
  }
  std::span<const std::byte> packed(int actor, std::int64_t version) {
    const std::scoped_lock lock(board_.mutex);
    return board_.slots.find(actor, version)->bytes;
  }

  // ---- With the board's lock held
  /// The newest whole version, once it is `at_least`.
  std::int64_t await(std::unique_lock<std::mutex>& lock, std::int64_t at_least,
                     std::chrono::nanoseconds limit) {
    if (board_.rollout < 0)
      throw Error("control plane: " + board_.me + " is no rollout and receives no weights");
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    WeightSlots& slots = board_.slots;
    board_.changed.wait_until(lock, detail::deadline_after(limit), [&] {
      return board_.closed || slots.newest_whole() >= wanted ||
             receivers_.without(detail::WeightPeer::lost, wanted) || ended_before(wanted);
    });
    if (board_.closed)
      throw Error("control plane: closed while reception waited for version " + std::to_string(wanted));
    const std::int64_t version = slots.newest_whole();
    if (version < wanted) explain(wanted, limit);
    return version;
  }
  /// Another actor is lost, so the version that this rank's reception holds on to will not be followed.
  detail::WeightReceivers::Gone stuck() const {
    if (board_.slots.free(board_.actor)) return {};
    return receivers_.without(detail::WeightPeer::lost, std::numeric_limits<std::int64_t>::max());
  }
  [[noreturn]] void explain_packing(std::int64_t version) const {
    const std::string who = "control plane: lane 'distribution' of " + board_.me + " waited ";
    const std::string what = "to pack version " + std::to_string(version);
    if (const auto gone = stuck())
      throw PeerError(who + what + " for " + board_.actor_name(gone.actor) + ", which is lost: " + gone.why);
    const detail::WeightSlot& target = board_.slots.target(board_.actor);
    std::string whom = "the lane 'reception' of this rank to leave version " + std::to_string(target.version);
    if (senders_.behind() >= 0)
      whom = board_.rollout_name(senders_.behind()) + " to take version " + std::to_string(target.version);
    else if (target.readers == 0)
      whom = board_.actor_name(board_.slots.last_actor()) + " to come beyond version " +
             std::to_string(board_.slots.newest(board_.slots.last_actor()));
    throw DeadlineError(who + detail::seconds_text(board_.deadline) + " " + what + " for " + whom +
                        "; is it stuck?");
  }
  bool ended_before(std::int64_t version) const {
    return receivers_.without(detail::WeightPeer::ended, version) ||
           (board_.finishing && board_.actor >= 0 && board_.published < version);
  }
  [[noreturn]] void explain(std::int64_t wanted, std::chrono::nanoseconds limit) const {
    const std::string who = "control plane: lane 'reception' of " + board_.me + " waited ";
    const std::string what = "for version " + std::to_string(wanted);
    if (const auto gone = receivers_.without(detail::WeightPeer::lost, wanted))
      throw PeerError(who + what + " from lane 'distribution' of " + board_.actor_name(gone.actor) +
                      ", which is lost: " + gone.why);
    if (ended_before(wanted))
      throw EndOfWeights(who + what + ", but the actors have ended; the last whole version is " +
                         std::to_string(board_.slots.newest_whole()));
    const int last = board_.slots.last_actor();
    throw DeadlineError(who + detail::seconds_text(limit) + " " + what + " from lane 'distribution' of " +
                        board_.actor_name(last) + "; the newest from there is " +
                        std::to_string(board_.slots.newest(last)) + "; is the training lane behind?");
  }

  Cluster& cluster_;
  const std::size_t bytes_;
  const int streams_;
  detail::WeightBoard board_;
  detail::WeightSenders senders_;
  detail::WeightReceivers receivers_;
};

template <class Pipeline>
struct machinery<Gloo, Pipeline> {
  using type = BroadcastWeightPlane;
};

}  // namespace dvla
