// CUDA for a program that includes this in one of its files: `--device cuda` then works where there is a GPU.
// Two private pools of device memory with a cap each, and the environment pool's host memory pinned. Paper:
// "dual-pool VRAM". Needs the CUDA toolkit and LibTorch's CUDA libraries; no kernels of its own. One GPU a
// process.
//
// A pool is an at::cuda::MemPool whose segments come through a counter that knows the cap. Which pool a
// tensor comes from is decided by the stream and thread that asks (memory/lane_stream.hpp): only what lanes
// ask for is taken from them. As long as the pools live torch treats them as it does a graph's: it gives no
// cached segment back to make room, and nobody may call record_stream on their tensors, whose memory would
// then not be used again.
#pragma once

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/MemPool.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/memory/lane_stream.hpp"

namespace dvla {

namespace detail {

inline void check_cuda(cudaError_t result, const std::string& what) {
  if (result == cudaSuccess) return;
  (void)cudaGetLastError();  // forget it: it is reported here
  throw Error("CUDA: ", what, " failed: ", cudaGetErrorString(result));
}

/// Segments from the GPU, up to a cap. torch cuts tensors from them.
class CappedSegments {
 public:
  explicit CappedSegments(DevicePoolOptions options) : options_(std::move(options)) {}

  /// Throws Error when the cap is met, or the GPU has no more.
  void* allocate(std::size_t bytes, int device) {
    const std::scoped_lock lock(mutex_);
    if (bytes > options_.bytes - in_use_) {
      throw Error(options_.name, ": no room for a segment of ", bytes, " bytes: ", in_use_, " of ",
                  options_.bytes, " bytes are taken; raise ", options_.knob, " (now ", options_.bytes >> 20,
                  ")");
    }
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    void* segment = nullptr;
    check_cuda(cudaMalloc(&segment, bytes), options_.name + " (" + options_.knob + "): asking the GPU for " +
                                                std::to_string(bytes) + " bytes");
    in_use_ += bytes;
    high_water_ = std::max(high_water_, in_use_);
    ++allocations_;
    ++live_;
    return segment;
  }
  void deallocate(void* segment, std::size_t bytes, int device) {
    const std::scoped_lock lock(mutex_);
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    check_cuda(cudaFree(segment), options_.name + ": giving a segment back");
    in_use_ -= bytes;
    --live_;
  }
  PoolReport report() const {
    const std::scoped_lock lock(mutex_);
    return {.name = options_.name,
            .capacity = options_.bytes,
            .in_use = in_use_,
            .high_water = high_water_,
            .largest_free = options_.bytes - in_use_,
            .allocations = allocations_,
            .live = live_};
  }

 private:
  DevicePoolOptions options_;
  mutable std::mutex mutex_;
  std::size_t in_use_ = 0, high_water_ = 0;
  std::int64_t allocations_ = 0, live_ = 0;
};

/// Lanes' tensors come from it as long as it lives.
class CudaPool {
 public:
  explicit CudaPool(const DevicePoolOptions& options)
      : segments_(std::make_shared<CappedSegments>(options)),
        // torch keeps the functions until the last segment is back, which may be after this.
        pool_(torch::cuda::CUDAPluggableAllocator::createCustomAllocator(
            [segments = segments_](std::size_t bytes, int device, cudaStream_t) {
              return segments->allocate(bytes, device);
            },
            [segments = segments_](void* segment, std::size_t bytes, int device, cudaStream_t) {
              segments->deallocate(segment, bytes, device);
            })) {
    std::array<cudaStream_t, 6> streams{};
    std::ranges::transform(lane_streams(), streams.begin(),
                           [](const c10::Stream& stream) { return c10::cuda::CUDAStream(stream).stream(); });
    c10::cuda::CUDACachingAllocator::beginAllocateToPool(
        pool_.device(), pool_.id(),
        [streams, environment = options.environment, model = options.model](cudaStream_t stream) {
          return (in_environment_pool ? environment : model) &&
                 std::find(streams.begin(), streams.end(), stream) != streams.end();
        });
  }
  ~CudaPool() { end(); }
  CudaPool(const CudaPool&) = delete;
  CudaPool& operator=(const CudaPool&) = delete;

  PoolReport report() const { return segments_->report(); }
  /// No more tensors come from it. torch gives a pool's segments back only while none is in use in this way,
  /// so of several pools all end before the first one goes.
  void end() {
    if (!std::exchange(in_place_, false)) return;
    c10::cuda::CUDACachingAllocator::endAllocateToPool(pool_.device(), pool_.id());
    c10::cuda::CUDACachingAllocator::releasePool(pool_.device(), pool_.id());  // what begin took
  }

 private:
  std::shared_ptr<CappedSegments> segments_;
  at::cuda::MemPool pool_;
  bool in_place_ = true;
};

class CudaPools final : public DevicePools {
 public:
  /// `pinned`: host memory that the GPU copies from and to by itself, as long as this lives.
  CudaPools(const std::vector<DevicePoolOptions>& options, std::span<std::byte> pinned) {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    const c10::cuda::CUDAGuard guard(cuda_device());
    check_cuda(cudaHostRegister(pinned.data(), pinned.size(), cudaHostRegisterPortable),
               "pinning " + std::to_string(pinned.size()) + " bytes of the environment pool");
    pinned_ = {pinned.data(), [](void* region) { (void)cudaHostUnregister(region); }};
    for (const DevicePoolOptions& pool : options) pools_.push_back(std::make_unique<CudaPool>(pool));
  }
  /// Models have gone before. cuBLAS keeps workspaces, which came from the pools.
  ~CudaPools() override {
    at::cuda::clearCublasWorkspaces();
    for (const auto& pool : pools_) pool->end();
  }

  std::vector<PoolReport> report() const override {
    std::vector<PoolReport> all;
    for (const auto& pool : pools_) all.push_back(pool->report());
    return all;
  }

 private:
  /// Streams belong to the process, so two of these would take each other's tensors.
  static std::shared_ptr<void> only_one() {
    if (live_.exchange(true))
      throw Error(
          "CUDA pools: this process has such pools already; there is one set in a process, so end the "
          "other run first");
    return {nullptr, [](void*) { live_ = false; }};
  }
  inline static std::atomic<bool> live_{false};

  std::shared_ptr<void> only_ = only_one(), pinned_;
  std::vector<std::unique_ptr<CudaPool>> pools_;
};

class LinkedCuda final : public CudaForm {
 public:
  std::string missing() const override {
    int count = 0, driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "this machine has no CUDA driver";
    if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess) {
      (void)cudaGetLastError();
      return cudaGetErrorString(result);
    }
    return count > 0 ? "" : "the CUDA driver finds none";
  }
  std::unique_ptr<DevicePools> make_pools(const std::vector<DevicePoolOptions>& options,
                                          std::span<std::byte> pinned) override {
    return std::make_unique<CudaPools>(options, pinned);
  }
  static bool link() {
    static LinkedCuda form;
    cuda_form = &form;
    return true;
  }
};

/// Before main.
inline const bool cuda_is_linked = LinkedCuda::link();

}  // namespace detail

}  // namespace dvla
