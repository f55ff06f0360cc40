// How one version of a part crosses the channel of a pair: a frame, the part in pieces, then a checksum
// (XXH3-64, 8 bytes), made at both ends beside the sends and receives. The frame is what a rollout checks
// before it takes a byte of the weights: damaged, foreign, older or oversized ones are refused with one
// sentence. Little endian, as every machine that this runs on.
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/placement/peers.hpp"

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

/// Sends a part; `limit`: of each piece.
inline void send_part(Channel& channel, std::span<const std::byte> part, std::chrono::nanoseconds limit) {
  Checksum sum;
  in_turns(
      pieces_of(part.size()), [&](std::size_t i) { sum.update(piece_of(part, i)); },
      [&](std::size_t i) { channel.send(piece_of(part, i), limit); });
  const std::uint64_t value = sum.value();
  channel.send(std::as_bytes(std::span(&value, 1)), limit);
}
/// False: what came does not match its checksum.
inline bool receive_part(Channel& channel, std::span<std::byte> part, std::chrono::nanoseconds limit) {
  Checksum sum;
  in_turns(
      pieces_of(part.size()), [&](std::size_t i) { channel.receive(piece_of(part, i), limit); },
      [&](std::size_t i) { sum.update(piece_of(part, i)); });
  std::uint64_t theirs = 0;
  channel.receive(std::as_writable_bytes(std::span(&theirs, 1)), limit);
  return sum.value() == theirs;
}

}  // namespace detail
}  // namespace dvla
