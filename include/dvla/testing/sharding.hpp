// Conformance of a sharding's machinery: what sharding/concept.hpp promises and a compiler can't check, for
// shipped and users' own ones. Returns one sentence per violation, none if it conforms; no test framework.
// One trainer with a small model; how several trainers share their weights is not looked at.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"
#include "dvla/sharding/concept.hpp"
#include "dvla/testing/linear_model.hpp"

namespace dvla::testing {

namespace detail {

/// A small model and its weights.
template <class Make>
struct WeightsUnderTest {
  using Weights = decltype(std::declval<Make&>()(std::declval<LinearModel&>(),
                                                 std::declval<std::pmr::memory_resource&>()));

  explicit WeightsUnderTest(Make& make)
      : model({}, {{.cameras = {}, .proprioception = 3, .instructions = {"go"}}, {.dimensions = 2}, 1}, 7),
        weights(make(model, *std::pmr::new_delete_resource())) {}

  /// Normal gradients of standard deviation `size`, added to what is there as a backward pass does.
  void add_gradient(std::uint64_t seed, double size) {
    SplitMix64 random(seed);
    for (float& value : model.gradients()) value += static_cast<float>(size * random.normal());
  }
  void step(std::uint64_t seed, const AdamWKnobs& knobs, double size = 1) {
    weights.zero_gradients();
    add_gradient(seed, size);
    weights.step(knobs);
  }
  std::vector<float> parameters() {
    const auto all = model.parameters();
    return {all.begin(), all.end()};
  }
  std::vector<float> moments() {
    const AdamWState& state = weights.state();
    std::vector<float> all(state.first_moment.begin(), state.first_moment.end());
    all.insert(all.end(), state.second_moment.begin(), state.second_moment.end());
    return all;
  }
  bool packs(const std::vector<float>& expected) {
    std::vector<std::byte> bytes(weights.packed_bytes());
    weights.pack(bytes);
    return bytes.size() == expected.size() * sizeof(float) &&
           std::memcmp(bytes.data(), expected.data(), bytes.size()) == 0;
  }

  LinearModel model;
  Weights weights;
};

/// AdamW as its paper has it, in double, one number at a time.
class PlainAdamW {
 public:
  explicit PlainAdamW(std::span<const float> start)
      : parameter_(start.begin(), start.end()), first_(start.size()), second_(start.size()) {}
  /// Returns the norm before clipping.
  double step(std::span<const float> gradient, const AdamWKnobs& knobs) {
    double squares = 0;
    for (const float g : gradient) squares += static_cast<double>(g) * static_cast<double>(g);
    const double norm = std::sqrt(squares);
    const double scale = knobs.max_grad_norm > 0 ? std::min(1.0, knobs.max_grad_norm / (norm + 1e-6)) : 1.0;
    ++steps_;
    for (std::size_t i = 0; i < parameter_.size(); ++i) {
      const double g = scale * static_cast<double>(gradient[i]);
      first_[i] = knobs.beta1 * first_[i] + (1 - knobs.beta1) * g;
      second_[i] = knobs.beta2 * second_[i] + (1 - knobs.beta2) * g * g;
      const double mean = first_[i] / (1 - std::pow(knobs.beta1, steps_));
      const double square = second_[i] / (1 - std::pow(knobs.beta2, steps_));
      parameter_[i] -= knobs.learning_rate * knobs.weight_decay * parameter_[i];
      parameter_[i] -= knobs.learning_rate * mean / (std::sqrt(square) + knobs.epsilon);
    }
    return norm;
  }
  const std::vector<double>& parameter() const { return parameter_; }

 private:
  std::vector<double> parameter_, first_, second_;
  int steps_ = 0;
};

}  // namespace detail

/// `make(model, memory)` gives fresh weights of a `LinearModel&`, with moments in the
/// `std::pmr::memory_resource&`; every check has its own.
template <class Make>
std::vector<std::string> check_sharding(Make make) {
  using World = detail::WeightsUnderTest<Make>;
  static_assert(ShardingMachinery<typename World::Weights, LinearModel>,
                "dvla: check_sharding needs a sharding's machinery: make(LinearModel&, memory_resource&)");
  std::vector<std::string> violations;
  const auto expect = [&](bool holds, const std::string& what) {
    if (!holds) violations.push_back(what);
  };
  const auto zero = [](float value) { return value == 0; };
  const AdamWKnobs plain{.learning_rate = 0.1, .weight_decay = 0, .max_grad_norm = 0};
  {
    World world(make);
    const std::vector<float> start = world.parameters();
    expect(world.weights.state().step == 0 && std::ranges::all_of(world.moments(), zero),
           "state() must begin with moments and steps at 0");
    expect(world.weights.packed_bytes() == start.size() * sizeof(float),
           "packed_bytes() must be the size of model.parameters()");
    expect(world.packs(start), "pack must write model.parameters() as they stand");
    const std::size_t size = world.weights.packed_bytes();
    for (const std::size_t bytes : {std::size_t{0}, size - 4, size + 4}) {
      std::vector<std::byte> other(bytes);
      try {
        world.weights.pack(other);
        violations.push_back("pack must refuse a buffer of another size");
      } catch (const Error&) {
      }
    }
    world.add_gradient(1, 1);
    world.weights.zero_gradients();
    expect(std::ranges::all_of(world.model.gradients(), zero), "zero_gradients must leave no gradient");
    world.step(1, {.learning_rate = 0, .weight_decay = 0.5});
    expect(world.parameters() == start, "a step at learning rate 0 must leave every bit of the weights");
    world.step(2, plain);
    expect(world.parameters() != start && world.packs(world.parameters()),
           "pack after a step must write the new weights");
  }
  for (const double limit : {0.0, 0.5}) {
    const AdamWKnobs knobs{
        .learning_rate = 0.02, .beta1 = 0.8, .beta2 = 0.9, .weight_decay = 0.1, .max_grad_norm = limit};
    World world(make);
    detail::PlainAdamW reference(world.parameters());
    double worst = 0, worst_norm = 0;
    for (std::uint64_t i = 0; i < 8; ++i) {
      world.weights.zero_gradients();
      world.add_gradient(i, i % 2 == 0 ? 1.0 : 0.01);
      world.add_gradient(i + 100, 0.01);  // gradients accumulate
      const std::vector<float> gradient(world.model.gradients().begin(), world.model.gradients().end());
      const double expected = reference.step(gradient, knobs);
      worst_norm = std::max(worst_norm, std::abs(world.weights.step(knobs) / expected - 1));
    }
    for (std::size_t i = 0; i < reference.parameter().size(); ++i)
      worst = std::max(worst,
                       std::abs(static_cast<double>(world.model.parameters()[i]) - reference.parameter()[i]));
    const std::string where = limit > 0 ? " with clipping" : " without clipping";
    expect(worst < 1e-5, "eight steps" + where + " are " + std::to_string(worst) + " off plain AdamW");
    expect(worst_norm < 1e-5, "step" + where + " must return the gradient's norm before clipping");
    expect(world.weights.state().step == 8, "state().step must count the steps");
  }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    World world(make);
    world.step(1, plain);
    const std::vector<float> before = world.parameters(), moments = world.moments();
    world.weights.zero_gradients();
    world.add_gradient(2, 1);
    world.model.gradients()[3] = bad;
    try {
      world.weights.step(plain);
      violations.push_back("step must refuse a gradient of " + std::to_string(bad));
    } catch (const Error&) {
    }
    expect(world.parameters() == before && world.moments() == moments && world.weights.state().step == 1,
           "a step that is refused for a gradient of " + std::to_string(bad) + " must change nothing");
  }
  {
    World once(make), again(make);
    const std::vector<float> start = once.parameters();
    again.step(1, plain, 3);
    const std::vector<float> moved = again.parameters();
    again.weights.reset_optimiser();
    expect(again.parameters() == moved, "reset_optimiser must keep the weights");
    expect(again.weights.state().step == 0 && std::ranges::all_of(again.moments(), zero),
           "reset_optimiser must forget moments and steps");
    std::ranges::copy(start, again.model.parameters().begin());
    once.step(2, plain);
    again.step(2, plain);
    expect(once.parameters() == again.parameters(), "the step after reset_optimiser must be a first step");
  }
  {
    World first(make), resumed(make);
    for (const std::uint64_t i : {1, 2}) first.step(i, plain);
    const AdamWState& from = first.weights.state();
    AdamWState& to = resumed.weights.state();
    std::ranges::copy(first.parameters(), resumed.model.parameters().begin());
    std::ranges::copy(from.first_moment, to.first_moment.begin());
    std::ranges::copy(from.second_moment, to.second_moment.begin());
    to.step = from.step;
    first.step(3, plain);
    resumed.step(3, plain);
    expect(first.parameters() == resumed.parameters() && first.moments() == resumed.moments(),
           "weights restored through state() and parameters() must go on with the same bits");
  }
  return violations;
}

}  // namespace dvla::testing
