// expect: dvla: Separated<Rollouts, Actors> needs shares of at least 0
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::Placement<dvla::Separated<-1, 1>>>;
P::config config;
const auto text = P::describe();
