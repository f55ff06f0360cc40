// dvla-example: torch mujoco io
// LIBERO's tasks, natively: a Franka arm before two cameras, sparse success, no Python at run time.
//
// One template parameter changes against the quickstart: the environment. `scripts/setup libero` brings the original and MuJoCo 3.3.2,
// which it is played with; `scripts/convert_libero` writes, once, the folder that this reads. Episodes of training begin from
// initial states by their seed; an evaluation plays task x state, each once. A small model from scratch solves none of these tasks: this
// shows what a policy sees and what it costs; docs/libero.md says how the published models see it.
//
//   scripts/setup libero && .venv-libero/bin/python scripts/convert_libero libero --suite spatial --task 0
//   cmake --preset libero && cmake --build --preset libero --target libero
//   build/libero/examples/libero --converted libero --suite spatial --tasks 0 --overwrite true
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
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 8;
  defaults.environment.environments = 8;
  defaults.environment.camera_pixels = 64;
  defaults.environment.rendering = dvla::LiberoRendering::fast;
  defaults.model.chunk = 8;
  defaults.algorithm.group = 4;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
