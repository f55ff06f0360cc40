// LoRA: low-rank adapters train beside a frozen base, in bfloat16 if asked for.
//
// The quickstart's task with one template parameter more: LoRA<Model> freezes a model and trains adapters
// beside its linear layers. Copies of the model share the frozen weights, and only what trains has gradients,
// float32 masters and moments, so memory grows with the base by 2 bytes a parameter in bfloat16. The run says
// what it is about to take before it takes it. The adapters of a base that has learned something come from a
// checkpoint of the quickstart (--base-checkpoint runs/push); without one the base is random.
//
//   build/release/examples/lora --base-checkpoint runs/push --iterations 50 --overwrite true
//   build/release/examples/lora --width 2048 --blocks 24 --dtype bf16 --environments 16 --group 4
//       --demonstrations 0 --dense-reward true --overwrite true           (1.06 billion parameters)
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using Adapters =
    dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::LoRA<dvla::TinyVLA<dvla::TokenHead>>>,
                   dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

int main(int argc, char** argv) {
  dvla::Config<Adapters> defaults;
  defaults.run.name = "lora";
  defaults.run.iterations = 2;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 0;  // a pass of all environments is dear where the model is large
  defaults.run.animation = false;
  defaults.algorithm.epochs = 1;
  defaults.algorithm.micro_batch = 32;
  defaults.algorithm.global_batch = 64;
  defaults.algorithm.learning_rate = 1e-3;
  defaults.schedule.deadline_s = 600;
  return dvla::experiment_main<Adapters>(argc, argv, defaults);
}
