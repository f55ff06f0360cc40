// dvla-test: io
// ManiSkill's tasks through the bridge show, bit for bit, what they show in Python alone, resets among them. Skipped
// where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "dvla/environment/maniskill.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/recorded.hpp"
#include "test/environment/world.hpp"

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

TEST_CASE("All rows in one instance, as on a GPU: each begins by its own seed alone, none waits for others") {
  ::setenv("PYTHONPATH", DVLA_TEST_DIR "/environment", 1);
  dvla::ManiSkillKnobs knobs = knobs_of("instance_stub:Together-v0");
  knobs.workers = 0;
  knobs.environments = 4;
  knobs.sim_backend = "physx_cuda";
  knobs.fast_reset = true;
  using World = dvla_test::World<dvla::ManiSkillEnvironment>;
  World world(knobs, 1);
  CHECK(world.environment.horizon() == 6);
  const auto shown = [&](std::int64_t row, std::int64_t i) {
    return world.seen().proprioception[3 * row + i];
  };
  world.reset(100);  // seed % 7 is 2, 3, 4, 5
  std::vector<float> drawn;
  for (const std::int64_t row : world.everybody) {
    CHECK(shown(row, 0) == static_cast<float>(row + 2) / 8);
    drawn.push_back(shown(row, 1));
  }
  std::fill_n(world.all->action.data(), 4, 0.25F);
  CHECK(world.step(world.everybody) == 4);
  world.reset(101, {3});  // while others are in their episodes
  CHECK(shown(3, 0) == 3.0F / 8);
  CHECK(shown(3, 1) == drawn[1]);
  CHECK(shown(3, 2) == 0);
  CHECK(world.step(world.everybody) == 4);
  CHECK(shown(0, 0) == 0.75F);
  CHECK(shown(0, 2) == 2);
  CHECK(shown(3, 2) == 1);
  CHECK(world.step(world.everybody) == 3);  // row 2 was at 1.0
  for (const std::int64_t row : world.everybody) {
    CHECK(world.all->terminated[row] == (row < 3));  // 1.0, 1.125, 1.0, 0.875
    CHECK(world.environment.succeeded(row) == (row < 3));
  }
  CHECK(world.step({3}) == 1);
  CHECK(world.all->terminated[3] == 1);
  std::vector<float> action(1);
  world.environment.expert(2, action);
  CHECK(action[0] == 3);  // of row 2
  std::vector<std::uint8_t> rgb(48);
  CHECK_THROWS_WITH_AS(world.environment.render(0, 4, 4, rgb),
                       "a vector environment has neither an expert nor pictures", dvla::Error);

  SUBCASE("its numbers are measured by its first row") {
    knobs.normalise_steps = 40;
    World scaled(knobs, 1);
    scaled.reset(100);
    for (int i = 0; i < 12; ++i) CHECK(std::abs(scaled.seen().proprioception[i]) <= 5);
    CHECK(scaled.seen().proprioception[0] != world.seen().proprioception[0]);
  }
  SUBCASE("a buffer of PhysX that is full fails its rows, and says which") {
    knobs.arguments = R"({"overflows": true})";
    World full(knobs, 1);
    full.reset(100);
    std::fill_n(full.all->action.data(), 4, 0.0F);
    for (int t = 0; t < 2; ++t) CHECK(full.step(full.everybody) == 4);
    CHECK(full.failed().empty());
    full.step(full.everybody);
    CHECK(full.failed() == full.everybody);
    CHECK(full.failures.why(2).find("PhysX's buffers are too small for 4 environments, and contacts are "
                                    "missing: PxgDynamicsMemory: Contact buffer overflow detected, please "
                                    "increase its size to 123456; raise the one it names") == 0);
    full.reset(100);
    CHECK(full.failed().empty());
    CHECK(full.step(full.everybody) == 4);
  }
}

TEST_CASE("The one instance shows what an instance a row shows, where a CPU can have it: with one row") {
  dvla::ManiSkillKnobs knobs = knobs_of("PushCube-v1");
  knobs.workers = 0;
  knobs.environments = 1;
  knobs.fast_reset = true;
  knobs.control_mode = "pd_joint_delta_pos";
  using World = dvla_test::World<dvla::ManiSkillEnvironment>;
  World single(knobs, 1);
  knobs.sim_backend = "physx_cuda";
  knobs.arguments = R"({"sim_backend": "physx_cpu"})";
  World together(knobs, 1);
  const std::int64_t P = single.environment.observation_spec().proprioception,
                     A = single.environment.action_spec().dimensions;
  for (int t = 0; t < 60; ++t) {
    if (t % 30 == 0)
      for (World* each : {&single, &together}) each->reset(5 + static_cast<std::uint64_t>(t));
    for (World* each : {&single, &together}) {
      for (std::int64_t a = 0; a < A; ++a) each->all->action[a] = std::sin(static_cast<float>(3 * t + 5 * a));
      CHECK(each->step({0}) == 1);
      CHECK(each->failures.why(0) == "");
    }
    for (std::int64_t i = 0; i < P; ++i)
      REQUIRE(single.seen().proprioception[i] == together.seen().proprioception[i]);
    CHECK(single.all->reward[0] == together.all->reward[0]);
  }
}

TEST_CASE("What one instance of all rows cannot do is refused before anything starts") {
  const auto refuses = [](const std::string& why, auto change) {
    dvla::ManiSkillKnobs knobs = knobs_of("PushCube-v1");
    knobs.workers = 0;
    knobs.sim_backend = "physx_cuda";
    knobs.fast_reset = true;
    change(knobs);
    CHECK_THROWS_WITH_AS(check(knobs), doctest::Contains(why.c_str()), dvla::ConfigError);
  };
  refuses("it must be physx_cpu, physx_cuda, or physx_cuda:N",
          [](auto& knobs) { knobs.sim_backend = "gpu"; });
  refuses("steps all environments in one worker", [](auto& knobs) { knobs.workers = 2; });
  refuses("steps all environments in one worker", [](auto& knobs) { knobs.embedded = true; });
  refuses("give fast_reset true", [](auto& knobs) { knobs.fast_reset = false; });
  refuses("leave task one", [](auto& knobs) { knobs.task = "PushCube-v1,PullCube-v1"; });
  refuses("sets targets", [](auto& knobs) { knobs.control_mode = "pd_joint_target_delta_pos"; });
  refuses("or physx_cuda:N", [](auto& knobs) { knobs.sim_backend = "physx_cudaX"; });
  refuses("leave render false", [](auto& knobs) { knobs.render = true; });
}

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
