// dvla-example: torch mujoco io
// SmolVLA in the pipeline: SmolVLM2 with a flow-matching action expert, trained by GRPO on a MuJoCo task that it sees through a
// camera of 224 pixels. Against the quickstart two template parameters change: the model, and the
// environment's camera. --random tiny is the same code at toy size, for a look at it in seconds; --random full has the
// published extents (0.45 billion parameters) and random weights, in --dtype bf16 with --train expert or under LoRA.
//
//   build/release/examples/smolvla --random tiny --iterations 3 --overwrite true
//   build/release/examples/smolvla --checkpoint DIR --chunk 10      a published model's folder: docs/vla_models.md
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/smolvla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::SmolVLA>, dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "smolvla";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 8;
  defaults.run.animation = false;
  defaults.environment.environments = 8;
  defaults.environment.dense_reward = true;
  defaults.environment.camera_pixels = 224;
  defaults.model.chunk = 4;
  defaults.algorithm.group = 4;
  defaults.algorithm.micro_batch = 8;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
