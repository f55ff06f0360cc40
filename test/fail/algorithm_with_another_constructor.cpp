// expect: dvla: a run makes this algorithm with (knobs, dvla::BatchShape, std::int64_t action dimensions,
#include "whole.inc"

struct Mine : Own<dvla::algorithm_slot> {
  explicit Mine(const dvla::NoKnobs&) {}
  template <class Model, class Weights, class BeforeStep, class Trace>
  dvla::UpdateStats update(Model&, Weights&, const dvla::Transition&, const typename Model::Decision&,
                           std::int64_t, BeforeStep, Trace&) {
    return {};
  }
};
template double train(const Whole::replace<Mine>::config&);
