// expect: dvla: the environment lacks a member, or has it with other types
// expect: environment.step(
#include "whole.inc"

struct Mine : OwnEnvironment {
  void step() {}
};
template double train(const Whole::replace<Mine>::config&);
