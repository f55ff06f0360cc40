// expect: dvla: the environment has no scripted expert, so there is nothing for warm_start() to clone
#include "whole.inc"

struct Mine : OwnEnvironment {
  using OwnEnvironment::OwnEnvironment;
  void expert() {}
};
dvla::WarmStartResult clone(dvla::Run<Whole::replace<Mine>>& run) { return run.warm_start(); }
