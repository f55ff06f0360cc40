// expect: dvla: the algorithm needs values, and the model has no value head
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::TinyVLA<>>, dvla::Trainer<dvla::PPO>>;
P::config config;
const auto text = P::describe();
