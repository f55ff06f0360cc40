// dvla-example: torch mujoco io
// pi0.5 with low-rank adapters on a frozen base: examples/pi05 with LoRA around the model. At the published extents in bfloat16 a
// group of two episodes of one decision trains within 9 GiB:
//
//   build/release/examples/pi05_lora --random full --dtype bf16 --gradient-checkpointing true --environments 2 --group 2
//     --chunk 16 --model.horizon 16 --micro-batch 1 --global-batch 0 --iterations 1 --evaluation-episodes 0 --overwrite true
//
// --checkpoint DIR in the place of --random: a published model's folder is the base (docs/vla_models.md).
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::LoRA<dvla::Pi05>>,
                         dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "pi05_lora";
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
