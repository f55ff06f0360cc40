// expect: dvla: Libero is declared but not built in this version; use MuJoCo<Task> or Toy
#include <dvla/dvla.hpp>
#include <dvla/pipeline/buildable.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Libero>, dvla::Trainer<dvla::GRPO, dvla::FSDP>,
                         dvla::ControlPlane<dvla::Gloo>>;  // composing it is fine
constexpr bool builds = dvla::buildable<P>();
