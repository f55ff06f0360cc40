// dvla-example: torch io
// Any environment with Gymnasium's interface, by its id: here a Fetch arm reaches for a point, with sparse success.
//
// One template parameter changes against the quickstart: the environment. It lives in worker processes of
// Python (or, by --embedded true, in this one), which write what they see into the trainer's own memory;
// `scripts/setup gymnasium` makes their interpreter. The warm start clones the environment's scripted expert;
// environments without one start at once (--demonstrations 0). An environment of your own needs no C++:
// --factory my_package.envs:make.
//
//   build/release/examples/gymnasium --id FetchReach-v4 --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/gymnasium.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Gymnasium, dvla::TinyVLA<dvla::TokenHead>>,
                         dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "gymnasium";
  defaults.run.iterations = 200;
  defaults.run.demonstrations = 4;
  defaults.run.demonstration_noise = 0.3;
  defaults.run.imitation_check = 25;  // a look plays 64 episodes
  defaults.environment.environments = 64;
  defaults.environment.normalise_steps = 1000;
  defaults.environment.render = true;
  defaults.algorithm.learning_rate = 6e-4;
  defaults.algorithm.decay_batches = 200;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
