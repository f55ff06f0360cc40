// HostPool: what both pools on the host are: a bounded, thread-safe std::pmr::memory_resource with figures.
// Paper: "dual-pool VRAM", section on memory; here the host form. environment_pool.hpp and model_pool.hpp say
// which options make which pool. Not for device memory, and not a general malloc: the bound is the point.
//
// One mapping of fixed size, handed out in 64-byte granules, coalescing. Free blocks stand in a list by address,
// of which a request takes the smallest one that fits, so what was freed serves the next request of its size.
// There are few of them (a step frees what it took), so a walk over the list is cheap. List and sizes stand
// beside the memory, not in it: blocks are 64-byte aligned without waste, and a wrong or second free is found.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

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
        sizes_(count_ * sizeof(std::size_t), false, options_.name + " (" + options_.knob + ")", false) {
    if (count_ > 0) free_.push_back({0, count_});
  }

  void* allocate(std::size_t bytes, std::size_t alignment) {
    const std::size_t size = bytes == 0 ? 1 : bytes / granule + (bytes % granule != 0);
    const std::scoped_lock lock(mutex_);
    const auto most =
        static_cast<std::size_t>(live_) + 2;               // of free blocks, which stand between those in use
    if (free_.capacity() < most) free_.reserve(2 * most);  // so deallocate(), in destructors, takes no memory
    void* block = take(size, std::max<std::size_t>(alignment / granule, 1));
    if (block == nullptr) refuse(bytes);
    ++allocations_;
    ++live_;
    high_water_ = std::max(high_water_, in_use_);
    return block;
  }

  /// Neighbours that are free become one block with it.
  void deallocate(void* pointer) {
    const std::scoped_lock lock(mutex_);
    const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - memory_.data());
    const std::size_t start = offset / granule;
    if (!contains(pointer) || offset % granule != 0 || size_at(start) == 0)
      throw Error(options_.name, ": freed a pointer that is no block in use here",
                  contains(pointer) ? " (freed twice?)" : " (it is another allocator's)",
                  "; free each block once, to the pool that gave it");
    const std::size_t size = std::exchange(size_at(start), 0);
    --live_;
    in_use_ -= size;
    const auto next = std::lower_bound(free_.begin(), free_.end(), start,
                                       [](const Free& block, std::size_t at) { return block.start < at; });
    const bool before = next != free_.begin() && std::prev(next)->end() == start;
    const bool behind = next != free_.end() && next->start == start + size;
    if (before) {
      std::prev(next)->size += size + (behind ? next->size : 0);
      if (behind) free_.erase(next);
    } else if (behind) {
      *next = {start, size + next->size};
    } else {
      free_.insert(next, {start, size});
    }
  }

  void prefault(std::size_t bytes) {
    memory_.prefault(bytes);
    sizes_.prefault(bytes / granule * sizeof(std::size_t));
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
    const std::size_t largest = largest_free(), free = count_ - in_use_;
    return {.name = options_.name,
            .capacity = count_ * granule,
            .in_use = in_use_ * granule,
            .high_water = high_water_ * granule,
            .largest_free = largest * granule,
            .fragmentation = free > 0 ? 1.0 - static_cast<double>(largest) / static_cast<double>(free) : 0,
            .allocations = allocations_,
            .live = live_};
  }

 private:
  static constexpr std::size_t granule = 64;

  struct Free {
    std::size_t start, size;
    std::size_t end() const { return start + size; }
  };
  /// Of the block in use that begins at this granule; 0: none does.
  std::size_t& size_at(std::size_t start) const {
    return reinterpret_cast<std::size_t*>(sizes_.data())[start];
  }

  /// `size` granules at a multiple of `step`, or nullptr when no free block holds them.
  void* take(std::size_t size, std::size_t step) {
    const auto base = reinterpret_cast<std::uintptr_t>(memory_.data()) / granule;
    const auto aligned = [&](std::size_t start) { return (base + start + step - 1) / step * step - base; };
    auto best = free_.end();
    for (auto each = free_.begin(); each != free_.end(); ++each)
      if (each->size >= size && (best == free_.end() || each->size < best->size) &&
          aligned(each->start) + size <= each->end())
        best = each;
    if (best == free_.end()) return nullptr;
    const std::size_t start = aligned(best->start);
    const Free rest{start + size, best->end() - start - size};
    best->size = start - best->start;
    if (best->size > 0 && rest.size > 0)
      free_.insert(std::next(best), rest);
    else if (rest.size > 0)
      *best = rest;
    else if (best->size == 0)
      free_.erase(best);
    size_at(start) = size;
    in_use_ += size;
    return memory_.data() + start * granule;
  }
  std::size_t largest_free() const {
    std::size_t largest = 0;
    for (const Free& block : free_) largest = std::max(largest, block.size);
    return largest;
  }
  [[noreturn]] void refuse(std::size_t bytes) const {
    constexpr std::size_t mib = std::size_t{1} << 20;
    throw Error(options_.name, ": no room for ", bytes, " bytes: ", (count_ - in_use_) * granule, " of ",
                count_ * granule, " bytes are free, ", largest_free() * granule,
                " of them in one piece; raise ", options_.knob, " (now ", options_.bytes / mib, ")");
  }

  const PoolOptions options_;
  const std::size_t count_;  // granules, as the next two
  std::size_t in_use_ = 0, high_water_ = 0;
  std::int64_t allocations_ = 0, live_ = 0;
  mutable std::mutex mutex_;
  Mapping memory_, sizes_;
  std::vector<Free> free_;  // by address; no two touch
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
  /// Brings the pages of the first so many bytes, which blocks are taken from first: none is missing later. Before
  /// blocks are taken: kernels before 5.14 have them touched by hand.
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
