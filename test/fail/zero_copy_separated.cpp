// expect: dvla: this data plane stays inside one process, and the placement separates
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::Placement<dvla::Separated<3, 1>>,
                         dvla::DataPlane<dvla::InProcess>>;
P::config config;
const auto text = P::describe();
