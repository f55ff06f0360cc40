// expect: dvla: this algorithm's update returns something else than dvla::UpdateStats
#include "whole.inc"

struct Mine : Own<dvla::algorithm_slot> {
  Mine(const dvla::NoKnobs&, dvla::BatchShape, std::int64_t, std::uint64_t) {}
  template <class Model, class Weights, class BeforeStep, class Trace>
  double update(Model&, Weights&, const dvla::Transition&, const typename Model::Decision&, std::int64_t,
                BeforeStep, Trace&) {
    return 0;
  }
};
template double train(const Whole::replace<Mine>::config&);
