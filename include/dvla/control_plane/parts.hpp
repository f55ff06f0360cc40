// Parts: which floats of the flat weights belong to which actor, and how a part is walked in pieces. Paper:
// "the distribution lane packs sharded parameters": every actor sends its own part. Values only, no threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/weight_range.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// What one actor sends, packed in this order.
using WeightPart = std::vector<WeightRange>;

inline std::int64_t floats_in(const WeightPart& part) {
  std::int64_t count = 0;
  for (const WeightRange& range : part) count += range.count;
  return count;
}

/// Consecutive, nearly equal parts.
inline std::vector<WeightPart> equal_parts(std::int64_t floats, int actors) {
  std::vector<WeightPart> parts;
  for (int actor = 0; actor < actors; ++actor) {
    const Share share = share_of(floats, actors, actor);
    parts.push_back(share.count > 0 ? WeightPart{{share.first, share.count}} : WeightPart{});
  }
  return parts;
}

/// Throws ConfigError unless the parts are `actors` many and cover [0, floats), each float once.
inline void check_weight_parts(std::int64_t floats, const std::vector<WeightPart>& parts,
                               std::size_t actors) {
  auto refuse = [](const std::string& why) {
    throw ConfigError("control plane: the actors' parts " + why +
                      "; every float of the weights belongs to one");
  };
  if (parts.size() != actors)
    refuse("are " + std::to_string(parts.size()) + " and the actors " + std::to_string(actors));
  std::vector<WeightRange> all;
  for (const WeightPart& part : parts) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end(),
            [](auto a, auto b) { return std::pair(a.offset, a.count) < std::pair(b.offset, b.count); });
  std::int64_t next = 0;
  for (const WeightRange& range : all) {
    if (range.count < 0 || range.count > floats - next) refuse("reach beyond the weights");
    if (range.count > 0 && range.offset != next)
      refuse((range.offset < next ? "overlap at float " : "leave out float ") +
             std::to_string(std::min(next, range.offset)));
    next += range.count;
  }
  if (next != floats) refuse("leave out float " + std::to_string(next));
}

/// Packs a part out of the flat weights (bytes of float32), or lays it back in place.
inline void gather_part(std::span<const std::byte> flat, const WeightPart& part,
                        std::span<std::byte> packed) {
  std::byte* to = packed.data();
  for (const auto [offset, count] : part) {
    if (count == 0) continue;
    std::memcpy(to, flat.data() + offset * 4, static_cast<std::size_t>(count) * 4);
    to += count * 4;
  }
}
inline void scatter_part(std::span<const std::byte> packed, const WeightPart& part,
                         std::span<std::byte> flat) {
  const std::byte* from = packed.data();
  for (const auto [offset, count] : part) {
    if (count == 0) continue;
    std::memcpy(flat.data() + offset * 4, from, static_cast<std::size_t>(count) * 4);
    from += count * 4;
  }
}

namespace detail {

/// Bytes of a packed part.
struct ByteRange {
  std::size_t offset = 0, bytes = 0;
  bool operator==(const ByteRange&) const = default;
};

inline std::size_t bytes_in(std::span<const ByteRange> ranges) {
  std::size_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.bytes;
  return bytes;
}

inline void append(std::vector<ByteRange>& ranges, ByteRange range) {
  if (range.bytes == 0) return;
  if (!ranges.empty() && ranges.back().offset + ranges.back().bytes == range.offset)
    ranges.back().bytes += range.bytes;
  else
    ranges.push_back(range);
}

/// Where `wanted` (ranges of the flat weights, in any order) lies inside a packed part, ascending.
inline std::vector<ByteRange> inside(const WeightPart& part, WeightPart wanted) {
  std::sort(wanted.begin(), wanted.end(), [](auto a, auto b) { return a.offset < b.offset; });
  std::vector<ByteRange> found;
  std::int64_t packed = 0;
  for (const WeightRange& own : part) {
    for (const WeightRange& range : wanted) {
      const std::int64_t first = std::max(own.offset, range.offset);
      const std::int64_t last = std::min(own.offset + own.count, range.offset + range.count);
      if (first < last)
        append(found, {static_cast<std::size_t>(packed + first - own.offset) * 4,
                       static_cast<std::size_t>(last - first) * 4});
    }
    packed += own.count;
  }
  return found;
}

/// Cuts a list of ranges into pieces of at most `most` bytes; both ends of a channel cut alike.
class Pieces {
 public:
  Pieces(std::span<const ByteRange> ranges, std::size_t most) : ranges_(ranges), most_(most) {}
  /// The next piece, empty after the last; valid until the next call.
  std::span<const ByteRange> next() {
    piece_.clear();
    for (std::size_t room = most_; room > 0 && at_ < ranges_.size();) {
      const std::size_t bytes = std::min(room, ranges_[at_].bytes - done_);
      if (bytes > 0) piece_.push_back({ranges_[at_].offset + done_, bytes});
      room -= bytes;
      done_ += bytes;
      if (done_ == ranges_[at_].bytes) {
        ++at_;
        done_ = 0;
      }
    }
    return piece_;
  }

 private:
  std::span<const ByteRange> ranges_;
  std::size_t most_, at_ = 0, done_ = 0;
  std::vector<ByteRange> piece_;
};

}  // namespace detail

}  // namespace dvla
