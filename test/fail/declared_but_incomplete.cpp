// expect: dvla: this is not a policy; a policy is a complete struct with
#include <dvla/dvla.hpp>

struct MyEnvironment;  // its header is not included
using P = dvla::Pipeline<dvla::Sampler<MyEnvironment>, dvla::Trainer<dvla::GRPO>>;
P::config config;
const auto text = P::describe();
