// expect: dvla: two policies fill the same slot; name only one of them
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy>, dvla::Trainer<dvla::GRPO>, dvla::MuJoCo<dvla::Push>>;
P::config config;
const auto text = P::describe();
