// What both ends of the data plane between processes have in common beyond the ranks at the other ends of
// their routes (placement/peers.hpp): this rank's routes and buffers. A rollout's end is batch_sender.hpp, an
// actor's resource_queue.hpp. Knows blocks and strips of memory, not what the fields in them mean: routed.hpp
// does.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <iterator>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/data_plane/in_process.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/wire.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/peers.hpp"

namespace dvla {

struct RoutedOptions {
  int buffers = 2;               ///< on either side; the schedule's staleness + 1
  std::int64_t first_batch = 0;  ///< of a resumed run
  /// The same for all at the start of a job; a restarted rollout takes the next.
  std::int64_t incarnation = 0;
  std::chrono::nanoseconds deadline = std::chrono::minutes(2);
};

/// How an actor sees a rollout that sends to it.
struct SenderReport {
  int rollout = 0;
  std::int64_t incarnation = 0;
  bool present = true;        ///< false: lost, or it has said goodbye
  std::int64_t received = 0;  ///< episodes, over all incarnations
  /// Of received: from lives that ended without a goodbye, or before the present one. What those have sent,
  /// nobody else can say.
  std::int64_t unreported = 0;
  std::string why;  ///< it is not present
};

/// Of this rank, in episodes unless said otherwise. What a rank is not, stays 0. in_flight: arrived here and
/// not trained yet. payload_bytes_copied: received, and moved from this rank's rollout to its actor.
struct RoutedReport : DataPlaneReport {
  std::int64_t acknowledged = 0;    ///< of sent: taken by their actors
  std::int64_t unacknowledged = 0;  ///< of sent: neither taken nor refused, yet
  std::int64_t received = 0;        ///< by this actor, from its own rank too
  std::int64_t lost = 0;            ///< columns of trained batches whose rollout was gone
  std::int64_t bytes_sent = 0, bytes_received = 0;
  std::array<std::int64_t, static_cast<std::size_t>(Refusal::count_)> refused{};  ///< messages, by reason
  std::vector<SenderReport> senders;                                              ///< of this actor
};

namespace detail {

/// Of the wait for a peer's next message, or for room for it. A peer may rightly be busy for long, and one
/// that is gone is found by the heartbeat, which closes the channel; the lanes' own calls have the run's
/// deadline.
inline constexpr std::chrono::nanoseconds between_messages = std::chrono::hours(24);

inline void append(std::string& list, const std::string& item, const char* between = ", ") {
  list += (list.empty() ? "" : between) + item;
}

/// Memory of a pool, on 64-byte lines.
class PoolBytes {
 public:
  PoolBytes(std::size_t bytes, std::pmr::memory_resource& pool)
      : lines_((bytes + record_alignment - 1) / record_alignment, &pool) {}
  std::byte* data() { return reinterpret_cast<std::byte*>(lines_.data()); }

 private:
  struct alignas(record_alignment) Line {
    std::byte bytes[record_alignment];
  };
  std::pmr::vector<Line> lines_;
};

/// What is sent at a time of a part. Large enough that the rendezvous of a message costs little, small enough
/// to be still in a cache when it is checked or scattered.
inline constexpr std::size_t piece_bytes = std::size_t{4} << 20;

/// A part of `bytes` in pieces, in order: `make` fills one while `use` is at the one before, so that memory is
/// read or written while the channel carries. `staging`: room for the part, or for two pieces.
template <class Make, class Use>
void in_pieces(std::size_t bytes, std::byte* staging, Make make, Use use) {
  const auto piece = [&](std::size_t at) {
    return std::span(staging + at / piece_bytes % 2 * piece_bytes, std::min(piece_bytes, bytes - at));
  };
  if (bytes > 0) make(piece(0));
  for (std::size_t at = 0; at < bytes; at += piece_bytes) {
    std::future<void> next;
    if (bytes - at > piece_bytes)
      next = std::async(std::launch::async, [&] { make(piece(at + piece_bytes)); });
    use(piece(at));
    if (next.valid()) next.get();
  }
}

/// What an endpoint is made from.
struct RoutedJob {
  const RoutingPlan& plan;
  const Roles& roles;
  int rank;  ///< this one
  const RoutedOptions& options;
  std::pmr::memory_resource& pool;
};

/// The rank at the other end of some routes.
struct RoutedPeer : Peer {
  RoutedPeer(int index_, bool local_, std::string name_, std::size_t staging_bytes,
             std::pmr::memory_resource& pool)
      : Peer(index_, std::move(name_)), local(local_), staging(local_ ? 0 : staging_bytes, pool) {}
  const bool local;   ///< it is this rank itself, and needs no channel
  PoolBytes staging;  ///< for a part's pieces on their way
};

/// `PeerType` derives from RoutedPeer. Derived classes call stop() in their destructors. What is here when it
/// is closed stays counted as in flight.
template <class PeerType>
class Endpoint : public Peers<PeerType> {
 public:
  /// Whether anything goes to, or comes from, that actor or rollout over a channel.
  bool reaches(int index) const {
    return std::any_of(peers_.begin(), peers_.end(),
                       [&](const PeerType& peer) { return peer.index == index && !peer.local; });
  }

 protected:
  using Peers<PeerType>::peers_;

  /// `layout`: of this rank's share of a batch, in the role in which it `sends` or receives.
  template <Record Layout>
  Endpoint(const Layout& layout, const RoutedJob& job, bool sends)
      : Peers<PeerType>("data plane", rank_name(job.roles, job.rank)),
        options_(job.options),
        index_(sends ? job.roles.rollout(job.rank) : job.roles.actor(job.rank)),
        group_episodes_(job.plan.group_episodes),
        buffer_bytes_(record_bytes(layout)),
        memory_(static_cast<std::size_t>(options_.buffers) * buffer_bytes_, job.pool) {
    Checksum sum;
    const std::string plan = serialise(job.plan);
    sum.update(std::as_bytes(std::span(plan)));
    fingerprint_layout(layout, sum);
    fingerprint_ = sum.value();
    const std::int64_t columns = sends ? job.plan.episodes_from(index_) : job.plan.episodes_to(index_);
    std::size_t staging = 0;
    for (const Route& route : job.plan.routes) {
      if ((sends ? route.rollout : route.actor) != index_) continue;
      const std::int64_t first = sends ? route.first_group * group_episodes_ : route.first_episode;
      routes_.push_back(route);
      strips_.push_back(column_strips(layout, columns, first, route.groups * group_episodes_));
      staging = std::max(staging, bytes_in(strips_.back()));
    }
    staging = std::min(staging, 2 * piece_bytes);
    const std::vector<int>& ranks = sends ? job.roles.actors : job.roles.rollouts;
    for (const Route& route : routes_) {
      const int other = sends ? route.actor : route.rollout;
      auto peer = std::find_if(peers_.begin(), peers_.end(),
                               [&](const PeerType& each) { return each.index == other; });
      if (peer == peers_.end()) {
        const int rank = ranks[static_cast<std::size_t>(other)];
        peers_.emplace_back(other, rank == job.rank, rank_name(job.roles, rank), staging, job.pool);
        peer = std::prev(peers_.end());
      }
      peer_of_.push_back(&*peer);
    }
  }
  ~Endpoint() = default;

  /// One that `reaches` has named.
  PeerType& reached(int index) {
    for (PeerType& peer : peers_)
      if (peer.index == index && !peer.local) return peer;
    this->refuse("has no route to or from number ", index, " over a channel; see the routing plan");
  }
  std::byte* memory_of(std::size_t buffer) { return memory_.data() + buffer * buffer_bytes_; }
  std::int64_t episodes(std::size_t route) const { return routes_[route].groups * group_episodes_; }
  /// What crosses for a route: the plan counts the padding of a record of its own besides.
  std::int64_t bytes(std::size_t route) const { return static_cast<std::int64_t>(bytes_in(strips_[route])); }

  const RoutedOptions options_;
  const int index_;  // which rollout, or which actor, this rank is
  const std::int64_t group_episodes_;
  std::uint64_t fingerprint_ = 0;   // of plan and layout
  std::vector<Route> routes_;       // of the plan's those that begin, or end, here
  std::vector<Strips> strips_;      // by route: where it lies in a buffer
  std::vector<PeerType*> peer_of_;  // by route
  RoutedReport report_;

 private:
  const std::size_t buffer_bytes_;
  PoolBytes memory_;
};

}  // namespace detail
}  // namespace dvla
