// LIBERO's tasks in native MuJoCo: `Sampler<LIBERO>`. No Python runs; scripts/convert_libero has written a folder of the original's
// models, states and goals once (docs/libero.md). Needs the C library of the mujoco wheel of the folder's version. Paper: one
// of the two simulators.
#pragma once

#include "dvla/environment/concept.hpp"
#include "dvla/environment/descriptors.hpp"
#include "dvla/environment/libero/batch.hpp"

namespace dvla {

template <class Pipeline>
struct machinery<LIBERO, Pipeline> {
  using type = LiberoBatch;
};

static_assert(EnvironmentMachinery<LiberoBatch> && HasCases<LiberoBatch> && HasExpert<LiberoBatch> &&
              HasRender<LiberoBatch> && HasStaticSpec<LiberoBatch, LiberoKnobs> &&
              HasConventions<LiberoBatch, LiberoKnobs> && HasOutsideBytes<LiberoBatch>);

}  // namespace dvla
