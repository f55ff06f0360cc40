// How one version of a part crosses the channels of a pair: a frame (weight_frame.hpp), the part in pieces,
// then a checksum, made at both ends while a piece is in the cache (sent with a checksum made before, a GiB
// takes half as long again). Large parts go over several channels, *streams*, a thread each: while one waits
// for the peer or makes a checksum, another moves bytes. One version at a time per object.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_frame.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

/// Streams that this many bytes are worth, of `most`: a thread more pays from some MiB on.
inline std::size_t weight_streams(std::size_t bytes, std::size_t most) {
  return std::clamp<std::size_t>(bytes >> 22, 1, most);
}
/// Weights are sent, received and checked so many bytes at a time: few waits for the peer where nothing goes
/// on meanwhile, else what a core's own cache holds.
inline std::size_t weight_piece(std::size_t streams) { return std::size_t{streams == 1 ? 4U : 1U} << 20; }

/// Sends or receives a part.
class WeightWire {
 public:
  /// One channel or more, the same number at both ends; `limit`: of each piece.
  WeightWire(std::vector<std::unique_ptr<Channel>> channels, std::chrono::nanoseconds limit) : limit_(limit) {
    for (auto& channel : channels) streams_.push_back(std::move(channel));
  }

  /// The channel of whatever is not weights.
  Channel& channel() { return *streams_.front(); }
  /// Ends all channels, from any thread.
  void close() noexcept {
    for (const auto& channel : streams_) channel->close();
  }

  /// Returns the checksum of what went.
  std::uint64_t send(std::span<const std::byte> part) {
    return carry(part, [&](Channel& channel, std::span<const std::byte> piece, Checksum& sum) {
      sum.update(piece);
      channel.send(piece, limit_);
    });
  }
  /// The same for what came.
  std::uint64_t receive(std::span<std::byte> part) {
    return carry(part, [&](Channel& channel, std::span<std::byte> piece, Checksum& sum) {
      channel.receive(piece, limit_);
      sum.update(piece);
    });
  }

  void send_sum(std::uint64_t sum) { channel().send(std::as_bytes(std::span(&sum, 1)), limit_); }
  std::uint64_t receive_sum() {
    std::uint64_t sum = 0;
    channel().receive(std::as_writable_bytes(std::span(&sum, 1)), limit_);
    return sum;
  }

 private:
  /// Pieces are dealt to the streams in turn. Returns the checksum of the only stream, or of the checksums of
  /// all. One that fails closes the others, so that nobody waits; what it threw is thrown.
  template <class Byte, class Move>
  std::uint64_t carry(std::span<Byte> part, Move move) {
    const std::size_t count = weight_streams(part.size(), streams_.size()), size = weight_piece(count);
    std::mutex mutex;
    std::exception_ptr first;
    const auto run = [&](std::size_t which) {
      Checksum sum;
      try {
        for (std::size_t at = which * size; at < part.size(); at += count * size)
          move(*streams_[which], part.subspan(at, std::min(size, part.size() - at)), sum);
      } catch (...) {
        const std::scoped_lock lock(mutex);
        if (!first) first = std::current_exception();
        if (count > 1) close();
      }
      return sum.value();
    };
    std::vector<std::future<std::uint64_t>> others;
    for (std::size_t which = 1; which < count; ++which)
      others.push_back(std::async(std::launch::async, run, which));
    const std::uint64_t own = run(0);
    Checksum all;
    all.update(std::as_bytes(std::span(&own, 1)));
    for (auto& other : others) {
      const std::uint64_t sum = other.get();
      all.update(std::as_bytes(std::span(&sum, 1)));
    }
    if (first) std::rethrow_exception(first);
    return count == 1 ? own : all.value();
  }

  const std::chrono::nanoseconds limit_;
  std::vector<std::unique_ptr<Channel>> streams_;
};

/// One actor's part, and what follows from it.
struct PartLayout {
  explicit PartLayout(WeightPart of)
      : part(std::move(of)), bytes(bytes_in(part)), identity(checksum(std::as_bytes(std::span(part)))) {}
  WeightPart part;
  std::size_t bytes;
  std::uint64_t identity;  ///< both ends must agree about it
};

}  // namespace dvla::detail
