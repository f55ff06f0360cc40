// dvla-example: torch mujoco io
// The quickstart's task learned with PPO: a value head beside the action head says what an observation is worth, and
// advantages come from generalised advantage estimation instead of groups.
//
// Two template parameters change against the quickstart: the model is wrapped in WithValue, and the algorithm is PPO.
// Rows may begin another episode where one ends (--auto-reset), since nothing compares episodes of a group.
//
//   build/release/examples/ppo --iterations 100 --overwrite true
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
  defaults.run.iterations = 120;
  defaults.run.demonstrations = 64;
  defaults.run.demonstration_noise = 0.2;
  defaults.environment.environments = 256;
  defaults.algorithm.learning_rate = 3e-4;
  defaults.algorithm.decay_batches = 100;  // at a constant rate success falls again after its peak
  defaults.algorithm.beta2 = 0.999;
  return dvla::experiment_main<Push>(argc, argv, defaults);
}
