#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/random.hpp"

namespace {
struct Model {
  explicit Model(std::size_t count) : parameter(count), first(count), second(count) {
    dvla::SplitMix64 random(count);
    for (float& value : parameter) value = static_cast<float>(random.normal());
  }
  dvla::AdamWState state() { return {parameter, first, second}; }
  std::vector<float> parameter, first, second;
};

std::vector<float> random_gradient(std::size_t count, std::uint64_t seed) {
  dvla::SplitMix64 random(seed);
  std::vector<float> gradient(count);
  for (float& value : gradient) value = static_cast<float>(random.normal());
  return gradient;
}
}  // namespace

TEST_CASE("the first step moves every parameter by the learning rate against the sign of its gradient") {
  Model model(3);
  const auto before = model.parameter;
  dvla::AdamWState state = model.state();
  const std::vector<float> gradient{0.5F, -20.0F, 0.0F};
  dvla::AdamWKnobs knobs;
  knobs.weight_decay = 0;
  knobs.learning_rate = 0.01;
  dvla::adamw_step(state, gradient, knobs);
  CHECK(model.parameter[0] == doctest::Approx(before[0] - 0.01F).epsilon(1e-5));
  CHECK(model.parameter[1] == doctest::Approx(before[1] + 0.01F).epsilon(1e-5));
  CHECK(model.parameter[2] == before[2]);
}

TEST_CASE("blocks and tail compute the same: cutting the parameters anywhere changes no bit") {
  constexpr std::size_t count = 101;
  Model whole(count), cut(count);
  dvla::AdamWState all = whole.state();
  for (int step = 0; step < 5; ++step) {
    const auto gradient = random_gradient(count, static_cast<std::uint64_t>(step));
    dvla::adamw_update(all, gradient, {}, 0.5);
    std::size_t begin = 0;
    for (const std::size_t length : {std::size_t{1}, std::size_t{40}, std::size_t{0}, std::size_t{60}}) {
      const auto part = [&](std::vector<float>& values) { return std::span(values).subspan(begin, length); };
      dvla::AdamWState state{part(cut.parameter), part(cut.first), part(cut.second), step};
      dvla::adamw_update(state, std::span(gradient).subspan(begin, length), {}, 0.5);
      begin += length;
    }
    REQUIRE(begin == count);
  }
  CHECK(whole.parameter == cut.parameter);
  CHECK(whole.second == cut.second);
}

TEST_CASE("resuming from a copy of the state equals going on") {
  Model model(50);
  dvla::AdamWState state = model.state();
  for (std::uint64_t step = 0; step < 3; ++step) dvla::adamw_step(state, random_gradient(50, step), {});
  Model copy = model;
  dvla::AdamWState resumed = copy.state();
  resumed.step = state.step;
  dvla::adamw_step(state, random_gradient(50, 9), {});
  dvla::adamw_step(resumed, random_gradient(50, 9), {});
  CHECK(model.parameter == copy.parameter);
}

TEST_CASE("squared_norm is the sum of squares, for every length") {
  for (const std::size_t count : {0U, 1U, 7U, 8U, 9U, 1000U}) {
    const auto gradient = random_gradient(count, count);
    double expected = 0;
    for (const float value : gradient) expected += static_cast<double>(value) * static_cast<double>(value);
    CHECK(dvla::squared_norm(gradient) == doctest::Approx(expected).epsilon(1e-13));
  }
}

TEST_CASE("clip_scale shrinks long gradients to the maximum and leaves short ones") {
  CHECK(dvla::clip_scale(0.5, 1, 0) == 1);
  CHECK(dvla::clip_scale(4, 1, 0) == doctest::Approx(0.25).epsilon(1e-6));
  CHECK(dvla::clip_scale(1e30, 0, 0) == 1);
}

TEST_CASE("a gradient that is not finite is refused by step number and changes nothing") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Model model(20);
    dvla::AdamWState state = model.state();
    dvla::adamw_step(state, random_gradient(20, 1), {});
    const Model before = model;
    auto gradient = random_gradient(20, 2);
    gradient[13] = bad;
    std::string message;
    try {
      dvla::adamw_step(state, gradient, {});
    } catch (const dvla::Error& error) {
      message = error.what();
    }
    CHECK(message.find("optimiser step 1 ") != std::string::npos);
    CHECK(model.parameter == before.parameter);
    CHECK(model.first == before.first);
    CHECK(state.step == 1);
  }
  const std::vector<float> huge(4, std::numeric_limits<float>::max());
  CHECK(std::isfinite(dvla::squared_norm(huge)));
}

TEST_CASE("knobs out of range and spans of other sizes are refused in words") {
  dvla::AdamWKnobs knobs;
  CHECK_NOTHROW(knobs.validate());
  knobs.beta2 = 1;
  CHECK_THROWS_WITH_AS(knobs.validate(), "AdamW: beta2 is 1; it must be in [0, 1).", dvla::ConfigError);
  Model model(4);
  dvla::AdamWState state = model.state();
  CHECK_THROWS_AS(dvla::adamw_step(state, std::vector<float>(5), {}), dvla::Error);
  CHECK(state.step == 0);
}
