// Gymnasium: any environment with Gymnasium's interface, by its id or by a factory of the user's, in Python
// (environment/python/batch.hpp: worker processes, or embedded). `scripts/setup gymnasium` makes an interpreter that has it.
#pragma once

#include <memory_resource>

#include "dvla/environment/descriptors.hpp"
#include "dvla/environment/python/batch.hpp"

namespace dvla {

/// Thread-safety and errors as PythonBatch says.
class GymnasiumEnvironment : public PythonBatch {
 public:
  /// `pool` must outlive this.
  GymnasiumEnvironment(const GymnasiumKnobs& knobs, std::pmr::memory_resource& pool)
      : PythonBatch("gymnasium", knobs, pool) {}
};

template <class Pipeline>
struct machinery<Gymnasium, Pipeline> {
  using type = GymnasiumEnvironment;
};

}  // namespace dvla
