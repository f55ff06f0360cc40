#include <doctest/doctest.h>

#include "dvla/model/concept.hpp"

using dvla::Device;

namespace {
struct OnTheHost {};
struct OnTheGpu {
  static constexpr Device reads_on = Device::cuda;
};
}  // namespace

TEST_CASE("An environment's fields must lie where the model reads them") {
  dvla::ObservationSpec spec;
  spec.cameras = {{"top", 4, 6}, {"wrist", 2, 2, Device::cuda}};
  spec.proprioception = 3;
  spec.proprioception_device = Device::cuda;
  const auto check = [&](Device read) { dvla::check_devices(spec, "Somewhere", read, "Reader"); };
  CHECK_THROWS_WITH_AS(
      check(dvla::reads_on<OnTheHost>),
      "the environment Somewhere gives the frames of its camera 'wrist' on cuda, and the model "
      "Reader reads it on cpu; choose others of one device",
      dvla::ConfigError);
  CHECK_THROWS_WITH_AS(check(dvla::reads_on<OnTheGpu>),
                       "the environment Somewhere gives the frames of its camera 'top' on cpu, and the model "
                       "Reader reads it on cuda; choose others of one device",
                       dvla::ConfigError);
  spec.cameras[0].device = Device::cuda;
  check(Device::cuda);
  spec.cameras.clear();
  CHECK_THROWS_WITH_AS(
      check(Device::cpu),
      "the environment Somewhere gives its proprioception on cuda, and the model Reader reads it "
      "on cpu; choose others of one device",
      dvla::ConfigError);
  spec.proprioception = 0;  // there is none, so it lies nowhere
  check(Device::cpu);
}
