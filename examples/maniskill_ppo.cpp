// dvla-example: torch io
// ManiSkill's PushCube learned with PPO: examples/maniskill with a value head and generalised advantage estimation.
//
// Two template parameters change against examples/maniskill: the model is wrapped in WithValue, and the algorithm is PPO.
//
//   build/release/examples/maniskill_ppo --seed 2 --overwrite true
#include <dvla/algorithm/ppo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/maniskill.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/model/with_value.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::ManiSkill, dvla::WithValue<dvla::TinyVLA<dvla::TokenHead>>>,
                         dvla::Trainer<dvla::PPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "maniskill_ppo";
  defaults.run.iterations = 130;
  defaults.run.demonstrations = 16;
  defaults.run.demonstration_noise = 0.3;
  defaults.run.imitation_check = 50;  // a look plays 64 episodes
  defaults.run.animation = false;
  defaults.environment.environments = 64;
  defaults.environment.normalise_steps = 500;
  defaults.environment.task = "PushCube-v1";
  defaults.environment.control_mode = "pd_ee_delta_pos";
  defaults.environment.reward_mode = "sparse";
  defaults.environment.fast_reset = true;
  defaults.algorithm.learning_rate = 6e-4;
  defaults.algorithm.decay_batches = 160;
  defaults.algorithm.beta2 = 0.999;
  defaults.algorithm.value_coefficient = 0.5;
  defaults.algorithm.bootstrap = false;  // the task is to succeed within the horizon
  return dvla::experiment_main<P>(argc, argv, defaults);
}
