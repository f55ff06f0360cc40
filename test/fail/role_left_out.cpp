// expect: dvla: the placement must cover both roles, and has no rollouts or no actors
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::Placement<dvla::Separated<3, 0>>>;
P::config config;
const auto text = P::describe();
