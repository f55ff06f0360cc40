// How one version of a part crosses a channel: a frame (weight_frame.hpp), the ranges of the part that the
// form calls for, in pieces, then a checksum, made at both ends while a piece is in the cache (sent with a
// checksum made before, a GiB takes half as long again). Both ends know the ranges: all of
// the part, the trainable ones, or for a delta the blocks of a bitmap that goes first. One thread per object.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_frame.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

/// Weights are sent, received and checked so many bytes at a time.
inline constexpr std::size_t weight_piece = std::size_t{4} << 20;
inline constexpr std::size_t delta_block = 4096;

inline std::size_t delta_blocks(std::size_t bytes) { return (bytes + delta_block - 1) / delta_block; }
inline std::size_t bitmap_bytes(std::size_t bytes) { return (delta_blocks(bytes) + 7) / 8; }

/// What a delta consists of.
struct Changes {
  std::size_t blocks = 0;         ///< that differ
  std::vector<std::byte> bitmap;  ///< a bit for each block
  std::uint64_t sum = 0;          ///< XXH3-64 of all that is there now
};
inline void find_changes(std::span<const std::byte> now, std::span<const std::byte> before,
                         Changes& changes) {
  Checksum sum;
  changes.blocks = 0;
  changes.bitmap.assign(bitmap_bytes(now.size()), std::byte{0});
  for (std::size_t block = 0, at = 0; at < now.size(); ++block, at += delta_block) {
    const std::span<const std::byte> here = now.subspan(at, std::min(delta_block, now.size() - at));
    sum.update(here);
    if (std::memcmp(here.data(), before.data() + at, here.size()) == 0) continue;
    changes.bitmap[block / 8] |= std::byte{1} << (block % 8);
    ++changes.blocks;
  }
  changes.sum = sum.value();
}

/// The ranges of a part of `bytes` that a bitmap marks. Throws Error for a mark beyond the part.
inline void marked_ranges(std::span<const std::byte> bitmap, std::size_t bytes,
                          std::vector<ByteRange>& ranges) {
  ranges.clear();
  for (std::size_t block = 0; block < bitmap.size() * 8; ++block) {
    if ((bitmap[block / 8] & (std::byte{1} << (block % 8))) == std::byte{0}) continue;
    const std::size_t at = block * delta_block;
    if (at >= bytes) throw Error("control plane: a delta marks a block beyond the weights; it is damaged");
    append(ranges, {at, std::min(delta_block, bytes - at)});
  }
}

/// Sends or receives ranges of a part. A piece in one range needs no copy.
class WeightWire {
 public:
  /// `limit`: of each piece.
  WeightWire(Channel& channel, std::size_t piece, std::chrono::nanoseconds limit)
      : channel_(channel), piece_(piece), limit_(limit) {}

  /// Returns the checksum of what went, in order.
  std::uint64_t send(std::span<const std::byte> part, std::span<const ByteRange> ranges) {
    Checksum sum;
    Pieces pieces(ranges, piece_);
    for (auto piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
      std::span<const std::byte> whole = part.subspan(piece[0].offset, piece[0].bytes);
      if (piece.size() > 1) {
        std::size_t at = 0;
        const std::span<std::byte> packed = bounce(bytes_in(piece));
        for (const ByteRange& range : piece) {
          std::memcpy(packed.data() + at, part.data() + range.offset, range.bytes);
          at += range.bytes;
        }
        whole = packed;
      }
      sum.update(whole);
      channel_.send(whole, limit_);
    }
    return sum.value();
  }

  /// The same for what came.
  std::uint64_t receive(std::span<std::byte> part, std::span<const ByteRange> ranges) {
    Checksum sum;
    Pieces pieces(ranges, piece_);
    for (auto piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
      const std::span<std::byte> whole =
          piece.size() == 1 ? part.subspan(piece[0].offset, piece[0].bytes) : bounce(bytes_in(piece));
      channel_.receive(whole, limit_);
      sum.update(whole);
      if (piece.size() == 1) continue;
      std::size_t at = 0;
      for (const ByteRange& range : piece) {
        std::memcpy(part.data() + range.offset, whole.data() + at, range.bytes);
        at += range.bytes;
      }
    }
    return sum.value();
  }

  void send_sum(std::uint64_t sum) { channel_.send(std::as_bytes(std::span(&sum, 1)), limit_); }
  std::uint64_t receive_sum() {
    std::uint64_t sum = 0;
    channel_.receive(std::as_writable_bytes(std::span(&sum, 1)), limit_);
    return sum;
  }

 private:
  std::span<std::byte> bounce(std::size_t bytes) {
    if (bounce_.size() < bytes) bounce_.resize(piece_);
    return std::span(bounce_).first(bytes);
  }

  Channel& channel_;
  std::size_t piece_;
  std::chrono::nanoseconds limit_;
  std::vector<std::byte> bounce_;
};

/// One actor's part: its ranges of the flat weights, and what follows from them.
struct PartLayout {
  PartLayout(WeightPart of, const WeightPart& trained)
      : part(std::move(of)), bytes(static_cast<std::size_t>(floats_in(part)) * 4) {
    append(all, {0, bytes});
    trainable = inside(part, trained);
    Checksum sum;
    sum.update(std::as_bytes(std::span(part)));
    sum.update(std::as_bytes(std::span(trainable)));
    identity = sum.value();
  }
  WeightPart part;
  std::size_t bytes;
  std::vector<ByteRange> all, trainable;
  std::uint64_t identity;  ///< both ends must agree about it
};

}  // namespace dvla::detail
