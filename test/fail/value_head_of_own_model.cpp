// expect: dvla: WithValue<Model> wraps a model that makes a value head where ModelInputs::value_head asks for one
#include "whole.inc"

using P = Whole::replace<dvla::WithValue<dvla::testing::LinearModel>>;
P::config config;
const auto text = P::describe();
