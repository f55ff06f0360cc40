// MuJoCo tasks as environments: the machinery (MujocoBatch) and the tasks that ship. Needs the C library of
// the `mujoco` wheel; no torch. A task of your own is a struct that satisfies MujocoTask (mujoco/task.hpp).
#pragma once

#include "dvla/environment/concept.hpp"
#include "dvla/environment/mujoco/batch.hpp"
#include "dvla/environment/mujoco/push.hpp"

namespace dvla {

static_assert(EnvironmentMachinery<MujocoBatch<PushTask>> && HasExpert<MujocoBatch<PushTask>> &&
              HasRender<MujocoBatch<PushTask>>);

}  // namespace dvla
