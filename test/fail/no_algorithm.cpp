// expect: dvla: no algorithm is named, and it has no default; add Trainer<GRPO> or your own
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy>>;
const auto name = P::algorithm::name;
P::config config;
const auto text = P::describe();
