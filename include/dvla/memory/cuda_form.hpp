// What a program that was built with CUDA can do, seen from code without CUDA, and the one sentence that
// refuses a device: memory/cuda.hpp is what a program includes to have CUDA. No torch, no CUDA.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"
#include "dvla/memory/host_pool.hpp"
#include "dvla/memory/memory_knobs.hpp"

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

/// The CUDA form of the two pools. Paper: "dual-pool VRAM".
class DevicePools {
 public:
  virtual ~DevicePools() = default;
  /// One entry a pool. `in_use` is what the pool has taken from the GPU, tensors and free blocks between
  /// them.
  virtual std::vector<PoolReport> report() const = 0;
};

/// What a program that was built with CUDA can do (memory/cuda.hpp).
class CudaForm {
 public:
  /// Why no model could compute on a GPU here; empty if one could.
  virtual std::string missing() const = 0;
  /// Pools of device memory; `pinned` is host memory, which stays pinned as long as they live.
  virtual std::unique_ptr<DevicePools> make_pools(const std::vector<DevicePoolOptions>& options,
                                                  std::span<std::byte> pinned) = 0;

 protected:
  ~CudaForm() = default;
};
/// nullptr: the program was built without CUDA.
inline std::atomic<CudaForm*> cuda_form{nullptr};

/// Throws ConfigError unless models can compute there, in this program and on this machine.
inline void check_device(Device device) {
  if (device == Device::cpu) return;
  const CudaForm* form = cuda_form.load();
  if (form == nullptr)
    throw ConfigError(
        "memory.device is cuda, but this program was built without CUDA; include dvla/memory/cuda.hpp and "
        "link LibTorch's "
        "CUDA libraries, or choose cpu");
  if (const std::string why = form->missing(); !why.empty())
    throw ConfigError("memory.device is cuda, but no GPU can be used here: ", why, "; choose cpu");
}

/// Rules beyond ranges; found by validate(config).
inline void check(const MemoryKnobs& knobs) { check_device(knobs.device); }

}  // namespace dvla
