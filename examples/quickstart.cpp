// dvla-example: torch mujoco io
// Quickstart: a small vision-language-action model learns to push a cube to the target that its instruction
// names.
//
// A pipeline is nine policies, composed at compile time; three are named here, the other six have defaults
// that `--help` and the first lines of output show. The program clones a noisy scripted expert until it
// succeeds sometimes, then trains with GRPO on sparse success under the four-lane swimlane schedule, and
// leaves everything in runs/push: curves, animations, trace, report and a checkpoint that examples/evaluate
// loads.
//
//   build/release/examples/quickstart --iterations 100 --group 16 --overwrite true
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using Quickstart = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>,
                                  dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

int main(int argc, char** argv) {
  dvla::Config<Quickstart> defaults;
  defaults.run.name = "push";
  defaults.run.iterations = 200;
  defaults.run.demonstrations = 64;
  defaults.run.demonstration_noise = 0.2;
  defaults.environment.environments = 256;
  defaults.algorithm.learning_rate = 6e-4;
  defaults.algorithm.decay_batches = 200;  // a constant rate wanders off again in some seeds
  defaults.algorithm.beta2 = 0.999;
  defaults.algorithm.filter_lower = 0.01;  // groups that always fail or always succeed teach nothing
  defaults.algorithm.filter_upper = 0.99;
  return dvla::experiment_main<Quickstart>(argc, argv, defaults);
}
