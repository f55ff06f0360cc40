// expect: dvla: this algorithm has no update(model, weights, transition, decision, batch, before_step, trace)
#include "whole.inc"

struct Mine : Own<dvla::algorithm_slot> {
  Mine(const dvla::NoKnobs&, dvla::BatchShape, std::int64_t, std::uint64_t) {}
};
template double train(const Whole::replace<Mine>::config&);
