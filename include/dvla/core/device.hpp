// Where fields lie and models compute: on the CPU, or on a GPU if the program was built with CUDA and the machine
// has one.
// Only the names, and the one sentence that refuses: memory/cuda.hpp is what a program includes to have CUDA.
// No torch, no CUDA.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"

namespace dvla {

enum class Device : std::uint8_t { cpu, cuda };
constexpr const char* device_name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

struct DevicePoolOptions;
class DevicePools;

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
    throw ConfigError("memory.device is cuda, but no GPU can be used here: " + why + "; choose cpu");
}

}  // namespace dvla
