// expect: dvla: the model lacks a member, or has it with other types
// expect: model.act(
#include "whole.inc"

struct Mine : OwnModel {
  using OwnModel::OwnModel;
  void act(const dvla::Observation&, std::uint64_t, Decision&, dvla::Field<float>) {}
};
template double train(const Whole::replace<Mine>::config&);
