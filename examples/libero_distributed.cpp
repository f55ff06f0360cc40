// dvla-example: torch c10d mujoco io
// LIBERO before pi0.5: GRPO under FSDP, weights over Gloo, as one process or as a job of several, started as
// examples/maniskill_distributed is. Frames of both cameras are turned as openpi turns them; docs/libero.md.
//
//   small="--suite spatial --tasks 0 --camera-pixels 64 --rendering fast --environment.horizon 20 --evaluation-episodes 0 --animation false"
//   build/libero/examples/libero_distributed --converted libero-tasks --random tiny $small --overwrite true
//   mpirun --oversubscribe -n 2 build/libero/examples/libero_distributed --converted libero-tasks --random tiny $small --overwrite true
//   mpirun -n 8 build/libero/examples/libero_distributed --converted libero-tasks --preset libero_grpo_pi05 --random full
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/libero.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/pipeline/job_main.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/fsdp.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::LIBERO, dvla::Pi05>, dvla::Trainer<dvla::GRPO, dvla::FSDP>,
                         dvla::ControlPlane<dvla::Gloo>>;

int main(int argc, char** argv) {
  dvla::Config<P> defaults;
  defaults.run.name = "libero_distributed";
  defaults.run.iterations = 3;
  defaults.run.demonstrations = 0;
  defaults.environment.environments = 8;
  defaults.environment.camera_pixels = 256;
  defaults.model.cameras = "base_0_rgb=agentview,left_wrist_0_rgb=robot0_eye_in_hand";
  defaults.model.discrete_state_input = false;  // as openpi's pi05_libero; lerobot's is true
  defaults.algorithm.group = 4;
  defaults.algorithm.micro_batch = 8;
  return dvla::job_main<P>(argc, argv, defaults);
}
