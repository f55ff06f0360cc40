// UnshardedWeights: the whole model in one trainer.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "dvla/memory/model_pool.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/linear_model.hpp"

namespace {

struct World {
  dvla::ModelPool pool{std::size_t{1} << 20};
  dvla::testing::LinearModel model{
      {}, {{.cameras = {}, .proprioception = 3, .instructions = {"go"}}, {.dimensions = 2}, 1}, 7};
  dvla::UnshardedWeights<dvla::testing::LinearModel> weights{model, pool};
  std::vector<float> start{model.parameters().begin(), model.parameters().end()};

  void push(float gradient) { std::ranges::fill(model.gradients(), gradient); }
};

}  // namespace

TEST_CASE("The moments live in the pool that was given, and begin at 0") {
  World world;
  const dvla::AdamWState& state = world.weights.state();
  CHECK(state.step == 0);
  CHECK(state.parameter.data() == world.model.parameters().data());
  CHECK(state.first_moment.size() == world.model.parameters().size());
  CHECK(world.pool.contains(state.first_moment.data()));
  CHECK(world.pool.contains(state.second_moment.data()));
  CHECK(std::ranges::all_of(state.first_moment, [](float value) { return value == 0; }));
  CHECK(std::ranges::all_of(state.second_moment, [](float value) { return value == 0; }));
}

TEST_CASE("pack copies the weights, and refuses a buffer of another size") {
  World world;
  std::vector<std::byte> buffer(world.weights.packed_bytes());
  CHECK(buffer.size() == 4 * world.start.size());
  world.weights.pack(buffer);
  CHECK(std::memcmp(buffer.data(), world.start.data(), buffer.size()) == 0);
  std::vector<std::byte> larger(buffer.size() + 4);
  CHECK_THROWS_AS(world.weights.pack(larger), dvla::Error);
  CHECK_THROWS_AS(world.weights.pack(std::span(buffer).first(buffer.size() - 4)), dvla::Error);
  CHECK_THROWS_AS(world.weights.pack({}), dvla::Error);
}

TEST_CASE("A step moves every weight against its gradient by the learning rate, and returns the norm") {
  World world;
  world.push(2.0F);
  const dvla::AdamWKnobs knobs{.learning_rate = 0.1, .weight_decay = 0, .max_grad_norm = 0};
  const double norm = world.weights.step(knobs);
  CHECK(norm == doctest::Approx(2 * std::sqrt(static_cast<double>(world.start.size()))));
  CHECK(world.weights.state().step == 1);
  for (std::size_t i = 0; i < world.start.size(); ++i)
    CHECK(world.model.parameters()[i] == doctest::Approx(world.start[i] - 0.1F).epsilon(1e-4));
  world.weights.zero_gradients();
  CHECK(std::ranges::all_of(world.model.gradients(), [](float value) { return value == 0; }));
}

TEST_CASE("reset_optimiser forgets moments and steps and keeps the weights: the next step is a first step") {
  World once, again;
  const dvla::AdamWKnobs knobs{.learning_rate = 0.1, .weight_decay = 0, .max_grad_norm = 0};
  again.push(-3.0F);
  again.weights.step(knobs);
  again.weights.reset_optimiser();
  CHECK(again.weights.state().step == 0);
  CHECK(again.model.parameters()[0] != once.model.parameters()[0]);  // the weights stay
  std::ranges::copy(once.start, again.model.parameters().begin());
  once.push(0.5F);
  again.push(0.5F);
  once.weights.step(knobs);
  again.weights.step(knobs);
  CHECK(std::ranges::equal(once.model.parameters(), again.model.parameters()));
}

TEST_CASE("A gradient that is not finite is an error, and changes nothing") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    World world;
    world.push(1.0F);
    world.model.gradients()[3] = bad;
    CHECK_THROWS_AS(world.weights.step({}), dvla::Error);
    CHECK(std::ranges::equal(world.model.parameters(), world.start));
    CHECK(world.weights.state().step == 0);
    CHECK(world.weights.state().first_moment[0] == 0);
  }
}
