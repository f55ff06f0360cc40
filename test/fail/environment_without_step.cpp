// expect: dvla: the environment lacks a member, or has it with other types
#include "machinery.inc"

constexpr bool builds = dvla::buildable<With<OwnEnvironment, Own<dvla::model_slot>>>();
