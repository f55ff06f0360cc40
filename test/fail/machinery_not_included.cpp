// expect: its machinery is not included: add #include <dvla/environment/mujoco.hpp>
#include <dvla/dvla.hpp>
#include <dvla/pipeline/buildable.hpp>

using P = dvla::Pipeline<dvla::MuJoCo<dvla::Push>, dvla::GRPO>;
constexpr bool builds = dvla::buildable<P>();
