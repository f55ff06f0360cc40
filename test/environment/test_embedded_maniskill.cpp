// dvla-test: io
// ManiSkill in this process's own Python shows, bit for bit, what it shows in Python alone. Skipped where scripts/setup
// maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <string>

#include "dvla/environment/maniskill.hpp"
#include "dvla/environment/python/embedded.hpp"
#include "test/environment/recorded.hpp"

TEST_CASE("PickCube, embedded, shows the same bits as in Python alone") {
  const dvla_test::TemporaryFolder folder;
  dvla::ManiSkillKnobs knobs;
  knobs.python = dvla_test::simulator_python("maniskill");
  knobs.embedded = true;
  knobs.task = "PickCube-v1";
  knobs.control_mode = "pd_joint_delta_pos";
  knobs.max_episode_steps = 20;
  const auto recorded = dvla_test::record(
      "maniskill", "PickCube-v1",
      {"--rows", "2", "--steps", "60", "--limit", "20", "--control-mode", "pd_joint_delta_pos"},
      folder.path());
  CHECK(recorded.steps == 60);
  const auto agreed = dvla_test::replay<dvla::ManiSkillEnvironment>(recorded, knobs);
  for (const std::string& wrong : agreed.wrong) FAIL_CHECK(wrong);
}

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
