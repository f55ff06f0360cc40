// dvla-test: io
// ManiSkill's tasks through the bridge show, bit for bit, what they show in Python alone, resets among them. Skipped
// where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
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
void agrees(const std::string& task, const std::string& mode, int steps, int limit) {
  CAPTURE(task);
  const dvla_test::TemporaryFolder folder;
  dvla::ManiSkillKnobs knobs = knobs_of(task);
  knobs.control_mode = mode;
  knobs.max_episode_steps = limit;
  const auto recorded = dvla_test::record("maniskill", task,
                                          {"--rows", "2", "--steps", std::to_string(steps), "--limit",
                                           std::to_string(limit), "--control-mode", mode},
                                          folder.path());
  for (const std::string& wrong : dvla_test::replay<dvla::ManiSkillEnvironment>(recorded, knobs))
    FAIL_CHECK(wrong);
}
}  // namespace

TEST_CASE("PickCube shows the same bits as in Python alone") {
  agrees("PickCube-v1", "pd_joint_delta_pos", 60, 20);
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

int main(int argc, char** argv) {
  if (dvla_test::simulator_python("maniskill").empty()) {
    std::puts("skipped: .venv-maniskill is not there; scripts/setup maniskill makes it");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
