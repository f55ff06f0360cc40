// expect: dvla: the sharding spans processes, and the data plane that is named stays inside one
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::Trainer<dvla::GRPO, dvla::FSDP>, dvla::DataPlane<dvla::InProcess>>;
P::config config;
const auto text = P::describe();
