// WeightBuffer: the weights of one version as one contiguous, checksummed block of host memory, header and
// payload together, so a plane can send it in one piece. Paper: the control plane's host-memory weight
// buffer. Knows bytes only: packing parameters is the model's. Not thread-safe: a plane decides who may touch
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <new>
#include <span>
#include <string>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// The first 64 bytes of a weight block, also on the wire.
struct alignas(64) WeightHeader {
  static constexpr std::uint64_t expected_magic = 0x3157'5741'4c56'4444ULL;  // "DDVLAWW1", little endian
  std::uint64_t magic = expected_magic;
  std::int64_t version = -1;  ///< -1: nothing sealed yet
  std::uint64_t bytes = 0;    ///< of the payload
  std::uint64_t sum = 0;      ///< XXH3-64 of the payload
};
static_assert(sizeof(WeightHeader) == 64);

class WeightBuffer {
 public:
  /// `bytes` of payload, 64-byte aligned, in `pool`, which must outlive this.
  WeightBuffer(std::size_t bytes, std::pmr::memory_resource& pool)
      : pool_(&pool),
        size_(sizeof(WeightHeader) + bytes),
        block_(static_cast<std::byte*>(pool.allocate(size_, 64))) {
    new (block_) WeightHeader{.bytes = bytes};
  }
  ~WeightBuffer() { pool_->deallocate(block_, size_, 64); }
  WeightBuffer(const WeightBuffer&) = delete;
  WeightBuffer& operator=(const WeightBuffer&) = delete;

  std::span<std::byte> payload() { return {block_ + sizeof(WeightHeader), size_ - sizeof(WeightHeader)}; }
  std::span<const std::byte> payload() const {
    return {block_ + sizeof(WeightHeader), size_ - sizeof(WeightHeader)};
  }
  /// Header and payload: what travels.
  std::span<std::byte> block() { return {block_, size_}; }
  std::int64_t version() const { return header().version; }

  /// The payload is final and is this version.
  void seal(std::int64_t version) {
    header().sum = dvla::checksum(payload());
    header().version = version;
  }
  /// Throws Error if the block is not a whole, sealed set of weights of this size.
  void verify() const { verify(payload()); }
  /// The same for a copy of the payload: proves the copy, not the original.
  void verify(std::span<const std::byte> copy) const {
    const WeightHeader& head = header();
    if (head.magic != WeightHeader::expected_magic || head.bytes != size_ - sizeof(WeightHeader)) {
      throw Error("weights: the block does not start with a header for " +
                  std::to_string(size_ - sizeof(WeightHeader)) +
                  " bytes; sender and receiver must have the same model");
    }
    if (head.version < 0) throw Error("weights: the block has no version yet; seal it before it is read");
    if (copy.size() != head.bytes || dvla::checksum(copy) != head.sum) {
      throw Error("weights: version " + std::to_string(head.version) +
                  " does not match its checksum: it is torn or damaged; nobody may write to a sealed buffer");
    }
  }

 private:
  WeightHeader& header() const { return *std::launder(reinterpret_cast<WeightHeader*>(block_)); }

  std::pmr::memory_resource* pool_;
  std::size_t size_;
  std::byte* block_;
};

}  // namespace dvla
