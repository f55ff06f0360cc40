// dvla-example: torch c10d mujoco io
// pi0.5 with low-rank adapters as a job of processes that share the frozen base, too: FSDP with `shard_frozen`. Its ranks sample and
// train by turns (Synchronous), so that each samples from the trainer's own model, which is whole only then; while they train each has
// its part, and the units at work. At the published extents in bfloat16 two processes train a group of two episodes each within
// 10 GiB a process:
//
//   mpirun --oversubscribe -n 2 build/release/examples/pi05_sharded --random tiny --overwrite true
//   mpirun --oversubscribe -n 2 build/release/examples/pi05_sharded --random full --dtype bf16 --gradient-checkpointing true
//     --environments 4 --group 2 --chunk 16 --model.horizon 16 --micro-batch 1 --global-batch 0 --iterations 1 --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/pipeline/job_main.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/sharding/fsdp.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::LoRA<dvla::Pi05>>,
                         dvla::Trainer<dvla::GRPO, dvla::FSDP>, dvla::Schedule<dvla::Synchronous>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "pi05_sharded";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 0;
  defaults.run.animation = false;
  defaults.environment.environments = 8;
  defaults.environment.dense_reward = true;
  defaults.environment.camera_pixels = 224;
  defaults.model.chunk = 4;
  defaults.algorithm.group = 4;
  defaults.algorithm.micro_batch = 4;
  defaults.sharding.shard_frozen = true;
  return dvla::job_main<P>(argc, argv, defaults);
}
