// MuJoCo tasks as environments: the machinery (MujocoBatch) and the tasks that ship. Needs the C library of
// the `mujoco` wheel; no torch. A task of your own is a struct that satisfies MujocoTask (mujoco/task.hpp).
#pragma once

#include "dvla/environment/concept.hpp"
#include "dvla/environment/descriptors.hpp"
#include "dvla/environment/mujoco/batch.hpp"
#include "dvla/environment/mujoco/pick_and_place.hpp"
#include "dvla/environment/mujoco/push.hpp"
#include "dvla/environment/mujoco/reach.hpp"

namespace dvla {

template <class Task, class Pipeline>
struct machinery<MuJoCo<Task>, Pipeline> {
  using type = MujocoBatch<Task>;
};

static_assert(EnvironmentMachinery<MujocoBatch<Push>> && HasExpert<MujocoBatch<Push>> &&
              HasRender<MujocoBatch<Push>>);

}  // namespace dvla
