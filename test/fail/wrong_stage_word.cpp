// expect: dvla: this policy does not fill the slot of the stage word around it
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::DataPlane<dvla::Gloo>>;
P::config config;
const auto text = P::describe();
