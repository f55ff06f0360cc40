// dvla-test: io
// Gymnasium's environments through the bridge show, bit for bit, what they show in Python alone, where its own
// SyncVectorEnv says the same. Skipped where scripts/setup gymnasium has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "dvla/environment/gymnasium.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/recorded.hpp"

namespace {
dvla::GymnasiumKnobs knobs_of(const std::string& id) {
  dvla::GymnasiumKnobs knobs;
  knobs.python = dvla_test::simulator_python("gymnasium");
  knobs.id = id;
  knobs.workers = 2;
  return knobs;
}
}  // namespace

TEST_CASE("The same seeds and actions give the same bits as Gymnasium's own vector environment") {
  const std::vector<std::pair<std::string, int>> tasks{{"CartPole-v1", 0},
                                                       {"Pendulum-v1", 30},
                                                       {"HalfCheetah-v5", 25},
                                                       {"FetchReach-v4", 0},
                                                       {"FetchPush-v4", 20}};
  for (const auto& [id, limit] : tasks) {
    CAPTURE(id);
    const dvla_test::TemporaryFolder folder;
    dvla::GymnasiumKnobs knobs = knobs_of(id);
    knobs.max_episode_steps = limit;
    const auto recorded = dvla_test::record(
        "gymnasium", id, {"--steps", "80", "--limit", std::to_string(limit)}, folder.path());
    const auto agreed = dvla_test::replay<dvla::GymnasiumEnvironment>(recorded, knobs);
    for (const std::string& wrong : agreed.wrong) FAIL_CHECK(wrong);
  }
}

TEST_CASE("Gymnasium's environments keep the promises of an environment") {
  for (const char* id : {"CartPole-v1", "FetchReach-v4"}) {
    CAPTURE(id);
    dvla::EnvironmentPool pool(std::size_t{4} << 20);
    dvla::GymnasiumKnobs knobs = knobs_of(id);
    knobs.environments = 6;
    dvla::GymnasiumEnvironment environment(knobs, pool);
    for (const auto& wrong : dvla::testing::check_environment(
             environment, {.rows = 4, .most_steps = 20, .largest_proprioception = 9, .experts = *id == 'F'}))
      FAIL_CHECK(wrong);
  }
}

TEST_CASE("A vector environment of Gymnasium's agrees with single ones in all three autoreset modes") {
  for (const std::string mode : {"NEXT_STEP", "SAME_STEP", "DISABLED"}) {
    CAPTURE(mode);
    dvla::GymnasiumKnobs knobs = knobs_of("");
    knobs.factory = "vector_modes:make";
    knobs.arguments = R"({"mode": ")" + mode + R"("})";
    knobs.max_episode_steps = 30;
    knobs.environments = 4;
    knobs.workers = 1;
    dvla::GymnasiumKnobs alone = knobs_of("CartPole-v1");
    alone.environments = 4;
    alone.max_episode_steps = 30;
    const auto played = [](const dvla::GymnasiumKnobs& which) {
      dvla::EnvironmentPool pool(std::size_t{4} << 20);
      dvla::GymnasiumEnvironment environment(which, pool);
      dvla::OwnedRecord<dvla::Transition> all(
          dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                                  {.decisions = 1, .episodes = 4, .chunk = 2}),
          pool);
      const auto seen = dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
      dvla::Arena arena;
      dvla::RowFailures failures(4);
      std::vector<float> shown;
      for (int episode = 0; episode < 3; ++episode) {
        std::vector<std::int64_t> running{0, 1, 2, 3};
        std::vector<dvla::Start> starts;
        for (std::uint64_t row = 0; row < 4; ++row)
          starts.push_back({.seed = 10 * static_cast<std::uint64_t>(episode) + row});
        dvla::Rows begun(running, arena, failures);
        environment.reset(begun, starts, seen);
        for (int t = 0; !running.empty() && t < 40; ++t) {
          for (std::int64_t i = 0; i < 8; ++i) all->action[i] = static_cast<float>((t + i) % 2);
          dvla::Rows of(running, arena, failures);
          environment.step(of, all->action.at(0),
                           {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen});
          for (const std::int64_t row : running) {
            CHECK(failures.why(row) == "");
            for (const float number : seen.proprioception.at(row).span()) shown.push_back(number);
            for (int c = 0; c < 2; ++c)
              shown.push_back(all->reward[2 * row + c] +
                              2.0F * static_cast<float>(all->terminated[2 * row + c]) +
                              4.0F * static_cast<float>(all->truncated[2 * row + c]));
          }
          std::erase_if(running, [&](std::int64_t row) { return all->ended(0, row); });
        }
      }
      return shown;
    };
    const auto vector = played(knobs), single = played(alone);
    CHECK(vector.size() > 400);
    CHECK(vector == single);
  }
}

TEST_CASE("An id that there is not is refused in Gymnasium's own words; pixels are frames") {
  dvla::EnvironmentPool pool(std::size_t{8} << 20);
  CHECK_THROWS_WITH_AS(dvla::GymnasiumEnvironment(knobs_of("CartPol-v1"), pool),
                       doctest::Contains("Did you mean: `CartPole`"), dvla::ConfigError);
  dvla::GymnasiumKnobs knobs = knobs_of("ALE/Pong-v5");
  knobs.max_episode_steps = 40;
  knobs.environments = 2;
  dvla::GymnasiumEnvironment environment(knobs, pool);
  REQUIRE(environment.observation_spec().cameras.size() == 1);
  CHECK(environment.observation_spec().cameras[0].height == 210);
  CHECK(environment.action_spec().categories == std::vector<int>{6});
  for (const auto& wrong :
       dvla::testing::check_environment(environment, {.rows = 2, .most_steps = 20, .experts = false}))
    if (wrong.find("the seed is not used") == wrong.npos)
      FAIL_CHECK(wrong);  // Pong begins with the same frame
}

int main(int argc, char** argv) {
  ::setenv("PYTHONPATH", DVLA_TEST_DIR "/environment", 1);
  return dvla_test::run_with("gymnasium", argc, argv);
}
