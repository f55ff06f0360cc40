// How one version of a part crosses the channels of a pair: a frame (weight_frame.hpp), the ranges of the
// part that the form calls for, in pieces, then a checksum, made at both ends while a piece is in the cache
// (sent with a checksum made before, a GiB takes half as long again). Both ends know the ranges: all of the
// part, the trainable ones, or for a delta the blocks of a bitmap that goes first. Large parts go over
// several channels, *streams*, a thread each: while one waits for the peer or makes a checksum, another moves
// bytes. One version at a time per object.
#pragma once

#include <algorithm>
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
  /// One channel or more, the same number at both ends; `limit`: of each piece.
  WeightWire(std::vector<std::unique_ptr<Channel>> channels, std::chrono::nanoseconds limit) : limit_(limit) {
    for (auto& channel : channels) streams_.push_back({std::move(channel), {}});
  }

  /// The channel of whatever is not weights.
  Channel& channel() { return *streams_.front().channel; }
  /// Ends all channels, from any thread.
  void close() noexcept {
    for (const Stream& stream : streams_) stream.channel->close();
  }

  /// Returns the checksum of what went.
  std::uint64_t send(std::span<const std::byte> part, std::span<const ByteRange> ranges) {
    return carry(ranges, [&](Stream& stream, std::span<const ByteRange> piece, Checksum& sum) {
      std::span<const std::byte> whole = part.subspan(piece[0].offset, piece[0].bytes);
      if (piece.size() > 1) {
        std::size_t at = 0;
        const std::span<std::byte> packed = stream.bounce_of(bytes_in(piece));
        for (const ByteRange& range : piece) {
          std::memcpy(packed.data() + at, part.data() + range.offset, range.bytes);
          at += range.bytes;
        }
        whole = packed;
      }
      sum.update(whole);
      stream.channel->send(whole, limit_);
    });
  }

  /// The same for what came.
  std::uint64_t receive(std::span<std::byte> part, std::span<const ByteRange> ranges) {
    return carry(ranges, [&](Stream& stream, std::span<const ByteRange> piece, Checksum& sum) {
      const std::span<std::byte> whole = piece.size() == 1 ? part.subspan(piece[0].offset, piece[0].bytes)
                                                           : stream.bounce_of(bytes_in(piece));
      stream.channel->receive(whole, limit_);
      sum.update(whole);
      if (piece.size() == 1) return;
      std::size_t at = 0;
      for (const ByteRange& range : piece) {
        std::memcpy(part.data() + range.offset, whole.data() + at, range.bytes);
        at += range.bytes;
      }
    });
  }

  void send_sum(std::uint64_t sum) { channel().send(std::as_bytes(std::span(&sum, 1)), limit_); }
  std::uint64_t receive_sum() {
    std::uint64_t sum = 0;
    channel().receive(std::as_writable_bytes(std::span(&sum, 1)), limit_);
    return sum;
  }

 private:
  struct Stream {
    std::unique_ptr<Channel> channel;
    std::vector<std::byte> bounce;
    std::span<std::byte> bounce_of(std::size_t bytes) {
      if (bounce.size() < bytes) bounce.resize(bytes);
      return std::span(bounce).first(bytes);
    }
  };

  /// Pieces are dealt to the streams in turn. Returns the checksum of the only stream, or of the checksums of
  /// all. One that fails closes the others, so that nobody waits; what it threw is thrown.
  template <class Move>
  std::uint64_t carry(std::span<const ByteRange> ranges, Move move) {
    const std::size_t count = weight_streams(bytes_in(ranges), streams_.size());
    std::mutex mutex;
    std::exception_ptr first;
    const auto run = [&](std::size_t which) {
      Checksum sum;
      try {
        Pieces pieces(ranges, weight_piece(count));
        std::size_t number = 0;
        for (auto piece = pieces.next(); !piece.empty(); piece = pieces.next())
          if (number++ % count == which) move(streams_[which], piece, sum);
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
  std::vector<Stream> streams_;
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
