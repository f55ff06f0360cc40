// expect: dvla: a stage word stands inside another one; write them side by side
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::Trainer<dvla::GRPO>>>;
P::config config;
const auto text = P::describe();
