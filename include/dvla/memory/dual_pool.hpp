// DualPool's machinery: two pools with a bound each, so that simulator and model never fragment or starve
// each other. Paper: dual-pool memory management. Where the device is cuda, the GPU's memory has the same two
// pools beside them, and the environment pool is pinned. Not a policy's choice of sizes: those are
// MemoryKnobs.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/core/process_limits.hpp"
#include "dvla/core/text.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/memory/descriptors.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/memory/memory_knobs.hpp"
#include "dvla/memory/model_pool.hpp"

namespace dvla {

namespace detail {
/// Mebibytes as bytes; ConfigError, naming the knob, unless in [1, 2^20].
inline std::size_t pool_bytes(std::int64_t mib, const char* knob) {
  if (mib < 1 || mib > (std::int64_t{1} << 20)) {
    throw ConfigError(knob, " is ", mib, " and must lie in [1, 1048576]");
  }
  return static_cast<std::size_t>(mib) << 20;
}
/// The same of a pool in host memory, where 0 is all that the machine has: pages come as they are used. With
/// a GPU the pool is pinned, which brings all pages at once, so there 0 is 1 GiB.
inline std::size_t host_pool_bytes(std::int64_t mib, Device device, const char* knob) {
  if (mib != 0) return pool_bytes(mib, knob);
  return device == Device::cpu ? static_cast<std::size_t>(usable_memory_bytes()) : std::size_t{1} << 30;
}

/// What the memory policies are made of: one pool for both, or the environment's and the model's, and those of
/// the device. Thread-safe after construction. Pools live as long as this; what is placed in them must go first,
/// except tensors (TorchAllocator).
class Pools {
 public:
  HostPool& environment() { return *host_.front(); }
  HostPool& model() { return *host_.back(); }
  /// One entry a pool.
  std::vector<PoolReport> report() const {
    std::vector<PoolReport> all;
    for (const auto& pool : host_) all.push_back(pool->report());
    if (device_)
      for (PoolReport& report : device_->report()) all.push_back(std::move(report));
    return all;
  }

 protected:
  Pools(std::initializer_list<PoolOptions> host, Device device,
        const std::vector<DevicePoolOptions>& on_device) {
    const PoolOptions& pinned = *host.begin();  // all its pages at once
    if (device != Device::cpu && pinned.bytes > usable_memory_bytes())
      throw ConfigError(pinned.knob, " is ", mebibytes(pinned.bytes), ", all of which device cuda pins, and ",
                        mebibytes(usable_memory_bytes()), " can be had here; make it smaller");
    for (const PoolOptions& options : host) host_.push_back(std::make_unique<HostPool>(options));
    check_device(device);
    if (device != Device::cpu) device_ = cuda_form.load()->make_pools(on_device, environment().region());
  }

 private:
  std::vector<std::unique_ptr<HostPool>> host_;
  std::unique_ptr<DevicePools> device_;
};
}  // namespace detail

class DualPoolMachinery : public detail::Pools {
 public:
  explicit DualPoolMachinery(const MemoryKnobs& knobs)
      : Pools({EnvironmentPool::options(detail::host_pool_bytes(knobs.environment_pool_mib, knobs.device,
                                                                "--environment-pool-mib")),
               ModelPool::options(
                   detail::host_pool_bytes(knobs.model_pool_mib, knobs.device, "--model-pool-mib"))},
              knobs.device,
              {{.name = "CUDA environment pool",
                .bytes = detail::pool_bytes(knobs.cuda_environment_pool_mib, "--cuda-environment-pool-mib"),
                .knob = "--cuda-environment-pool-mib",
                .model = false},
               {.name = "CUDA model pool",
                .bytes = detail::pool_bytes(knobs.cuda_model_pool_mib, "--cuda-model-pool-mib"),
                .knob = "--cuda-model-pool-mib",
                .environment = false}}) {}
};

template <class Pipeline>
struct machinery<DualPool, Pipeline> {
  using type = DualPoolMachinery;
};

}  // namespace dvla
