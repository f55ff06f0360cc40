// expect: dvla: Swimlane<Max> needs a staleness bound from 0 (synchronous) to 1024
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::Schedule<dvla::Swimlane<-1>>>;
P::config config;
const auto text = P::describe();
