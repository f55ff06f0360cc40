// expect: dvla: this control plane stays inside one process, and the placement separates
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::Placement<dvla::Separated<>>,
                         dvla::ControlPlane<dvla::InProcess>>;
P::config config;
const auto text = P::describe();
