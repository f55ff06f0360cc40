// dvla-test: io
// ManiSkill's tasks through the bridge show, bit for bit, what they show in Python alone, resets among them. Skipped
// where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "dvla/environment/maniskill.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/recorded.hpp"

namespace {
dvla::ManiSkillKnobs knobs_of(const std::string& task) {
  dvla::ManiSkillKnobs knobs;
  knobs.python = dvla_test::simulator_python("maniskill");
  knobs.task = task;
  knobs.workers = 2;
  return knobs;
}
}  // namespace

TEST_CASE("PickCube shows the same bits as in Python alone") {
  const dvla_test::TemporaryFolder folder;
  dvla::ManiSkillKnobs knobs = knobs_of("PickCube-v1");
  knobs.control_mode = "pd_joint_delta_pos";
  knobs.max_episode_steps = 20;
  const auto recorded = dvla_test::record(
      "maniskill", knobs.task,
      {"--rows", "2", "--steps", "60", "--limit", "20", "--control-mode", knobs.control_mode}, folder.path());
  const auto agreed = dvla_test::replay<dvla::ManiSkillEnvironment>(recorded, knobs);
  for (const std::string& wrong : agreed.wrong) FAIL_CHECK(wrong);
}

TEST_CASE("ManiSkill keeps the promises of an environment, and speaks for itself where it refuses") {
  dvla::EnvironmentPool pool(std::size_t{8} << 20);
  dvla::ManiSkillKnobs knobs = knobs_of("PushCube-v1");
  knobs.environments = 4;
  knobs.max_episode_steps = 8;
  knobs.control_mode = "pd_ee_delta_pos";
  {
    dvla::ManiSkillEnvironment environment(knobs, pool);
    CHECK(environment.observation_spec().instructions ==
          std::vector<std::string>{"push the cube to the goal"});
    for (const auto& wrong : dvla::testing::check_environment(
             environment, {.rows = 2, .most_steps = 6, .largest_proprioception = 9}))
      FAIL_CHECK(wrong);
  }
  knobs.control_mode = "pd_telepathy";
  CHECK_THROWS_WITH_AS(dvla::ManiSkillEnvironment(knobs, pool), doctest::Contains("pd_telepathy"),
                       dvla::ConfigError);
  CHECK_THROWS_WITH_AS(dvla::ManiSkillEnvironment(knobs_of("PickClutterYCB-v1"), pool),
                       doctest::Contains("Would you like to download"), dvla::ConfigError);
  CHECK_THROWS_WITH_AS(dvla::ManiSkillEnvironment(knobs_of("NoSuch-v1"), pool), doctest::Contains("NoSuch"),
                       dvla::ConfigError);
}

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
