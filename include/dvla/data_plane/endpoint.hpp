// What both ends of the data plane between processes have in common: this rank's routes and buffers, the
// ranks at the other ends of those routes with a channel and a thread each, and the sentences of waits that
// run out. A rollout's end is batch_sender.hpp, an actor's resource_queue.hpp. Knows blocks and strips of
// memory, not what the fields in them mean: routed.hpp does.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/data_plane/in_process.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/wire.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla {

struct RoutedOptions {
  int buffers = 2;               ///< on either side; the schedule's staleness + 1
  std::int64_t first_batch = 0;  ///< of a resumed run
  std::int64_t incarnation =
      0;  ///< the same for all at the start of a job; a restarted rollout takes the next
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
  double back_pressure_s = 0;  ///< that produce waited for a buffer
  std::array<std::int64_t, static_cast<std::size_t>(Refusal::count_)> refused{};  ///< messages, by reason
  std::vector<SenderReport> senders;                                              ///< of this actor
};

namespace detail {

/// Of the wait for a peer's next message, or for room for it. A peer may rightly be busy for long, and one
/// that is gone is found by the heartbeat, which closes the channel; the lanes' own calls have the run's
/// deadline.
inline constexpr std::chrono::nanoseconds between_messages = std::chrono::hours(24);

inline std::string batch_text(std::int64_t batch) { return "batch " + std::to_string(batch); }
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

/// A part of `bytes` in chunks, in order: `make` fills one, seal included, while `use` is at the one before
/// it, so that memory is read or written while the channel carries. Both run in one thread at a time.
/// `staging`: room for the part, or for two chunks.
template <class Make, class Use>
void in_chunks(std::size_t bytes, std::byte* staging, Make make, Use use) {
  const std::size_t count = (bytes + chunk_bytes - 1) / chunk_bytes;
  const auto chunk = [&](std::size_t i) {
    return std::span(staging + i % 2 * (chunk_bytes + seal_bytes),
                     std::min(chunk_bytes, bytes - i * chunk_bytes) + seal_bytes);
  };
  if (count > 0) make(chunk(0));
  for (std::size_t i = 0; i < count; ++i) {
    std::future<void> next;
    if (i + 1 < count) next = std::async(std::launch::async, [&] { make(chunk(i + 1)); });
    use(chunk(i));
    if (next.valid()) next.get();
  }
}

/// What a rank is in one of its two roles.
struct EndpointSettings {
  RoutedOptions options;
  int index = 0;                        ///< which rollout, or which actor
  std::string name;                     ///< "rank 3 (actor 0)"
  std::vector<std::string> peer_names;  ///< of all actors, or of all rollouts
  std::vector<Route> routes;            ///< of the plan's those that begin, or end, here
  std::vector<Strips> strips;           ///< strips[i]: where routes[i] lies in a buffer
  std::size_t buffer_bytes = 0;
  std::int64_t group_episodes = 1;
  std::uint64_t fingerprint = 0;  ///< of plan and layout
};

/// The rank at the other end of some routes.
struct Peer {
  Peer(int index_, std::string name_, std::size_t staging_bytes, std::pmr::memory_resource& pool)
      : index(index_), name(std::move(name_)), staging(staging_bytes, pool) {}
  const int index;  ///< which actor, or which rollout
  const std::string name;
  PoolBytes staging;                 ///< for a part's chunks on their way
  std::unique_ptr<Channel> channel;  ///< null: it is this rank itself
  std::string why_gone;              ///< empty: it is not
  bool ended = false;                ///< its thread is at its end
  std::thread thread;
};

/// `PeerType` derives from Peer. Derived classes call stop() in their destructors.
template <class PeerType>
class Endpoint {
 public:
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  const EndpointSettings& settings() const { return settings_; }
  /// The peer of that number; null: no route leads there, or comes from there.
  PeerType* find(int index) {
    for (PeerType& peer : peers_)
      if (peer.index == index) return &peer;
    return nullptr;
  }

  /// Ends every wait, here and at the other ends of the channels. What is here stays counted as in flight.
  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    for (PeerType& peer : peers_)
      if (peer.channel) peer.channel->close();
    changed_.notify_all();
  }

 protected:
  /// `other_end`: of a route, the end that this rank is not.
  Endpoint(EndpointSettings settings, int Route::*other_end, std::pmr::memory_resource& pool)
      : settings_(std::move(settings)),
        buffers_memory_(static_cast<std::size_t>(settings_.options.buffers) * settings_.buffer_bytes, pool) {
    std::size_t staging = 0;
    for (const Strips& strips : settings_.strips) staging = std::max(staging, strips_bytes(strips));
    staging = staging <= chunk_bytes ? staging + seal_bytes : 2 * (chunk_bytes + seal_bytes);
    for (const Route& route : settings_.routes) {
      const int index = route.*other_end;
      PeerType* peer = find(index);
      if (!peer)
        peer = &peers_.emplace_back(index, settings_.peer_names[static_cast<std::size_t>(index)],
                                    route.local ? 0 : staging, pool);
      peer_of_.push_back(peer);
    }
  }
  ~Endpoint() = default;
  void stop() {
    close();
    for (PeerType& peer : peers_)
      if (peer.thread.joinable()) peer.thread.join();
  }

  std::byte* buffer_memory(std::size_t buffer) {
    return buffers_memory_.data() + buffer * settings_.buffer_bytes;
  }
  std::int64_t episodes(std::size_t route) const {
    return settings_.routes[route].groups * settings_.group_episodes;
  }
  /// What crosses for a route: the plan counts the padding of a record of its own besides.
  std::int64_t bytes(std::size_t route) const {
    return static_cast<std::int64_t>(strips_bytes(settings_.strips[route]));
  }

  /// False: `ready` did not hold until then, and nobody has closed this end.
  template <class Ready>
  bool wait_until(std::unique_lock<std::mutex>& lock, std::chrono::steady_clock::time_point until,
                  Ready ready) {
    return changed_.wait_until(lock, until, [&] { return closed_ || ready(); });
  }
  std::string sentence(const std::string& what) const { return "data plane: " + settings_.name + " " + what; }
  [[noreturn]] void ran_out(std::chrono::nanoseconds limit, const std::string& what) const {
    throw DeadlineError(sentence("waited " + seconds_text(limit) + " " + what));
  }
  void throw_if_closed() const {
    if (closed_) throw Error(sentence("was closed"));
  }

  const EndpointSettings settings_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::deque<PeerType> peers_;      // where they are they stay
  std::vector<PeerType*> peer_of_;  // by route
  RoutedReport report_;

 private:
  PoolBytes buffers_memory_;
};

}  // namespace detail
}  // namespace dvla
