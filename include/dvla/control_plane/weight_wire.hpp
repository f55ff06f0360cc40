// How one version of a part crosses the channels of a pair: a frame, the part in pieces, then a checksum
// (XXH3-64, 8 bytes), made at both ends while a piece is in the cache (sent with a checksum made before, a GiB
// takes half as long again). The frame is what a rollout checks before it takes a byte of the weights:
// damaged, foreign, older or oversized ones are refused with one sentence. Large parts go over several
// channels, *streams*, a thread each: while one waits for the peer or makes a checksum, another moves bytes.
// Little endian, as every machine that this runs on.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla {

enum class FrameKind : std::int32_t { weights, end };

/// The 64 bytes before every set of weights on a channel between an actor and a rollout.
struct WeightFrame {
  static constexpr std::uint64_t expected_magic = 0x3357'5741'4c56'4444ULL;  // "DDVLAWW3", little endian
  std::uint64_t magic = expected_magic;
  std::int64_t version = -1;  ///< end: the last version that was sent, -1 if none
  std::int64_t reserved = 0;
  std::uint64_t bytes = 0;   ///< that follow
  std::uint64_t layout = 0;  ///< checksum of what the parts are: both ends must cut the weights alike
  std::int32_t actor = 0, rollout = 0;
  std::int64_t incarnation = 0;
  FrameKind kind = FrameKind::weights;
  std::uint32_t guard = 0;  ///< of the bytes before

  std::array<std::byte, 64> bytes_of() const {
    static_assert(std::endian::native == std::endian::little);
    auto all = std::bit_cast<std::array<std::byte, 64>>(*this);
    const std::uint32_t check = guard_of(all);
    std::memcpy(all.data() + 60, &check, sizeof check);
    return all;
  }
  static std::uint32_t guard_of(std::span<const std::byte, 64> all) {
    return static_cast<std::uint32_t>(checksum(all.first(60)));
  }
};
static_assert(sizeof(WeightFrame) == 64);

/// Throws Error unless `bytes` is a frame of weights such as `expected`, whose version is the last one that
/// came, or of their end. `from`: "rank 3 (actor 0)".
inline WeightFrame read_frame(std::span<const std::byte, 64> bytes, const WeightFrame& expected,
                              const std::string& from) {
  std::array<std::byte, 64> raw;
  std::memcpy(raw.data(), bytes.data(), raw.size());
  const auto frame = std::bit_cast<WeightFrame>(raw);
  auto refuse = [&](const std::string& why) {
    throw Error("control plane: a frame of weights from " + from + " " + why);
  };
  auto number = [](auto value) { return std::to_string(value); };
  if (frame.magic != WeightFrame::expected_magic)
    refuse("does not start as one; both ends must be the same version of dvla");
  if (frame.guard != WeightFrame::guard_of(raw)) refuse("is damaged: its header does not match its checksum");
  if (frame.actor != expected.actor || frame.rollout != expected.rollout)
    refuse("is of actor " + number(frame.actor) + " for rollout " + number(frame.rollout) +
           ", not of actor " + number(expected.actor) + " for rollout " + number(expected.rollout));
  if (frame.incarnation != expected.incarnation)
    refuse("is for incarnation " + number(frame.incarnation) + " of this rollout, which is incarnation " +
           number(expected.incarnation));
  if (frame.layout != expected.layout)
    refuse("cuts the weights into other parts; trainer and sampler must have the same model and knobs");
  if (frame.kind == FrameKind::end) {
    if (frame.bytes != 0 || frame.version < expected.version || frame.version < -1)
      refuse("ends the weights at version " + number(frame.version) + ", but version " +
             number(expected.version) + " has come");
    return frame;
  }
  if (frame.version < 0 || frame.version <= expected.version)
    refuse("is version " + number(frame.version) + " after version " + number(expected.version) +
           "; versions strictly increase");
  if (frame.kind != FrameKind::weights)
    refuse("is of kind " + number(static_cast<std::int32_t>(frame.kind)) + ", which is none");
  if (frame.bytes != expected.bytes)
    refuse("announces " + number(frame.bytes) + " bytes instead of " + number(expected.bytes));
  return frame;
}

namespace detail {

/// Streams that this many bytes are worth, of `most`: a thread more pays from some MiB on.
inline std::size_t weight_streams(std::size_t bytes, std::size_t most) {
  return std::clamp<std::size_t>(bytes >> 22, 1, most);
}
/// Weights are sent, received and checked so many bytes at a time: few waits for the peer where nothing goes
/// on meanwhile, else what a core's own cache holds.
inline std::size_t weight_piece(std::size_t streams) { return std::size_t{streams == 1 ? 4U : 1U} << 20; }

/// Sends or receives a part; one at a time per object.
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

  void send(std::span<const std::byte> part) {
    const std::uint64_t sum =
        carry(part, [&](Channel& channel, std::span<const std::byte> piece, Checksum& all) {
          all.update(piece);
          channel.send(piece, limit_);
        });
    channel().send(std::as_bytes(std::span(&sum, 1)), limit_);
  }
  /// False: what came does not match its checksum.
  bool receive(std::span<std::byte> part) {
    const std::uint64_t sum = carry(part, [&](Channel& channel, std::span<std::byte> piece, Checksum& all) {
      channel.receive(piece, limit_);
      all.update(piece);
    });
    std::uint64_t theirs = 0;
    channel().receive(std::as_writable_bytes(std::span(&theirs, 1)), limit_);
    return sum == theirs;
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

}  // namespace detail
}  // namespace dvla
