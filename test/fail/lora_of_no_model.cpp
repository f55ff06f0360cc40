// expect: dvla: LoRA<Model> wraps a model, and this is none
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::LoRA<dvla::GRPO>, dvla::GRPO>;
P::config config;
const auto text = P::describe();
