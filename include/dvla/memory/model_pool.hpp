// The model computation pool on the host: tensors that come and go in the same sizes every step. Paper: the
// dual pools' model side. What was freed last is given out first, so a step finds the pages of the step
// before. Pages come on first use. torch_allocator.hpp makes torch use it. Not for observations: those are
// born in the environment pool.
#pragma once

#include "dvla/memory/host_pool.hpp"

namespace dvla {

class ModelPool : public HostPool {
 public:
  explicit ModelPool(std::size_t bytes) : HostPool(options(bytes)) {}
  static PoolOptions options(std::size_t bytes) {
    return {.name = "model pool", .bytes = bytes, .knob = "--model-pool-mib"};
  }
};

}  // namespace dvla
