// How the data plane talks over a channel, without the channel, and how the episode columns of a record become
// a stream of bytes and back. Design: "Records are described once": which fields there are is the record's own
// list; here they are strips of memory.
//
// A conversation by the messages of placement/plane_message.hpp, rollout's end first (all sizes are known to
// both, so nothing is read that was not announced):
//   hello -> offer, start -> accepted                  once: who, which layout, from which batch on
//   part -> go, bytes, their checksum -> accepted                     one route's share of one batch
//   part -> refused | part -> go, bytes, their checksum -> refused    with a reason; the part is dropped
//   goodbye -> accepted                                the last batch that will come
// What comes goes to its columns of the batch at once, which hold nothing until the whole part is proved.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/record.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/placement/plane_message.hpp"

namespace dvla {

/// What a batch's sender did for it. Adds up over batches, rollouts and actors: it travels once.
struct SenderCounts {
  std::int64_t env_steps = 0;
  std::int64_t chunk_steps = 0;
};

namespace detail {

/// Contiguous stretches of a record's block.
using Strips = std::vector<ByteRange>;

/// Columns [first, first + count) of a record laid out by place_record, whose fields are [T, B, ...] or [B]
/// with B = `episodes`; field by field, each time step by time step. Throws ConfigError, naming the field, if
/// one is neither, or does not lie in host memory.
template <Record Type>
Strips column_strips(const Type& record, std::int64_t episodes, std::int64_t first, std::int64_t count) {
  check_lies_on(record, Device::cpu, "data plane: a message");
  Strips strips;
  std::size_t offset = 0;
  for_each_field(record, [&](const char* name, const auto& field) {
    const Extents& extents = field.extents();
    const int dimension = extents.rank() == 1 ? 0 : 1;
    if (extents[dimension] != episodes)
      throw ConfigError("data plane: field '", name, "' has ", extents[dimension],
                        " episodes where the batch has ", episodes,
                        "; a record's fields are [T, B, ...] or [B]");
    using Element = typename std::remove_cvref_t<decltype(field)>::element_type;
    const auto column = static_cast<std::size_t>(extents.tail(dimension + 1).count()) * sizeof(Element);
    const ByteRange strip{offset + static_cast<std::size_t>(first) * column,
                          static_cast<std::size_t>(count) * column};
    const std::size_t stride = static_cast<std::size_t>(episodes) * column;
    const auto rows = static_cast<std::size_t>(dimension == 0 ? 1 : extents[0]);
    if (strip.bytes == stride)  // all columns: one strip
      strips.push_back({strip.offset, rows * stride});
    else
      for (std::size_t row = 0; row < rows; ++row)
        strips.push_back({strip.offset + row * stride, strip.bytes});
    offset += (field.bytes() + record_alignment - 1) / record_alignment * record_alignment;
  });
  std::erase_if(strips, [](const ByteRange& strip) { return strip.bytes == 0; });
  return strips;
}

/// Walks over strips in order, in as many steps as one likes.
class StripCursor {
 public:
  explicit StripCursor(const Strips& strips) : strip_(strips.data()) {}

  /// Calls visit(offset, bytes) for the next contiguous stretches, `bytes` in sum.
  template <class Visit>
  void next(std::size_t bytes, Visit visit) {
    while (bytes > 0) {
      const std::size_t length = std::min(bytes, strip_->bytes - within_);
      visit(strip_->offset + within_, length);
      bytes -= length;
      within_ += length;
      if (within_ == strip_->bytes) ++strip_, within_ = 0;
    }
  }

 private:
  const ByteRange* strip_;
  std::size_t within_ = 0;
};

/// The next out.size() bytes of the strips of `block`.
inline void gather(const std::byte* block, StripCursor& from, std::span<std::byte> out) {
  std::byte* to = out.data();
  from.next(out.size(), [&](std::size_t offset, std::size_t bytes) {
    std::memcpy(to, block + offset, bytes);
    to += bytes;
  });
}
inline void scatter(std::span<const std::byte> in, std::byte* block, StripCursor& to) {
  const std::byte* from = in.data();
  to.next(in.size(), [&](std::size_t offset, std::size_t bytes) {
    std::memcpy(block + offset, from, bytes);
    from += bytes;
  });
}
/// The same columns from one block to another, of other widths perhaps.
inline void copy_strips(const std::byte* block, const Strips& from, std::byte* target, const Strips& to) {
  StripCursor source(from), sink(to);
  source.next(bytes_in(from), [&](std::size_t offset, std::size_t bytes) {
    scatter({block + offset, bytes}, target, sink);
  });
}
inline void clear_strips(std::byte* block, const Strips& strips) {
  for (const ByteRange& strip : strips) std::memset(block + strip.offset, 0, strip.bytes);
}

/// Of everything but the number of episodes: fields, order, names, element sizes, extents.
template <Record Type>
void fingerprint_layout(const Type& record, Checksum& sum) {
  for_each_field(record, [&](const char* name, const auto& field) {
    using Element = typename std::remove_cvref_t<decltype(field)>::element_type;
    sum.update(std::as_bytes(std::span(name, std::strlen(name))));
    std::array<std::int64_t, Extents::max_rank + 2> numbers{sizeof(Element), field.extents().rank()};
    for (int i = 0; i < field.extents().rank(); ++i)
      numbers[static_cast<std::size_t>(i) + 2] =
          i == (field.extents().rank() == 1 ? 0 : 1) ? 0 : field.extents()[i];
    sum.update(std::as_bytes(std::span(numbers)));
  });
}

}  // namespace detail

}  // namespace dvla
