// TorchAllocator: while it lives, torch's CPU tensors come from a pool (usually the model pool), so a step's
// temporaries reuse the pages of the step before, inside a bound. Paper: dual pools, the model side, host
// form. Process-wide, as torch's allocator is: one at a time. Includes c10 only. Not for CUDA, and not for
// memory that does not ask torch's CPU allocator (MKL-DNN's own scratch, std::vector).
//
// Tensors may outlive it, and the pool: every block keeps its pool's core. torch keeps a pointer to the allocator in each storage, for resizes, so the object that torch sees
// is never destroyed: without a TorchAllocator it passes requests on to the allocator that torch had before.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/memory/host_pool.hpp"

namespace dvla {

namespace detail {

/// What torch sees. One for the process, installed once and left there.
class TorchPoolBridge final : public c10::Allocator {
 public:
  static TorchPoolBridge& instance() {
    static auto* bridge = new TorchPoolBridge;  // outlives every tensor, static ones too
    return *bridge;
  }

  /// Throws Error if another pool is in place, or something that torch ranks higher than a plain allocator.
  void use(PoolCore& core) {
    if (c10::GetCPUAllocator() != this) {
      throw Error(
          "TorchAllocator: another CPU allocator was installed in torch and keeps its place; install that "
          "one before the first TorchAllocator, or do without it");
    }
    PoolCore* none = nullptr;
    if (!core_.compare_exchange_strong(none, &core)) {
      throw Error(
          "TorchAllocator: torch's CPU tensors already come from another pool; there is one such allocator "
          "in a process, so end the other one first");
    }
  }
  void leave() { core_.store(nullptr); }

  c10::DataPtr allocate(std::size_t bytes) override {
    auto* block = static_cast<std::byte*>(raw(bytes));
    return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  /// Stands on a line of its own before every block: who gets it back.
  struct alignas(64) Origin {
    std::shared_ptr<PoolCore> core;  ///< null: of the allocator before
    void* context = nullptr;         ///< of that one, as is the next
    c10::DeleterFnPtr release = nullptr;
  };
  static_assert(sizeof(Origin) == 64);

  TorchPoolBridge() : before_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this); }

  void* raw(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    const std::size_t all = bytes + sizeof(Origin);
    Origin origin;
    void* start = nullptr;
    if (PoolCore* core = core_.load()) {
      start = core->allocate(all, 64);
      origin.core = core->shared_from_this();
    } else {
      c10::DataPtr block = before_->allocate(all);
      start = block.get();
      origin.release = block.get_deleter();
      origin.context = block.release_context();
    }
    new (start) Origin(std::move(origin));
    return static_cast<std::byte*>(start) + sizeof(Origin);
  }
  static void release(void* data) {
    if (data == nullptr) return;
    auto* origin = reinterpret_cast<Origin*>(static_cast<std::byte*>(data) - sizeof(Origin));
    if (origin->core == nullptr) return origin->release(origin->context);
    const std::shared_ptr<PoolCore> core = std::move(origin->core);  // may be the last to know it
    core->deallocate(origin);
  }

  c10::Allocator* before_;
  std::atomic<PoolCore*> core_{nullptr};
};

}  // namespace detail

/// Constructor and destructor: while no other thread makes tensors (before the lanes start, after they end);
/// in between and after, tensors may be made and freed on any thread. A pool that is full throws its Error
/// out of the torch operation that asked.
class TorchAllocator {
 public:
  /// Throws Error if another TorchAllocator lives.
  explicit TorchAllocator(HostPool& pool) { detail::TorchPoolBridge::instance().use(pool.core()); }
  ~TorchAllocator() { detail::TorchPoolBridge::instance().leave(); }
  TorchAllocator(const TorchAllocator&) = delete;
  TorchAllocator& operator=(const TorchAllocator&) = delete;
};

}  // namespace dvla
