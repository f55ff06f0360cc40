// A channel: bytes between two ranks, in order, and the word for a peer that is gone. What both planes
// between processes are written against, so that they need no torch and are tested with threads. Design:
// "Every wait has a deadline"; "groups between a rollout and an actor are made per incarnation, so that one
// death breaks no other's". Implementations: Gloo by LibTorch (placement/c10d.hpp), threads of one process
// (testing/thread_cluster.hpp). Knows no messages: what the bytes mean is a plane's business.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

/// The other end is gone: killed, stopped for longer than two heartbeats, or it closed the channel. The text
/// names it. A channel that has thrown this, or DeadlineError, is finished.
class PeerError : public Error {
 public:
  using Error::Error;
};

/// One thread may send while another receives; each direction by one thread at a time. Destroying a channel
/// closes it.
class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  virtual ~Channel() = default;

  /// Returns when `bytes` may be changed again, which may be only once the peer receives: two ends that both
  /// send first and receive then wait for each other until the limit. A send matches one receive of the same
  /// size. Empty spans send nothing. Throws PeerError, or DeadlineError after `limit`.
  virtual void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) = 0;
  /// Fills `bytes` from one send of the same size. Throws as send does.
  virtual void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) = 0;
  /// Ends it from any thread, at once: calls under way here and at the other end, and all later ones, throw
  /// PeerError. May overtake what was sent and not yet received: ends that part in peace say so first.
  virtual void close() noexcept = 0;
  /// For messages: "rank 3".
  virtual const std::string& peer() const = 0;
};

namespace detail {

/// A wait of this rank that ran out. `what`: "for rank 3 to ...".
template <class... What>
DeadlineError waited(int rank, std::chrono::nanoseconds limit, const What&... what) {
  return DeadlineError("rank ", rank, " waited ", seconds_text(limit), " ", what...);
}

/// The sentences of a channel, alike in every implementation. `action`: "send 12 bytes".
inline DeadlineError channel_deadline(const std::string& name, int rank, const std::string& peer,
                                      const std::string& action, std::chrono::nanoseconds limit) {
  return waited(rank, limit, "for ", peer, " to ", action, " (channel '", name, "')");
}
inline PeerError channel_broken(const std::string& name, int rank, const std::string& peer,
                                const std::string& why) {
  return PeerError("rank ", rank, " lost ", peer, ": ", why, " (channel '", name, "')");
}

}  // namespace detail

}  // namespace dvla
