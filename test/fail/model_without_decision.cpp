// expect: dvla: the model has no `Decision`
#include "whole.inc"

struct Mine : Own<dvla::model_slot> {};
template double train(const Whole::replace<Mine>::config&);
