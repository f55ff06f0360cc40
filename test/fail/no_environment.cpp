// expect: dvla: no environment is named, and it has no default
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Trainer<dvla::GRPO>>;
P::config config;
const auto text = P::describe();
