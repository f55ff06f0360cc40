// expect: dvla: this is not a policy; a policy is a complete struct with
#include <dvla/dvla.hpp>

using Whole = dvla::Pipeline<dvla::Toy, dvla::GRPO>;
using P = Whole::replace<double>;
P::config config;
const auto text = P::describe();
