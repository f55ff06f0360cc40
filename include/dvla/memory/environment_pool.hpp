// The environment auxiliary pool on the host: simulator temporaries, observations, frames and trajectories.
// Paper: the dual pools' auxiliary side. One mapping, which a simulator's process can be given; a run brings
// the pages that its plan names (pipeline/memory_plan.hpp) before it starts, since fresh ones cost 5 to 14
// times the copy itself. Blocks coalesce when freed, so odd sizes do not wear it out. Not for the model's
// tensors.
#pragma once

#include "dvla/memory/host_pool.hpp"

namespace dvla {

class EnvironmentPool : public HostPool {
 public:
  explicit EnvironmentPool(std::size_t bytes) : HostPool(options(bytes)) {}
  static PoolOptions options(std::size_t bytes) {
    return {.name = "environment pool", .bytes = bytes, .knob = "--environment-pool-mib", .shared = true};
  }
};

}  // namespace dvla
