// expect: dvla: the model lacks a member, or has it with other types
// expect: model.imitate(
#include "whole.inc"

struct Mine : OwnModel {
  using OwnModel::OwnModel;
  void imitate() {}
};
template double train(const Whole::replace<Mine>::config&);
