// expect: dvla: InProcess fills either plane; say which: DataPlane<InProcess>
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::InProcess>;
P::config config;
const auto text = P::describe();
