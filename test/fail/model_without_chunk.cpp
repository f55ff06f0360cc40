// expect: dvla: a run reads the number of actions a decision from the model's knob `chunk`
#include "whole.inc"

struct Mine : OwnModel {
  using knobs = dvla::NoKnobs;
};
template double train(const Whole::replace<Mine>::config&);
