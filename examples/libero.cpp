// dvla-example: torch mujoco io
// LIBERO's tasks, natively: a Franka arm before two cameras, sparse success, no Python at run time.
//
// One template parameter changes against the quickstart: the environment. `scripts/setup libero` brings the original and MuJoCo 3.3.2,
// which it is played with; `scripts/convert_libero` writes, once, the folder that this reads. Episodes of training begin from
// initial states by their seed. By default a small model is trained on one task from what the arm feels, without cameras: it clones a scripted
// expert, and GRPO goes on from there; a few minutes on two idle cores. It does not solve the task reliably, and less with both cameras
// (--camera-pixels 64 --patch 16): docs/libero.md has the numbers, and how the published models see LIBERO.
//
//   scripts/setup libero && .venv-libero/bin/python scripts/convert_libero libero-tasks --suite spatial --task 0
//   cmake --preset libero && cmake --build --preset libero --target libero
//   build/libero/examples/libero --converted libero-tasks --action-statistics examples/libero_units.json --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/libero.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P =
    dvla::Pipeline<dvla::Sampler<dvla::LIBERO, dvla::TinyVLA<dvla::TokenHead>>, dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "libero";
  defaults.run.iterations = 20;
  defaults.run.demonstrations = 16;
  defaults.run.demonstration_noise = 0.1;
  defaults.run.imitation_steps = 600;
  defaults.run.imitation_check = 200;
  defaults.run.imitation_target = 0.2;
  defaults.run.evaluation_episodes = 16;
  defaults.environment.environments = 16;
  defaults.environment.tasks = "0";
  defaults.environment.horizon = 96;
  defaults.environment.rendering = dvla::LiberoRendering::fast;
  defaults.model.width = 64;
  defaults.model.blocks = 2;
  defaults.model.chunk = 8;
  defaults.algorithm.group = 4;
  defaults.algorithm.learning_rate = 3e-4;
  defaults.algorithm.filter_lower = 0.01;  // groups that always fail or always succeed teach nothing
  defaults.algorithm.filter_upper = 0.99;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
