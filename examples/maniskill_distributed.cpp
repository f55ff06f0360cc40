// dvla-example: torch c10d io
// The line that the paper's readers write first: ManiSkill, GRPO under FSDP, weights over Gloo. PickCube from states
// with a dense reward, as one process or as a job of several.
//
// Alone it is a job of one. Started by torchrun, mpirun, srun or shells, all ranks sample and train, and share
// environments and weights; each rank's environments live in worker processes of its own.
//
//   build/release/examples/maniskill_distributed --overwrite true
//   mpirun --oversubscribe -n 2 build/release/examples/maniskill_distributed --workers 1 --overwrite true
//   torchrun --no-python --nproc-per-node 2 build/release/examples/maniskill_distributed --workers 1 --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/maniskill.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/job_main.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/fsdp.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::ManiSkill>, dvla::Trainer<dvla::GRPO, dvla::FSDP>,
                         dvla::ControlPlane<dvla::Gloo>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "maniskill_distributed";
  defaults.run.iterations = 20;
  defaults.run.demonstrations = 0;
  defaults.run.animation = false;
  defaults.environment.environments = 32;
  defaults.environment.normalise_steps = 500;
  defaults.environment.task = "PickCube-v1";
  defaults.environment.control_mode = "pd_joint_delta_pos";
  defaults.environment.reward_mode = "normalized_dense";
  defaults.environment.fast_reset = true;
  defaults.algorithm.learning_rate = 3e-4;
  return dvla::job_main<P>(argc, argv, defaults);
}
