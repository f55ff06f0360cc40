// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <limits>

#include "dvla/core/record.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/environment.hpp"

using dvla::Field;
using dvla::ToyEnvironment;

namespace {
struct Fixture {
  explicit Fixture(dvla::ToyKnobs knobs = {.environments = 8})
      : environment(knobs, pool),
        observation(dvla::observation_layout(environment.observation_spec(), {knobs.environments}), pool),
        failures(knobs.environments + 1) {
    for (std::int64_t i = 0; i < knobs.environments; ++i) {
      indices.push_back(i);
      starts.push_back({static_cast<std::uint64_t>(i)});
    }
    reset();
  }
  void reset() {
    dvla::Rows rows(indices, arena, failures);
    environment.reset(rows, starts, *observation);
  }
  std::int64_t step(std::vector<float> action, std::int64_t chunk, std::int64_t actions = 1) {
    const auto n = static_cast<std::int64_t>(action.size()) / chunk / actions;
    reward.assign(static_cast<std::size_t>(n * chunk), -1);
    terminated.assign(static_cast<std::size_t>(n * chunk), 9);
    truncated = terminated;
    dvla::Rows rows(indices, arena, failures);
    return environment.step(
        rows, Field<float>({n, chunk, actions}, action.data()),
        {Field<float>({n, chunk}, reward.data()), Field<std::uint8_t>({n, chunk}, terminated.data()),
         Field<std::uint8_t>({n, chunk}, truncated.data()), *observation});
  }
  float target(std::int64_t row) {
    float value = 0;
    environment.expert(row, {&value, 1});
    return value;
  }
  dvla::EnvironmentPool pool{std::size_t{1} << 20};
  ToyEnvironment environment;
  dvla::OwnedRecord<dvla::Observation> observation;
  std::vector<dvla::Start> starts;
  std::vector<std::int64_t> indices;
  std::vector<float> reward;
  std::vector<std::uint8_t> terminated, truncated;
  dvla::Arena arena;
  dvla::RowFailures failures;
};
}  // namespace

TEST_CASE("Toy keeps the promises of an environment") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  for (const int horizon : {1, 4, 9}) {
    for (const int actions : {1, 3}) {
      ToyEnvironment environment({.environments = 70, .horizon = horizon, .actions = actions}, pool);
      for (const auto& wrong : dvla::testing::check_environment(environment)) FAIL_CHECK(wrong);
      ToyEnvironment chooser({.environments = 70, .horizon = horizon, .actions = actions, .categories = 5},
                             pool);
      for (const auto& wrong : dvla::testing::check_environment(chooser)) FAIL_CHECK(wrong);
    }
  }
}

TEST_CASE("The target is what is shown, and the instruction turns its sign") {
  Fixture toy;
  int lefts = 0;
  for (std::int64_t row = 0; row < 8; ++row) {
    const bool left = toy.observation->instruction[row] == 0;
    lefts += left;
    CHECK(toy.target(row) == (left ? -1.0F : 1.0F) * toy.observation->proprioception.at(row)[0]);
  }
  CHECK(lefts > 0);
  CHECK(lefts < 8);
}

TEST_CASE("The expert solves every row in one step, and the row then stands still") {
  Fixture toy;
  std::vector<float> action;
  for (std::int64_t row = 0; row < 8; ++row) action.insert(action.end(), {toy.target(row), 0.5F});
  CHECK(toy.step(action, 2) == 8);  // the second step of the chunk is not made
  for (std::size_t row = 0; row < 8; ++row) {
    CHECK(toy.reward[2 * row] == 1);
    CHECK(toy.reward[2 * row + 1] == 0);
    CHECK(toy.terminated[2 * row] == 1);
    CHECK(toy.terminated[2 * row + 1] == 1);
    CHECK(toy.truncated[2 * row + 1] == 0);
    CHECK(toy.environment.succeeded(static_cast<std::int64_t>(row)));
  }
  CHECK(toy.step(action, 2) == 0);
}

TEST_CASE("Far off terminates the episode unsolved, in between goes on to the horizon, which truncates it") {
  Fixture toy;
  std::vector<float> far, near;
  for (std::int64_t row = 0; row < 8; ++row) {
    far.push_back(toy.target(row) + 1.1F);
    near.push_back(toy.target(row) + 0.5F);
  }
  CHECK(toy.step(far, 1) == 8);
  for (std::size_t row = 0; row < 8; ++row) {
    CHECK(toy.terminated[row] == 1);
    CHECK(toy.truncated[row] == 0);
    CHECK(toy.reward[row] == 0);
    CHECK_FALSE(toy.environment.succeeded(static_cast<std::int64_t>(row)));
  }
  toy.reset();
  for (int step = 1; step <= 4; ++step) {
    CHECK(toy.step(near, 1) == 8);
    for (const std::uint8_t flag : toy.truncated) CHECK(flag == (step == 4 ? 1 : 0));
    for (const std::uint8_t flag : toy.terminated) CHECK(flag == 0);
  }
}

TEST_CASE("Bad input is a sentence, not a crash") {
  Fixture toy;
  std::vector<float> action(8, 0.0F);
  action[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(toy.step(action, 1) == 7);  // the others go on
  for (std::int64_t row = 0; row < 8; ++row) CHECK(toy.failures.has(row) == (row == 3));
  CHECK(toy.failures.why(3) == "its action at control step 0 is not a finite number; did training diverge?");
  toy.indices = {0, 8};
  CHECK_THROWS_WITH_AS(toy.reset(), "Toy: row 8 of a batch of 8; ask for rows that exist", dvla::Error);
  CHECK_THROWS_AS(ToyEnvironment({.environments = 0}, toy.pool), dvla::ConfigError);
}

TEST_CASE("The artificial cost is paid for every step that is made") {
  Fixture toy({.environments = 4, .horizon = 1000, .step_cost_ns = 20000});
  std::vector<float> action;
  for (std::int64_t row = 0; row < 4; ++row) {
    for (int c = 0; c < 50; ++c) action.push_back(toy.target(row) + 0.5F);
  }
  const auto start = std::chrono::steady_clock::now();
  CHECK(toy.step(action, 50) == 200);
  CHECK(std::chrono::steady_clock::now() - start >= 200 * std::chrono::nanoseconds(20000));
}
