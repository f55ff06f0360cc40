// expect: dvla: a run makes this environment with (const Knobs&, std::pmr::memory_resource&)
#include "whole.inc"

struct Mine : OwnEnvironment {
  explicit Mine(const dvla::ToyKnobs& knobs) : OwnEnvironment(knobs, *std::pmr::new_delete_resource()) {}
};
template double train(const Whole::replace<Mine>::config&);
