// dvla-test: io
// ManiSkill in this process's own Python shows, bit for bit, what it shows in Python alone. Skipped where scripts/setup
// maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "dvla/environment/python/embedded.hpp"
#include "test/environment/played.hpp"
#include "test/environment/recorded.hpp"

TEST_CASE("PickCube, embedded, shows the same bits as in Python alone") {
  const auto agreed = dvla_test::agrees(
      {.task = "PickCube-v1", .control_mode = "pd_joint_delta_pos", .rows = 2, .steps = 60, .limit = 20},
      true);
  CHECK(agreed.numbers > 0);
}

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
