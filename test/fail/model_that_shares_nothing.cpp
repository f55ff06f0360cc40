// expect: dvla: a run copies this model to sample from, and it has no constructor (const Model& original, dvla::ShareFrozen)
#include "whole.inc"

struct Mine : OwnModel {
  Mine(const dvla::testing::LinearKnobs& knobs, const dvla::ModelInputs& inputs, std::uint64_t seed)
      : OwnModel(knobs, inputs, seed) {}
};
template double train(const Whole::replace<Mine>::config&);
