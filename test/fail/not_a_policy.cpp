// expect: dvla: this is not a policy; a policy is a complete struct with
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, int>;
P::config config;
const auto text = P::describe();
