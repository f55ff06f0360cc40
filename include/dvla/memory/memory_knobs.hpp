// What users tune about the two pools.
#pragma once

#include <array>
#include <cstdint>

#include "dvla/core/knobs.hpp"

namespace dvla {

struct MemoryKnobs {
  std::int64_t environment_pool_mib = 64;  ///< bound of the environment pool: pre-faulted at the start
  std::int64_t model_pool_mib = 256;       ///< bound of the model pool: pages come as they are used
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::MemoryKnobs, environment_pool_mib, model_pool_mib);

template <>
inline constexpr auto dvla::knob_docs<dvla::MemoryKnobs> = std::to_array<dvla::KnobDoc>({
    {"environment_pool_mib", "bound of the pool of observations, trajectories and simulators", 1, 1048576,
     "MiB"},
    {"model_pool_mib", "bound of the pool of the model's tensors", 1, 1048576, "MiB"},
});
