// dvla-example: torch mujoco io
// OpenVLA-OFT with low-rank adapters on a frozen base: two vision towers and a Llama that puts out a decision's action tokens at
// once, trained by GRPO on a MuJoCo task that it sees through a camera of 224 pixels. --random tiny is the same code at
// toy size, for a look at it in seconds; --random full has the published extents (7.5 billion parameters) and random weights:
//
//   build/release/examples/openvla_oft --random tiny --iterations 3 --overwrite true
//   build/release/examples/openvla_oft --random full --dtype bf16 --lora-rank 32 --environments 2 --group 2 --chunk 16
//     --micro-batch 1 --iterations 1 --evaluation-episodes 0 --overwrite true
//
// --checkpoint DIR in the place of --random: a published model's folder is the base (docs/vla_models.md).
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/openvla_oft.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::LoRA<dvla::OpenVLAOFT>>,
                         dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "openvla_oft";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 8;
  defaults.run.animation = false;
  defaults.environment.environments = 8;
  defaults.environment.dense_reward = true;
  defaults.environment.camera_pixels = 224;
  defaults.model.chunk = 4;
  defaults.model.lora_rank = 32;
  defaults.model.lora_alpha = 32;
  defaults.algorithm.group = 4;
  defaults.algorithm.micro_batch = 8;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
