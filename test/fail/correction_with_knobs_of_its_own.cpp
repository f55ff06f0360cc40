// expect: dvla: this staleness correction's knobs must derive from the algorithm's
#include <dvla/dvla.hpp>

struct HalfLife : dvla::Uncorrected {
  using knobs = dvla::NoKnobs;
};
using P = dvla::Pipeline<dvla::Toy, dvla::BasicGRPO<HalfLife>>;
const auto text = P::describe();
