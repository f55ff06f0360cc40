// The CUDA form of the two pools, seen from code without CUDA: what a memory policy asks for when its device
// is cuda. Paper: "dual-pool VRAM". The pools themselves: memory/cuda.hpp.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/memory/host_pool.hpp"

namespace dvla {

/// One pool of device memory.
struct DevicePoolOptions {
  std::string name;         ///< in errors and reports: "CUDA model pool"
  std::size_t bytes = 0;    ///< the bound
  std::string knob;         ///< what raises the bound: "--cuda-model-pool-mib"
  bool environment = true;  ///< it holds what comes from environments and goes back: observations, noise,
                            ///< gradients of outputs
  bool model = true;        ///< it holds all other tensors: parameters, gradients, activations, workspaces
};

class DevicePools {
 public:
  virtual ~DevicePools() = default;
  /// One entry a pool. `in_use` is what the pool has taken from the GPU, tensors and free blocks between
  /// them.
  virtual std::vector<PoolReport> report() const = 0;
};

namespace detail {
/// Nothing for the CPU. Throws ConfigError where cuda cannot be.
inline std::unique_ptr<DevicePools> make_device_pools(Device device,
                                                      const std::vector<DevicePoolOptions>& options,
                                                      std::span<std::byte> pinned) {
  check_device(device);
  return device == Device::cpu ? nullptr : cuda_form.load()->make_pools(options, pinned);
}
}  // namespace detail

}  // namespace dvla
