// expect: dvla: BasicGRPO<Correction> needs a staleness correction, and this is none
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::BasicGRPO<int>>;
P::config config;
const auto text = P::describe();
