// WeightFrame: the 64 bytes before every set of weights on a channel between an actor and a rollout. What a
// rollout checks before it takes a byte of them: damaged, foreign, older or oversized frames are refused with
// one sentence. The weights' own checksum (XXH3-64, 8 bytes) follows them, so that it can be made while they
// are sent. Little endian, as every machine that this runs on.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

enum class FrameKind : std::int32_t { weights, end };

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

/// What a rollout knows about the frames of one actor.
struct WeightFrameTerms {
  std::string from = "an actor";  ///< for messages: "rank 3 (actor 0)"
  std::int32_t actor = 0, rollout = 0;
  std::int64_t incarnation = 0;
  std::uint64_t layout = 0;
  std::uint64_t bytes = 0;  ///< of the actor's part
  std::int64_t last = -1;   ///< the newest version that came from this actor; -1: none
};

/// Throws Error unless `bytes` is a frame that may follow.
inline WeightFrame read_frame(std::span<const std::byte, 64> bytes, const WeightFrameTerms& terms) {
  std::array<std::byte, 64> raw;
  std::memcpy(raw.data(), bytes.data(), raw.size());
  const auto frame = std::bit_cast<WeightFrame>(raw);
  auto refuse = [&](const std::string& why) {
    throw Error("control plane: a frame of weights from " + terms.from + " " + why);
  };
  auto number = [](auto value) { return std::to_string(value); };
  if (frame.magic != WeightFrame::expected_magic)
    refuse("does not start as one; both ends must be the same version of dvla");
  if (frame.guard != WeightFrame::guard_of(raw)) refuse("is damaged: its header does not match its checksum");
  if (frame.actor != terms.actor || frame.rollout != terms.rollout)
    refuse("is of actor " + number(frame.actor) + " for rollout " + number(frame.rollout) +
           ", not of actor " + number(terms.actor) + " for rollout " + number(terms.rollout));
  if (frame.incarnation != terms.incarnation)
    refuse("is for incarnation " + number(frame.incarnation) + " of this rollout, which is incarnation " +
           number(terms.incarnation));
  if (frame.layout != terms.layout)
    refuse("cuts the weights into other parts; trainer and sampler must have the same model and knobs");
  if (frame.kind == FrameKind::end) {
    if (frame.bytes != 0 || frame.version < terms.last || frame.version < -1)
      refuse("ends the weights at version " + number(frame.version) + ", but version " + number(terms.last) +
             " has come");
    return frame;
  }
  if (frame.version < 0 || frame.version <= terms.last)
    refuse("is version " + number(frame.version) + " after version " + number(terms.last) +
           "; versions strictly increase");
  if (frame.kind != FrameKind::weights)
    refuse("is of kind " + number(static_cast<std::int32_t>(frame.kind)) + ", which is none");
  if (frame.bytes != terms.bytes)
    refuse("announces " + number(frame.bytes) + " bytes instead of " + number(terms.bytes));
  return frame;
}

}  // namespace dvla
