// dvla-example: torch c10d io
// The paper's line with its model: ManiSkill, pi0.5, GRPO under FSDP, weights over Gloo. PickCube from pictures with a dense
// reward, as one process or as a job of several, started as examples/maniskill_distributed is.
//
//   build/release/examples/pi05_distributed --random tiny --overwrite true
//   mpirun --oversubscribe -n 2 build/release/examples/pi05_distributed --random tiny --workers 1 --overwrite true
//   mpirun -n 8 build/release/examples/pi05_distributed --preset maniskill_grpo_pi05 --random full
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/maniskill.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/pipeline/job_main.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/fsdp.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::ManiSkill, dvla::Pi05>, dvla::Trainer<dvla::GRPO, dvla::FSDP>,
                         dvla::ControlPlane<dvla::Gloo>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "pi05_distributed";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 0;
  defaults.run.animation = false;
  defaults.environment.environments = 8;
  defaults.environment.task = "PickCube-v1";
  defaults.environment.obs_mode = "rgb";
  defaults.environment.max_episode_steps = 10;
  defaults.environment.reward_mode = "normalized_dense";
  defaults.environment.fast_reset = true;
  defaults.algorithm.group = 4;
  defaults.algorithm.micro_batch = 8;
  return dvla::job_main<P>(argc, argv, defaults);
}
