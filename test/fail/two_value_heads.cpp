// expect: dvla: WithValue<Model> gives a model a value head, and this one has one already
#include <dvla/dvla.hpp>

using P =
    dvla::Pipeline<dvla::Toy, dvla::WithValue<dvla::LoRA<dvla::WithValue<dvla::TinyVLA<>>>>, dvla::GRPO>;
P::config config;
const auto text = P::describe();
