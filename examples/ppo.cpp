// dvla-example: torch mujoco io
// The quickstart's task learned with PPO: a value head beside the action head says what an observation is worth, and
// advantages come from generalised advantage estimation instead of groups.
//
// Two template parameters change against the quickstart: the model is wrapped in WithValue, and the algorithm is PPO.
// Rows may begin another episode where one ends (--auto-reset), since nothing compares episodes of a group.
//
//   build/release/examples/ppo --seed 2 --overwrite true
#include <dvla/algorithm/ppo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/model/with_value.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using Push =
    dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::WithValue<dvla::TinyVLA<dvla::TokenHead>>>,
                   dvla::Trainer<dvla::PPO>>;

int main(int argc, char** argv) {
  dvla::Config<Push> defaults;
  defaults.run.name = "ppo";
  defaults.run.iterations = 150;
  // From 64 some seeds stay where one of the two targets is reached from near alone.
  defaults.run.demonstrations = 256;
  defaults.run.demonstration_noise = 0.2;
  defaults.environment.environments = 256;
  defaults.algorithm.learning_rate = 6e-4;
  defaults.algorithm.decay_batches = 150;
  defaults.algorithm.beta2 = 0.999;
  defaults.algorithm.value_coefficient = 0.5;
  defaults.algorithm.bootstrap = false;  // the task is to succeed within the horizon
  return dvla::experiment_main<Push>(argc, argv, defaults);
}
