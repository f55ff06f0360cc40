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

namespace dvla {

/// The other end is gone: killed, stopped for longer than two heartbeats, or it closed the channel. The text
/// names it. A channel that has thrown this, or DeadlineError, is finished.
class PeerError : public Error {
 public:
  using Error::Error;
};

/// One thread may send while another receives; each direction by one thread at a time.
class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  virtual ~Channel() = default;

  /// Returns when `bytes` may be changed again. A send matches one receive of the same size. Empty spans send
  /// nothing. Throws PeerError, or DeadlineError after `limit`.
  virtual void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) = 0;
  /// Fills `bytes` from one send of the same size. Throws as send does.
  virtual void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) = 0;
  /// Ends it from any thread, at once: calls under way here and at the other end, and all later ones, throw
  /// PeerError.
  virtual void close() noexcept = 0;
  /// For messages: "rank 3".
  virtual const std::string& peer() const = 0;
};

}  // namespace dvla
