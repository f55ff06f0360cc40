// MuJoCo's heap, routed into a pool: mjModel, mjData (with the arena that holds contacts, constraints and the
// solver's temporaries) and scenes come from the std::pmr resource that is current on the calling thread.
// Paper: the environment auxiliary pool. Does not touch what the C++ side of MuJoCo's XML compiler news.
//
// MuJoCo has one pair of allocation hooks per process and tells them neither who asks nor how large a freed
// block was. So blocks are written down in a small table: a block returns to the resource that gave it,
// whichever thread frees it, and a block from before the hooks goes to free() as MuJoCo itself would do.
// Stepping allocates nothing (the arena is part of mjData), so the table's lock is not on a hot path.
#pragma once

#include <mujoco/mujoco.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory_resource>
#include <mutex>
#include <unordered_map>

namespace dvla::detail {

class MujocoMemory {
 public:
  static constexpr std::size_t alignment = 64;  ///< what mju_malloc promises

  /// Sets MuJoCo's hooks once per process. Thread-safe.
  static void install() {
    static std::once_flag once;
    std::call_once(once, [] {
      mju_user_malloc = &MujocoMemory::allocate;
      mju_user_free = &MujocoMemory::release;
    });
  }

  /// While it lives, MuJoCo's allocations of this thread come from `resource`.
  class Scope {
   public:
    explicit Scope(std::pmr::memory_resource& resource)
        : resource_(&resource), serial_(++serials_), before_(current_) {
      install();
      current_ = this;
    }
    ~Scope() { current_ = before_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    /// Gives back what was allocated in this scope and not freed: after an mju_error nobody else can.
    void roll_back() {
      const std::lock_guard lock(table().mutex);
      std::erase_if(table().blocks, [&](const auto& entry) {
        const auto& [data, block] = entry;
        if (block.scope != serial_) return false;
        block.resource->deallocate(data, block.size, alignment);
        return true;
      });
    }

   private:
    friend class MujocoMemory;
    std::pmr::memory_resource* resource_;
    std::uint64_t serial_;
    Scope* before_;
  };

 private:
  struct Block {
    std::pmr::memory_resource* resource;
    std::size_t size;
    std::uint64_t scope;  ///< serial number of the scope that asked
  };
  struct Table {
    std::mutex mutex;
    std::unordered_map<void*, Block> blocks;
  };
  static Table& table() {
    static Table* const forever = new Table;  // MuJoCo may free during static destruction
    return *forever;
  }

  /// Called from C: must not throw. A null result becomes an mju_error, which the guard turns into an Error.
  static void* allocate(std::size_t size) noexcept {
    // MuJoCo 3.3 asks for 0 bytes too, and takes no null.
    size = (size / alignment + (size % alignment != 0 || size == 0)) * alignment;
    if (current_ == nullptr) return std::aligned_alloc(alignment, size);
    try {
      std::pmr::memory_resource* const resource = current_->resource_;
      void* const data = resource->allocate(size, alignment);
      try {
        const std::lock_guard lock(table().mutex);
        table().blocks.emplace(data, Block{resource, size, current_->serial_});
      } catch (...) {
        resource->deallocate(data, size, alignment);
        return nullptr;
      }
      return data;
    } catch (...) {
      return nullptr;
    }
  }

  static void release(void* data) noexcept {
    Block block{nullptr, 0, 0};
    {
      const std::lock_guard lock(table().mutex);
      if (const auto found = table().blocks.find(data); found != table().blocks.end()) {
        block = found->second;
        table().blocks.erase(found);
      }
    }
    if (block.resource == nullptr) {
      std::free(data);
    } else {
      block.resource->deallocate(data, block.size, alignment);
    }
  }

  static inline std::atomic<std::uint64_t> serials_{0};
  static inline thread_local Scope* current_ = nullptr;
};

}  // namespace dvla::detail
