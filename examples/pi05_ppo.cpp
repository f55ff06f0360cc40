// dvla-example: torch mujoco io
// pi0.5 with PPO: examples/pi05 with a value head, which reads what PaliGemma makes of images and prompt, and generalised advantage
// estimation.
//
// Two template parameters change against examples/pi05: the model is wrapped in WithValue, and the algorithm is PPO. Noise, clipping,
// entropy bonus and learning rates are those of RLinf's preset for ManiSkill: every denoising step is noisy, as widely as a learned head says.
//
//   build/release/examples/pi05_ppo --random tiny --iterations 3 --overwrite true
#include <dvla/algorithm/ppo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/model/with_value.hpp>
#include <dvla/pipeline/experiment.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::WithValue<dvla::Pi05>>,
                         dvla::Trainer<dvla::PPO>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "pi05_ppo";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.run.evaluation_episodes = 8;
  defaults.run.animation = false;
  defaults.environment.environments = 8;
  defaults.environment.dense_reward = true;
  defaults.environment.camera_pixels = 224;
  defaults.model.chunk = 4;
  defaults.model.noise = dvla::FlowNoise::flow_noise;
  defaults.model.value_learning_rate = 19.6;  // 1.55e-4
  defaults.algorithm.learning_rate = 7.91e-6;
  defaults.algorithm.clip_high = 0.2;
  defaults.algorithm.entropy_bonus = 0.005;
  defaults.algorithm.micro_batch = 8;
  return dvla::experiment_main<P>(argc, argv, defaults);
}
