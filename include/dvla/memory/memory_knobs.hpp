// What users tune about the two pools, and where models compute.
#pragma once

#include <array>
#include <cstdint>

#include "dvla/core/device.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

struct MemoryKnobs {
  std::int64_t environment_pool_mib = 0;  ///< at most; 0: as much as the machine has
  std::int64_t model_pool_mib = 0;        ///< at most; 0: as much as the machine has
  Device device = Device::cpu;            ///< where the model computes
  std::int64_t cuda_environment_pool_mib =
      256;  ///< bounds of the same two in the GPU's memory, if device is cuda
  std::int64_t cuda_model_pool_mib = 4096;
};

}  // namespace dvla

template <std::same_as<dvla::MemoryKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::environment_pool_mib, &K::model_pool_mib, &K::device, &K::cuda_environment_pool_mib,
                    &K::cuda_model_pool_mib> {};

template <>
inline constexpr auto dvla::knob_docs<dvla::MemoryKnobs> = std::to_array<dvla::KnobDoc>({
    {"environment_pool_mib",
     "most that the pool of observations, trajectories and simulators may take; 0: what the machine has", 0,
     1048576, "MiB"},
    {"model_pool_mib", "most that the pool of the model's tensors may take; 0: what the machine has", 0,
     1048576, "MiB"},
    {"device", "where the model computes; environments always step on the CPU"},
    {"cuda_environment_pool_mib", "with device cuda: bound of the GPU's pool of observations and actions", 1,
     1048576, "MiB"},
    {"cuda_model_pool_mib", "with device cuda: bound of the GPU's pool of the model's tensors", 1, 1048576,
     "MiB"},
});
