// dvla-example: torch io
// A task of ManiSkill: a Franka arm pushes a cube to a goal, from states, with sparse success.
//
// One template parameter changes against the quickstart: the environment. It lives in worker processes of
// Python (or, by --embedded true, in this one), which write what they see into the trainer's own memory;
// `scripts/setup maniskill` makes their interpreter and brings a Vulkan driver for machines without a GPU.
// PushCube has a scripted expert for the warm start; other tasks want --demonstrations 0 and a dense reward
// (--reward-mode normalized_dense --filter-lower 0 --filter-upper 0: the filter is for returns of 0 and 1).
//
//   build/release/examples/maniskill --task PushCube-v1 --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/maniskill.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::ManiSkill, dvla::TinyVLA<dvla::TokenHead>>,
                         dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "maniskill";
  defaults.run.iterations = 60;
  defaults.run.demonstrations = 16;
  defaults.run.demonstration_noise = 0.3;
  defaults.run.imitation_check = 25;  // a look plays 64 episodes
  defaults.run.animation = false;  // --render true --animation true: pictures take SAPIEN 30 ms each on a CPU
  defaults.environment.environments = 64;
  defaults.environment.normalise_steps = 500;
  defaults.environment.task = "PushCube-v1";
  defaults.environment.control_mode = "pd_ee_delta_pos";
  defaults.environment.reward_mode = "sparse";
  defaults.environment.fast_reset = true;
  defaults.algorithm.learning_rate = 6e-4;
  defaults.algorithm.decay_batches = 60;
  defaults.algorithm.filter_lower = 0.01;
  defaults.algorithm.filter_upper = 0.99;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
