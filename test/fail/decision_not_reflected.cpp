// expect: dvla: the model's Decision is not reflected
#include "whole.inc"

struct Mine : OwnModel {
  struct Decision {
    dvla::Field<float> log_prob;
  };
};
template double train(const Whole::replace<Mine>::config&);
