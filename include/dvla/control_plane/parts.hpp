// Parts: which bytes of the trainable weights belong to which actor, and how a part is walked in pieces.
// Paper: "the distribution lane packs sharded parameters": every actor sends its own part. Values only, no
// threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// What one actor sends, packed in this order.
using WeightPart = std::vector<ByteRange>;

/// Consecutive, nearly equal parts.
inline std::vector<WeightPart> equal_parts(std::size_t bytes, int actors) {
  std::vector<WeightPart> parts;
  for (int actor = 0; actor < actors; ++actor) {
    const Share share = share_of(static_cast<std::int64_t>(bytes), actors, actor);
    parts.push_back(
        WeightPart{{static_cast<std::size_t>(share.first), static_cast<std::size_t>(share.count)}});
  }
  return parts;
}

/// Throws ConfigError unless the parts are `actors` many and cover [0, bytes), each byte once.
inline void check_weight_parts(std::size_t bytes, const std::vector<WeightPart>& parts, std::size_t actors) {
  const auto refuse = [](const auto&... why) {
    throw ConfigError("control plane: the actors' parts ", why...,
                      "; every byte of the weights belongs to one");
  };
  if (parts.size() != actors) refuse("are ", parts.size(), " and the actors ", actors);
  std::vector<ByteRange> all;
  for (const WeightPart& part : parts) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end(),
            [](auto a, auto b) { return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes); });
  std::size_t next = 0;
  for (const ByteRange& range : all) {
    if (range.bytes > bytes - next) refuse("reach beyond the weights");
    if (range.bytes > 0 && range.offset != next)
      refuse(range.offset < next ? "overlap at byte " : "leave out byte ", std::min(next, range.offset));
    next += range.bytes;
  }
  if (next != bytes) refuse("leave out byte ", next);
}

namespace detail {

/// One actor's part, and what follows from it.
struct PartLayout {
  explicit PartLayout(WeightPart of)
      : part(std::move(of)), bytes(bytes_in(part)), identity(checksum(std::as_bytes(std::span(part)))) {}
  WeightPart part;
  std::size_t bytes;
  std::uint64_t identity;  ///< both ends must agree about it
};

}  // namespace detail

}  // namespace dvla
