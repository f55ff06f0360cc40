// HostPool: what both pools on the host are: a bounded, thread-safe std::pmr::memory_resource with figures.
// Paper: "dual-pool VRAM", section on memory; here the host form. environment_pool.hpp and model_pool.hpp say
// which options make which pool. Not for device memory, and not a general malloc: the bound is the point.
//
// One mapping of fixed size, handed out in 64-byte granules, coalescing. Segregated free lists with boundary
// tags (Knuth 1973, 2.5; TLSF, Masmano 2004, for the two-level bins): a request takes the smallest bin that
// fits, first fit inside it, and what was freed last comes first. The tags stand beside the memory, not in
// it, so blocks are 64-byte aligned without waste and a wrong or second free is found exactly.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/memory/mapping.hpp"

namespace dvla {

/// Figures of one pool, in bytes unless said otherwise. `fragmentation` = 1 - largest_free / free, so 0 when
/// all free memory is one piece (or nothing is free).
struct PoolReport {
  std::string name;
  std::size_t capacity = 0;
  std::size_t in_use = 0;
  std::size_t high_water = 0;  ///< largest in_use so far
  std::size_t largest_free = 0;
  double fragmentation = 0;
  std::int64_t allocations = 0;  ///< since the start
  std::int64_t live = 0;         ///< blocks in use
};

struct PoolOptions {
  std::string name;       ///< in errors and reports: "environment pool"
  std::size_t bytes = 0;  ///< the bound
  std::string knob;       ///< what raises the bound: "--environment-pool-mib"
  bool shared = false;    ///< a child process can be given it, by its descriptor
};

namespace detail {

/// A pool's state. Tensors may outlive the pool that they were born in: each keeps its pool's core.
class PoolCore : public std::enable_shared_from_this<PoolCore> {
 public:
  explicit PoolCore(PoolOptions options)
      : options_(std::move(options)),
        count_(options_.bytes / granule),
        memory_(options_.bytes, options_.shared, options_.name + " (" + options_.knob + ")"),
        tags_((count_ + 1) * sizeof(Tag), false, options_.name + " (" + options_.knob + ")", false) {
    if (count_ > 0) set_free(0, count_);
  }

  void* allocate(std::size_t bytes, std::size_t alignment) {
    const std::size_t size = bytes == 0 ? 1 : bytes / granule + (bytes % granule != 0);
    const std::scoped_lock lock(mutex_);
    void* block = take(size, std::max<std::size_t>(alignment / granule, 1));
    if (block == nullptr) refuse(bytes);
    ++allocations_;
    ++live_;
    high_water_ = std::max(high_water_, count_ - free_);
    return block;
  }

  /// Neighbours that are free become one block with it.
  void deallocate(void* pointer) {
    const std::scoped_lock lock(mutex_);
    std::size_t start = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - memory_.data()) / granule;
    if (!contains(pointer) || pointer != node_at(start) || !tag(start).used)
      throw Error(options_.name + ": freed a pointer that is no block in use here" +
                  (contains(pointer) ? " (freed twice?)" : " (it is another allocator's)") +
                  "; free each block once, to the pool that gave it");
    std::size_t size = tag(start).size;
    --live_;
    tag(start) = {};
    if (const std::size_t next = start + size; next < count_ && !tag(next).used) size += remove(next);
    if (start > 0 && !tag(start - 1).used && tag(start - 1).size > 0) {
      start -= tag(start - 1).size;
      size += remove(start);
    }
    set_free(start, size);
  }

  void prefault(std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    memory_.prefault(bytes);
    tags_.prefault((bytes / granule + 1) * sizeof(Tag));
  }
  int descriptor() const { return memory_.descriptor(); }
  const std::string& knob() const { return options_.knob; }
  std::span<std::byte> region() const { return {memory_.data(), count_ * granule}; }
  bool contains(const void* pointer) const {
    const auto* byte = static_cast<const std::byte*>(pointer);
    return byte >= memory_.data() && byte < memory_.data() + count_ * granule;
  }

  PoolReport report() const {
    const std::scoped_lock lock(mutex_);
    PoolReport report;
    report.name = options_.name;
    report.capacity = count_ * granule;
    report.in_use = (count_ - free_) * granule;
    report.high_water = high_water_ * granule;
    report.largest_free = largest_free() * granule;
    if (free_ > 0)
      report.fragmentation = 1.0 - static_cast<double>(largest_free()) / static_cast<double>(free_);
    report.allocations = allocations_;
    report.live = live_;
    return report;
  }

 private:
  static constexpr std::size_t granule = 64;
  static constexpr std::size_t bins = 8 + 61 * 4;

  /// In a free block.
  struct Node {
    Node* next;
    Node* previous;
  };
  /// At a block's first granule, and at the last one of a free block. Zero everywhere else.
  struct Tag {
    std::size_t size : 63, used : 1;
  };
  static constexpr std::size_t sizes = ~std::size_t{0} >> 1;  ///< what 63 bits hold

  /// Sizes below 8 have a bin each, above there are four bins to a power of two.
  static std::size_t bin_of(std::size_t size) {
    if (size < 8) return size;
    const auto exponent = static_cast<std::size_t>(std::bit_width(size) - 1);
    return 8 + (exponent - 3) * 4 + ((size >> (exponent - 2)) & 3);
  }
  Tag& tag(std::size_t index) const { return reinterpret_cast<Tag*>(tags_.data())[index]; }
  Node* node_at(std::size_t index) const { return reinterpret_cast<Node*>(memory_.data() + index * granule); }
  std::size_t index_of(const Node* node) const {
    return static_cast<std::size_t>(reinterpret_cast<const std::byte*>(node) - memory_.data()) / granule;
  }

  /// `size` granules at a multiple of `step`, or nullptr when no free block holds them.
  void* take(std::size_t size, std::size_t step) {
    if (size > count_ || step > count_) return nullptr;
    Node* const node = find(size + step - 1);
    if (node == nullptr) return nullptr;
    const std::size_t found = index_of(node), address = reinterpret_cast<std::uintptr_t>(node) / granule;
    const std::size_t start = found + (address + step - 1) / step * step - address;
    const std::size_t end = found + remove(found);
    if (start > found) set_free(found, start - found);
    if (end > start + size) set_free(start + size, end - start - size);
    tag(start) = {size & sizes, true};
    return node_at(start);
  }
  Node* find(std::size_t size) const {
    const std::size_t own = bin_of(size);
    for (Node* node = heads_[own]; node != nullptr; node = node->next)
      if (tag(index_of(node)).size >= size) return node;
    for (std::size_t word = (own + 1) / 64; word < filled_.size(); ++word) {
      const unsigned skip = word == (own + 1) / 64 ? (own + 1) % 64 : 0;
      if (const std::uint64_t rest = filled_[word] >> skip << skip; rest != 0)
        return heads_[word * 64 + static_cast<std::size_t>(std::countr_zero(rest))];
    }
    return nullptr;
  }
  std::size_t largest_free() const {
    for (std::size_t bin = bins; bin-- > 0;) {
      std::size_t largest = 0;
      for (const Node* node = heads_[bin]; node != nullptr; node = node->next)
        largest = std::max<std::size_t>(largest, tag(index_of(node)).size);
      if (largest > 0) return largest;
    }
    return 0;
  }

  void set_free(std::size_t start, std::size_t size) {
    tag(start) = tag(start + size - 1) = {size & sizes, false};
    Node*& head = heads_[bin_of(size)];
    Node* const node = node_at(start);
    *node = {head, nullptr};
    if (head != nullptr) head->previous = node;
    head = node;
    mark(bin_of(size));
    free_ += size;
  }
  /// A free block from its list; returns its size.
  std::size_t remove(std::size_t start) {
    const std::size_t size = tag(start).size;
    const Node* const node = node_at(start);
    if (node->next != nullptr) node->next->previous = node->previous;
    (node->previous != nullptr ? node->previous->next : heads_[bin_of(size)]) = node->next;
    mark(bin_of(size));
    tag(start) = tag(start + size - 1) = {};
    free_ -= size;
    return size;
  }
  void mark(std::size_t bin) {
    const std::uint64_t bit = std::uint64_t{1} << (bin % 64);
    heads_[bin] != nullptr ? filled_[bin / 64] |= bit : filled_[bin / 64] &= ~bit;
  }
  [[noreturn]] void refuse(std::size_t bytes) const {
    constexpr std::size_t mib = std::size_t{1} << 20;
    throw Error(options_.name + ": no room for " + std::to_string(bytes) +
                " bytes: " + std::to_string(free_ * granule) + " of " + std::to_string(count_ * granule) +
                " bytes are free, " + std::to_string(largest_free() * granule) +
                " of them in one piece; raise " + options_.knob + " (now " +
                std::to_string(options_.bytes / mib) + ")");
  }

  const PoolOptions options_;
  const std::size_t count_;  // granules, as the next two
  std::size_t free_ = 0, high_water_ = 0;
  std::int64_t allocations_ = 0, live_ = 0;
  mutable std::mutex mutex_;
  Mapping memory_, tags_;
  std::array<Node*, bins> heads_{};
  std::array<std::uint64_t, (bins + 63) / 64> filled_{};  // by bin: it has blocks
};

}  // namespace detail

/// Blocks are 64-byte aligned at least, whatever is asked for. All members are thread-safe, and a block may
/// be freed by another thread than allocated it. Throws Error when the bound is met (it names the pool, the
/// request, what is free and the knob) and for a pointer that is not a block in use, so also for a second
/// free. Blocks go with the pool, but for those of tensors (TorchAllocator).
class HostPool : public std::pmr::memory_resource {
 public:
  explicit HostPool(PoolOptions options) : core_(std::make_shared<detail::PoolCore>(std::move(options))) {}
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  PoolReport report() const { return core_->report(); }
  /// What raises its bound.
  const std::string& knob() const { return core_->knob(); }
  /// Whether `pointer` lies in this pool's memory.
  bool contains(const void* pointer) const { return core_->contains(pointer); }
  /// Brings the pages of the first so many bytes, which blocks are taken from first: none is missing later.
  /// Throws Error where the system has not so much.
  void prefault(std::size_t bytes) { core_->prefault(bytes); }
  /// Of a shared pool: what a child process maps; a block lies at its offset in region(). -1 of others.
  int descriptor() const { return core_->descriptor(); }
  /// All of this pool's memory.
  std::span<std::byte> region() const { return core_->region(); }
  detail::PoolCore& core() const { return *core_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    return core_->allocate(bytes, alignment);
  }
  void do_deallocate(void* pointer, std::size_t, std::size_t) override { core_->deallocate(pointer); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  const std::shared_ptr<detail::PoolCore> core_;
};

}  // namespace dvla
