// HostPool: what both pools on the host are: a bounded, thread-safe std::pmr::memory_resource with figures.
// Paper: "dual-pool VRAM", section on memory; here the host form. environment_pool.hpp and model_pool.hpp say
// which options make which pool. Not for device memory, and not a general malloc: the bound is the point.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/memory/block_arena.hpp"

namespace dvla {

/// Figures of one pool, in bytes unless said otherwise. `fragmentation` = 1 - largest_free / free, so 0 when
/// all free memory is one piece (or nothing is free).
struct PoolReport {
  std::string name;
  std::size_t capacity = 0;
  std::size_t in_use = 0;
  std::size_t high_water = 0;    ///< largest in_use so far
  std::size_t cached = 0;        ///< kept by size class for the next request of that class
  std::size_t largest_free = 0;  ///< neither in use nor cached
  double fragmentation = 0;
  std::int64_t allocations = 0;  ///< since the start
  std::int64_t live = 0;         ///< blocks in use
};

struct PoolOptions {
  std::string name;           ///< in errors and reports: "environment pool"
  std::size_t bytes = 0;      ///< the bound
  std::string knob;           ///< what raises the bound: "--environment-pool-mib"
  bool shared = false;        ///< a child process can be given it, by its descriptor
  bool size_classes = false;  ///< freed blocks wait, uncoalesced, for the next request of their class
};

namespace detail {

/// A pool's state. Outlives the pool while blocks are out: the last one to come back ends it, so tensors may
/// outlive the pool that they were born in.
class PoolCore {
 public:
  explicit PoolCore(PoolOptions options)
      : options_(std::move(options)),
        arena_(options_.bytes, options_.shared, options_.name + " (" + options_.knob + ")") {}

  void* allocate(std::size_t bytes, std::size_t alignment) {
    const std::size_t needed = BlockArena::granules(bytes);
    const std::scoped_lock lock(mutex_);
    void* block = take(needed, alignment);
    if (block == nullptr) refuse(bytes);
    ++allocations_;
    ++live_;
    in_use_ += arena_.size_of(block);
    high_water_ = std::max(high_water_, in_use_);
    return block;
  }

  /// Returns true if this was the last block of a core whose pool is gone: then the caller deletes the core.
  [[nodiscard]] bool deallocate(void* pointer) {
    const std::scoped_lock lock(mutex_);
    const std::size_t size = arena_.size_of(pointer);
    if (size == 0 || is_cached(pointer, size)) {
      throw Error(options_.name + ": freed a pointer that is no block in use here" +
                  (arena_.contains(pointer) ? " (freed twice?)" : " (it is another allocator's)") +
                  "; free each block once, to the pool that gave it");
    }
    in_use_ -= size;
    --live_;
    if (options_.size_classes && size <= largest_cached) {
      auto* cached = static_cast<Cached*>(pointer);
      cached->next = classes_[class_of(size)];
      cached->mark = cached_mark(pointer);
      classes_[class_of(size)] = cached;
      cached_ += size;
    } else {
      arena_.deallocate(pointer);
    }
    return orphaned_ && live_ == 0;
  }

  /// The pool goes. Returns true if nothing is out: then the caller deletes the core.
  [[nodiscard]] bool orphan() {
    const std::scoped_lock lock(mutex_);
    orphaned_ = true;
    return live_ == 0;
  }

  void prefault(std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    arena_.prefault(bytes);
  }
  int descriptor() const { return arena_.descriptor(); }
  const std::string& knob() const { return options_.knob; }
  bool contains(const void* pointer) const { return arena_.contains(pointer); }
  std::span<std::byte> region() const { return {arena_.data(), arena_.capacity()}; }

  PoolReport report() const {
    const std::scoped_lock lock(mutex_);
    PoolReport report;
    report.name = options_.name;
    report.capacity = arena_.capacity();
    report.in_use = in_use_ * BlockArena::granule;
    report.high_water = high_water_ * BlockArena::granule;
    report.cached = cached_ * BlockArena::granule;
    report.largest_free = arena_.largest_free();
    if (arena_.free_bytes() > 0) {
      report.fragmentation =
          1.0 - static_cast<double>(report.largest_free) / static_cast<double>(arena_.free_bytes());
    }
    report.allocations = allocations_;
    report.live = live_;
    return report;
  }

 private:
  struct Cached {
    Cached* next;
    std::uintptr_t mark;
  };
  static constexpr std::size_t classes = 15 * 8;
  /// Granules: 1 MiB. Larger blocks coalesce when they are freed, so that what one phase has let go of serves
  /// another's sizes.
  static constexpr std::size_t largest_cached = std::size_t{1} << 14;

  /// Eight classes to a power of two: at most an eighth of a block is padding.
  static std::size_t round_to_class(std::size_t size) {
    if (size <= 8) return size;
    const std::size_t step = std::size_t{1} << (std::bit_width(size - 1) - 4);
    return (size + step - 1) / step * step;
  }
  static std::size_t class_of(std::size_t size) {
    if (size <= 8) return size - 1;
    const auto exponent = static_cast<std::size_t>(std::bit_width(size - 1));  // (2^(e-1), 2^e]
    return 8 + (exponent - 4) * 8 + ((size - 1) >> (exponent - 4)) - 8;
  }
  static std::uintptr_t cached_mark(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) ^ 0x5ca1ab1ef1e1d5ULL;
  }
  /// The mark makes a second free likely to be one; only then is the class's list searched to be certain.
  bool is_cached(void* pointer, std::size_t size) const {
    if (!options_.size_classes || size > largest_cached) return false;
    if (static_cast<const Cached*>(pointer)->mark != cached_mark(pointer)) return false;
    for (const Cached* block = classes_[class_of(size)]; block != nullptr; block = block->next) {
      if (block == pointer) return true;
    }
    return false;
  }

  void* take(std::size_t needed, std::size_t alignment) {
    if (!options_.size_classes || needed > largest_cached) {
      if (void* block = arena_.allocate(needed, alignment)) return block;
      flush();
      return arena_.allocate(needed, alignment);
    }
    const std::size_t size = round_to_class(needed);
    if (Cached*& head = classes_[class_of(size)]; head != nullptr && alignment <= BlockArena::granule) {
      Cached* block = std::exchange(head, head->next);
      block->mark = 0;
      cached_ -= size;
      return block;
    }
    if (void* block = arena_.allocate(size, alignment)) return block;
    flush();
    if (void* block = arena_.allocate(size, alignment)) return block;
    return nullptr;
  }
  void flush() {
    for (Cached*& head : classes_) {
      while (head != nullptr) arena_.deallocate(std::exchange(head, head->next));
    }
    cached_ = 0;
  }
  [[noreturn]] void refuse(std::size_t bytes) const {
    constexpr std::size_t mib = std::size_t{1} << 20;
    throw Error(options_.name + ": no room for " + std::to_string(bytes) +
                " bytes: " + std::to_string(arena_.free_bytes()) + " of " +
                std::to_string(arena_.capacity()) + " bytes are free, " +
                std::to_string(arena_.largest_free()) + " of them in one piece; raise " + options_.knob +
                " (now " + std::to_string(options_.bytes / mib) + ")");
  }

  PoolOptions options_;
  mutable std::mutex mutex_;
  BlockArena arena_;
  std::array<Cached*, classes> classes_{};
  std::size_t in_use_ = 0;  // granules, as the next two
  std::size_t high_water_ = 0;
  std::size_t cached_ = 0;
  std::int64_t allocations_ = 0;
  std::int64_t live_ = 0;
  bool orphaned_ = false;
};

}  // namespace detail

/// Blocks are 64-byte aligned at least, whatever is asked for. All members are thread-safe, and a block may
/// be freed by another thread than allocated it. Throws Error when the bound is met (it names the pool, the
/// request, what is free and the knob) and for a pointer that is not a block in use, so also for a second
/// free. Blocks still out when the pool is destroyed stay valid; only TorchAllocator can give them back then.
class HostPool : public std::pmr::memory_resource {
 public:
  explicit HostPool(PoolOptions options) : core_(new detail::PoolCore(std::move(options))) {}
  ~HostPool() override {
    if (core_->orphan()) delete core_;
  }
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
  detail::PoolCore* core() const { return core_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    return core_->allocate(bytes, alignment);
  }
  void do_deallocate(void* pointer, std::size_t, std::size_t) override { (void)core_->deallocate(pointer); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  detail::PoolCore* core_;
};

}  // namespace dvla
