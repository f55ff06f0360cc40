// expect: dvla: a run reads sampling_threads, training_threads, sampling_stages and deadline_s of a schedule
#include "whole.inc"

struct Mine : Own<dvla::schedule_slot>, dvla::SynchronousRunner {};
template double train(const Whole::replace<Mine>::config&);
