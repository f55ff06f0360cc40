// expect: dvla: WithValue<Model> wraps a model, and this is none
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::WithValue<dvla::Toy>, dvla::GRPO>;
P::config config;
const auto text = P::describe();
