// expect: dvla: this schedule has no static dvla::run_result run(stages, const dvla::run_options&, recorder)
#include "whole.inc"

struct Mine : Own<dvla::schedule_slot> {
  using knobs = dvla::SynchronousKnobs;
  template <class Stages>
  dvla::run_result run(Stages&, const dvla::run_options&) {
    return {};
  }
};
template double train(const Whole::replace<Mine>::config&);
