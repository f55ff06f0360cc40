// expect: dvla: a run makes this model with (const Knobs&, const dvla::ModelInputs&, std::uint64_t seed)
#include "whole.inc"

struct Mine : OwnModel {
  Mine(const dvla::testing::LinearKnobs& knobs, const dvla::ModelInputs& inputs)
      : OwnModel(knobs, inputs, 1) {}
};
template double train(const Whole::replace<Mine>::config&);
