// expect: dvla: the schedule lets weights grow older than the algorithm's max_staleness
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::BasicGRPO<dvla::Uncorrected>, dvla::Schedule<dvla::Swimlane<2>>>;
P::config config;
const auto text = P::describe();
