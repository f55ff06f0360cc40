// dvla-test: io
// Environments in Python: what their spaces become, how they fail, that they keep the promises of an environment.
// The environments are python_stub.py's, which wants NumPy alone; Gymnasium's own and ManiSkill's have tests of their own.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "dvla/environment/gymnasium.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/world.hpp"

namespace {
dvla::GymnasiumKnobs stub(const std::string& name, int environments = 4,
                          const std::string& arguments = "{}") {
  dvla::GymnasiumKnobs knobs;
  knobs.environments = environments;
  knobs.workers = 2;
  knobs.python = DVLA_TEST_DIR "/../.venv/bin/python";
  ::setenv("PYTHONPATH", DVLA_TEST_DIR "/environment", 1);
  knobs.factory = "python_stub:" + name;
  knobs.arguments = arguments;
  knobs.instruction = "go there";
  return knobs;
}

using World = dvla_test::World<dvla::GymnasiumEnvironment>;
}  // namespace

TEST_CASE("Environments in Python keep the promises of an environment") {
  for (const char* name : {"Point", "Many"}) {
    CAPTURE(name);
    dvla::EnvironmentPool pool(std::size_t{4} << 20);
    dvla::GymnasiumEnvironment environment(stub(name, 10), pool);
    for (const auto& wrong :
         dvla::testing::check_environment(environment, {.rows = 6, .largest_proprioception = 9}))
      FAIL_CHECK(wrong);
  }
}

TEST_CASE("A space becomes cameras, numbers and dimensions of an action") {
  World world(stub("Many"));
  const dvla::ObservationSpec& shows = world.environment.observation_spec();
  REQUIRE(shows.cameras.size() == 1);
  CHECK(shows.cameras[0].name == "eye");
  CHECK(shows.cameras[0].height == 3);
  CHECK(shows.cameras[0].width == 4);
  CHECK(shows.proprioception == 1 + 2 + 2 + 3);
  CHECK(shows.instructions == std::vector<std::string>{"go there"});
  const dvla::ActionSpec& takes = world.environment.action_spec();
  CHECK(takes.categories == std::vector<int>{0, 3, 2, 2});
  CHECK(takes.bounds_of(0).low == -0.5F);
  CHECK(takes.bounds_of(0).high == 0.5F);
  CHECK(world.environment.horizon() == 8);

  world.reset();
  for (std::int64_t row = 0; row < 4; ++row) {
    const auto numbers = world.seen().proprioception.at(row);
    const bool right = numbers[2] == 1;  // side as one of two
    CHECK(numbers[1] == (right ? 0 : 1));
    CHECK(std::array{numbers[3], numbers[4]} == std::array{right ? 0.0F : 1.0F, right ? 1.0F : 0.0F});
    CHECK(std::array{numbers[5], numbers[6], numbers[7]} == std::array{0.0F, 0.0F, 1.0F});
    for (const std::uint8_t pixel : world.seen().frames[0].at(row).span()) CHECK(pixel == (right ? 11 : 10));
    const std::array<float, 8> twice{0.25F, 2, 1, 0, 0.25F, 2, 1, 0};
    std::ranges::copy(twice, world.all->action.at(0).at(row).data());
  }
  CHECK(world.step({1}) == 2);
  CHECK(world.seen().proprioception.at(1)[0] == doctest::Approx(2 * (0.25 + 0.1 + 0.01)));
  CHECK(world.seen().proprioception.at(0)[0] == 0);
}

TEST_CASE(
    "An episode ends terminated where it is solved, truncated at its limit; a gain may be what solves it") {
  World world(stub("Point", 4, R"({"limit": 5})"));
  CHECK(world.environment.horizon() == 5);
  world.reset();
  for (int t = 0; t < 3; ++t) {
    for (std::int64_t row = 0; row < 3; ++row) {
      std::vector<float> action(1);
      world.environment.expert(row, action);
      world.all->action[2 * row] = world.all->action[2 * row + 1] = action[0] / 2;
    }
    world.all->action[6] = world.all->action[7] = 0;
    world.step(world.everybody);
  }
  CHECK(world.all->truncated[7] == 1);
  CHECK(world.all->terminated[7] == 0);
  CHECK_FALSE(world.environment.succeeded(3));
  dvla::GymnasiumKnobs knobs = stub("Point");
  knobs.success_return = 0.5;
  knobs.max_episode_steps = 40;
  CHECK(World(knobs).environment.horizon() == 40);
}

TEST_CASE("What a row raises, or shows that is wrong, arrives as one sentence with the places in its code") {
  const std::vector<std::pair<std::string, std::string>> faults{
      {"raise", "RuntimeError: the gripper fell off (python_stub.py:"},
      {"shape", "ValueError: it shows 5 numbers at the top, and its space says 2"},
      {"hang", "its process did not come back from a step within 1000 ms, and was killed"},
      {"die", "its process ended by signal 9 (Killed)"}};
  for (const auto& [fault, why] : faults) {
    CAPTURE(fault);
    dvla::GymnasiumKnobs knobs = stub("Faulty", 6, R"({"fault": ")" + fault + R"("})");
    knobs.workers = 6;
    knobs.worker_step_s = 1;
    World world(knobs);
    world.reset();
    for (float& value : world.all->action.span()) value = 0.001F;
    CHECK(world.step(world.everybody) == 12);
    const std::int64_t made = world.step(world.everybody);
    std::int64_t failed = 0;
    for (const std::int64_t row : world.everybody) {
      if (!world.failures.has(row)) continue;
      ++failed;
      CHECK(world.failures.why(row).find(why) == 0);
    }
    REQUIRE(failed > 0);
    CHECK(failed < 6);
    if (fault != "shape") CHECK(made == 2 * (6 - failed));  // what it showed of its steps is what was wrong
    world.reset();
    for (const std::int64_t row : world.everybody) CHECK_FALSE(world.failures.has(row));
    CHECK(world.step(world.everybody) == 12);
  }
}

TEST_CASE("What cannot be an environment is one sentence before anything is stepped") {
  const auto& refuses = dvla_test::refuses<dvla::GymnasiumEnvironment, dvla::GymnasiumKnobs>;
  refuses(stub("unbounded"), "dimension 0 of its actions lies in [-inf, inf]; dvla takes finite bounds");
  refuses(stub("texts"), "Text is a space that dvla does not take; it takes Box, Discrete");
  refuses(stub("endless"), "says of no episode how long it may be; give environment.max_episode_steps");
  refuses(stub("nobody"), "AttributeError: module 'python_stub' has no attribute 'nobody'");
  refuses(stub("Point", 4, "[1]"), "environment.arguments is '[1]'; it must be a JSON object");
  dvla::GymnasiumKnobs knobs = stub("Point");
  knobs.task_weights = "1,2";
  refuses(knobs, "environment.task_weights is '1,2'; it must be a number for each of");
  knobs = stub("Point");
  knobs.factory = "python_stub";
  refuses(knobs, "environment.factory is 'python_stub'; it must be module:function");
  knobs.id = "CartPole-v1";
  refuses(knobs, "environment.id and environment.factory are both given; give one");
  knobs = stub("Point");
  knobs.python = "/nowhere/bin/python";
  refuses(
      knobs,
      "environment.python is '/nowhere/bin/python', and there is no such program: scripts/setup gymnasium");
  knobs = stub("Point");
  knobs.worker_start_s = 0.02;
  refuses(knobs, "its process did not come back from its start within 20 ms, and was killed");
  knobs.worker_start_s = -1;
  refuses(knobs, "environment.worker_start_s is -1; it must be from 0.01 to 86400");
}

TEST_CASE("A picture is the environment's, at the size that is asked for") {
  World world(stub("Point"));
  world.reset();
  std::vector<std::uint8_t> rgb(3 * 4 * 4, 1);
  world.environment.render(2, 4, 4, rgb);
  for (std::size_t y = 0; y < 4; ++y)
    for (std::size_t x = 0; x < 4; ++x) CHECK(rgb[3 * (4 * y + x)] == (x < 2 ? 0 : 200));
}

TEST_CASE("A vector environment's rows are stepped together") {
  dvla::GymnasiumKnobs knobs = stub("vector", 4);
  knobs.workers = 1;
  World world(knobs), single(stub("Point", 4));
  for (World* each : {&world, &single}) {
    each->reset(7);
    for (int t = 0; t < 5; ++t) {
      for (std::int64_t i = 0; i < 8; ++i) each->all->action[i] = 0.03F * static_cast<float>(i + 1);
      std::vector<std::int64_t> running;
      for (const std::int64_t row : each->everybody)
        if (t == 0 || each->all->terminated[2 * row + 1] + each->all->truncated[2 * row + 1] == 0)
          running.push_back(row);
      each->step(running);
      for (const std::int64_t row : each->everybody) CHECK(each->failures.why(row) == "");
    }
  }
  for (std::int64_t i = 0; i < 8; ++i) {
    CHECK(world.all->terminated[i] == single.all->terminated[i]);
    CHECK(world.all->truncated[i] == single.all->truncated[i]);
    CHECK(world.all->reward[i] == single.all->reward[i]);
    CHECK(world.seen().proprioception[i] == single.seen().proprioception[i]);
  }
  // One that is left out is left behind, and costs nobody else anything.
  world.reset(7);
  CHECK(world.step({0, 1}) == 4);
  CHECK(world.step({0, 1, 2}) == 4);
  CHECK(world.failures.why(0) == "");
  CHECK(world.failures.why(2).find("its vector environment has gone on without it") == 0);
  world.reset(8, {2, 3});
  CHECK(world.step(world.everybody) > 4);
  for (const std::int64_t row : world.everybody) CHECK(world.failures.why(row) == "");
  std::vector<float> action(1);
  CHECK_THROWS_WITH_AS(world.environment.expert(0, action),
                       "a vector environment has neither an expert nor pictures", dvla::Error);
}

TEST_CASE(
    "Several tasks: a seed says which, shares follow the weights, states are padded and say how far they "
    "count") {
  dvla::GymnasiumKnobs knobs = stub("Point", 400);
  knobs.factory = "python_stub:Point,python_stub:Three";
  knobs.instruction = "";
  knobs.task_weights = "1,3";
  World world(knobs, 1), again(knobs, 1);
  const dvla::ObservationSpec& shows = world.environment.observation_spec();
  CHECK(shows.instructions == std::vector<std::string>{"python_stub:Point", "python_stub:Three"});
  REQUIRE(shows.proprioception == 6);
  world.reset(1000);
  again.reset(1000);
  int second = 0;
  for (const std::int64_t row : world.everybody) {
    const auto numbers = world.seen().proprioception.at(row);
    const int task = world.seen().instruction[row];
    CHECK(again.seen().instruction[row] == task);
    second += task;
    CHECK(numbers[2] == (task == 0 ? 0 : 7));
    CHECK(std::array{numbers[3], numbers[4], numbers[5]} == std::array{1.0F, 1.0F, task == 0 ? 0.0F : 1.0F});
  }
  CHECK(second > 260);
  CHECK(second < 340);
  knobs.instruction = "do it";
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  CHECK_THROWS_WITH_AS(dvla::GymnasiumEnvironment(knobs, pool),
                       doctest::Contains("environment.instruction is one, and there are several tasks"),
                       dvla::ConfigError);
}

TEST_CASE("Proprioception is normalised by what random actions show, alike in every worker") {
  dvla::GymnasiumKnobs knobs = stub("Point", 200);
  knobs.normalise_steps = 400;
  World world(knobs, 1);
  world.reset(5);
  double sum = 0, squares = 0;
  for (const std::int64_t row : world.everybody) {
    const double target = world.seen().proprioception.at(row)[1];
    sum += target;
    squares += target * target;
    CHECK(world.seen().proprioception.at(row)[0] == world.seen().proprioception.at(0)[0]);  // all begin at 0
  }
  CHECK(std::abs(sum / 200) < 0.35);
  CHECK(squares / 200 == doctest::Approx(1).epsilon(0.3));
}
