// SinglePool's machinery: one pool for simulator and model, of both bounds together: the baseline that
// DualPool is measured against (bench/memory). Paper: the ablation without dual pools. Same members as
// DualPoolMachinery.
#pragma once

#include "dvla/core/machinery.hpp"
#include "dvla/memory/descriptors.hpp"
#include "dvla/memory/dual_pool.hpp"

namespace dvla {

class SinglePoolMachinery : public detail::Pools {
 public:
  explicit SinglePoolMachinery(const MemoryKnobs& knobs)
      : Pools({{.name = "single pool",
                .bytes = detail::host_pool_bytes(knobs.environment_pool_mib, knobs.device,
                                                 "--environment-pool-mib") +
                         detail::host_pool_bytes(knobs.model_pool_mib, knobs.device, "--model-pool-mib"),
                .knob = "--environment-pool-mib or --model-pool-mib"}},
              knobs.device,
              {{.name = "CUDA pool",
                .bytes = detail::pool_bytes(knobs.cuda_environment_pool_mib, "--cuda-environment-pool-mib") +
                         detail::pool_bytes(knobs.cuda_model_pool_mib, "--cuda-model-pool-mib"),
                .knob = "--cuda-environment-pool-mib or --cuda-model-pool-mib"}}) {}
};

template <class Pipeline>
struct machinery<SinglePool, Pipeline> {
  using type = SinglePoolMachinery;
};

}  // namespace dvla
