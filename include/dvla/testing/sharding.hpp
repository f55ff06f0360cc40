// Conformance of a sharding's machinery: what sharding/concept.hpp promises and a compiler can't check, for
// shipped and users' own ones. Returns one sentence per violation, none if it conforms; no test framework.
// One trainer with small models, one in float32 of which all trains, and one in bf16 of which a part is
// frozen; how several trainers share their weights is not looked at.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/random.hpp"
#include "dvla/sharding/concept.hpp"
#include "dvla/sharding/descriptors.hpp"
#include "dvla/sharding/pieces.hpp"
#include "dvla/testing/findings.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/weights.hpp"

namespace dvla::testing {

namespace detail {

/// A small model and its weights.
template <class Make>
struct WeightsUnderTest {
  using Weights = decltype(std::declval<Make&>()(std::declval<LinearModel&>(),
                                                 std::declval<std::pmr::memory_resource&>()));

  explicit WeightsUnderTest(Make& make, const LinearKnobs& knobs = {})
      : model(knobs, {{.cameras = {}, .proprioception = 3, .instructions = {"go"}}, {.dimensions = 2}, 1}, 7),
        weights(make(model, *std::pmr::new_delete_resource())) {}

  /// Normal gradients of standard deviation `size`, added to what is there as a backward pass does.
  void add_gradient(std::uint64_t seed, double size) {
    SplitMix64 random(seed);
    for (const WeightUnit& unit : model.units())
      for (float& value : unit.gradients) value += static_cast<float>(size * random.normal());
  }
  void step(std::uint64_t seed, const AdamWKnobs& knobs, double size = 1) {
    weights.zero_gradients();
    add_gradient(seed, size);
    weights.step(knobs);
  }
  /// Its trainable values, as bytes and as numbers.
  std::vector<std::byte> values() const {
    std::vector<std::byte> all(trainable_bytes(model.units()));
    read_weights(model.units(), 0, all);
    return all;
  }
  std::vector<float> numbers() const { return weights_of(model); }
  /// Of pieces(): what `part(piece)` is of each, one after the other.
  template <class Part>
  std::vector<float> of_pieces(Part part) {
    std::vector<float> all;
    for (const ShardPiece& piece : weights.pieces()) {
      const std::span<float> values = part(piece);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
  std::vector<float> masters() {
    return of_pieces([](const ShardPiece& piece) { return piece.weight; });
  }
  std::vector<float> moments() {
    std::vector<float> all = of_pieces([](const ShardPiece& piece) { return piece.first_moment; });
    const std::vector<float> second = of_pieces([](const ShardPiece& piece) { return piece.second_moment; });
    all.insert(all.end(), second.begin(), second.end());
    return all;
  }
  bool packs(const std::vector<std::byte>& expected) {
    std::vector<std::byte> bytes(weights.packed_bytes());
    weights.pack(bytes);
    return bytes == expected;
  }
  /// Whether pieces() follow one another from 0 on and hold every trainable element once.
  bool whole() {
    std::int64_t next = 0;
    for (const ShardPiece& piece : weights.pieces()) {
      if (piece.range.offset != next || piece.range.count != std::ssize(piece.weight) ||
          piece.weight.size() != piece.first_moment.size() ||
          piece.weight.size() != piece.second_moment.size())
        return false;
      next += piece.range.count;
    }
    return next == trainable_count(model.units());
  }
  bool values_are_rounded_masters() {
    std::vector<float> rounded = masters();
    for (float& value : rounded) value = from_bf16(to_bf16(value));
    return rounded == numbers();
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
  detail::Findings expect;
  const auto zero = [](float value) { return value == 0; };
  const AdamWKnobs plain{.learning_rate = 0.1, .weight_decay = 0, .max_grad_norm = 0};
  {
    World world(make);
    const std::vector<std::byte> start = world.values();
    expect(world.weights.steps() == 0 && std::ranges::all_of(world.moments(), zero),
           "pieces() and steps() must begin with moments and steps at 0");
    expect(world.whole(), "pieces() must hold every trainable element once, in order");
    expect(world.weights.packed_bytes() == start.size(),
           "packed_bytes() must be the model's trainable bytes");
    expect(world.packs(start), "pack must write the trainable weights as they stand");
    const std::size_t size = world.weights.packed_bytes();
    for (const std::size_t bytes : {std::size_t{0}, size - 4, size + 4}) {
      std::vector<std::byte> other(bytes);
      expect.refused("packing into a buffer of another size", "", [&] { world.weights.pack(other); });
    }
    world.add_gradient(1, 1);
    world.weights.zero_gradients();
    expect(!detail::gradients_of(world.model).empty() &&
               std::ranges::all_of(detail::gradients_of(world.model), zero),
           "zero_gradients must leave no gradient");
    world.step(1, {.learning_rate = 0, .weight_decay = 0.5});
    expect(world.values() == start, "a step at learning rate 0 must leave every bit of the weights");
    world.step(2, plain);
    expect(world.values() != start && world.packs(world.values()),
           "pack after a step must write the new weights");
  }
  for (const double limit : {0.0, 0.5}) {
    const AdamWKnobs knobs{
        .learning_rate = 0.02, .beta1 = 0.8, .beta2 = 0.9, .weight_decay = 0.1, .max_grad_norm = limit};
    World world(make);
    detail::PlainAdamW reference(world.numbers());
    double worst = 0, worst_norm = 0;
    for (std::uint64_t i = 0; i < 8; ++i) {
      world.weights.zero_gradients();
      world.add_gradient(i, i % 2 == 0 ? 1.0 : 0.01);
      world.add_gradient(i + 100, 0.01);  // gradients accumulate
      const double expected = reference.step(detail::gradients_of(world.model), knobs);
      worst_norm = std::max(worst_norm, std::abs(world.weights.step(knobs) / expected - 1));
    }
    const std::vector<float> now = world.numbers();
    for (std::size_t i = 0; i < now.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(now[i]) - reference.parameter()[i]));
    const std::string where = limit > 0 ? " with clipping" : " without clipping";
    expect(worst < 1e-5, "eight steps" + where + " are " + std::to_string(worst) + " off plain AdamW");
    expect(worst_norm < 1e-5, "step" + where + " must return the gradient's norm before clipping");
    expect(world.weights.steps() == 8, "steps() must count the steps");
  }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    World world(make);
    world.step(1, plain);
    const std::vector<std::byte> before = world.values();
    const std::vector<float> moments = world.moments();
    world.weights.zero_gradients();
    world.add_gradient(2, 1);
    world.model.units()[0].gradients[3] = bad;
    expect.refused("a step on a gradient of " + std::to_string(bad), "", [&] { world.weights.step(plain); });
    expect(world.values() == before && world.moments() == moments && world.weights.steps() == 1,
           "a step that is refused for a gradient of " + std::to_string(bad) + " must change nothing");
  }
  for (const LinearKnobs& knobs : {LinearKnobs{}, LinearKnobs{.frozen_units = 1, .dtype = Dtype::bf16}}) {
    World once(make, knobs), again(make, knobs);
    const std::vector<std::byte> start = once.values();
    again.step(1, plain, 3);
    const std::vector<std::byte> moved = again.values();
    again.weights.reset_optimiser();
    expect(again.values() == moved, "reset_optimiser must keep the weights");
    expect(again.weights.steps() == 0 && std::ranges::all_of(again.moments(), zero),
           "reset_optimiser must forget moments and steps");
    write_weights(again.model.units(), 0, start);
    again.weights.take_parameters();
    once.step(2, plain);
    again.step(2, plain);
    expect(once.values() == again.values(),
           "the step after take_parameters and reset_optimiser must be a first step from those weights");
  }
  for (const LinearKnobs& knobs : {LinearKnobs{}, LinearKnobs{.frozen_units = 1, .dtype = Dtype::bf16}}) {
    World first(make, knobs), resumed(make, knobs);
    for (const std::uint64_t i : {1U, 2U}) first.step(i, plain);
    const std::vector<ShardPiece> from = first.weights.pieces(), to = resumed.weights.pieces();
    for (std::size_t i = 0; i < from.size(); ++i) {
      std::ranges::copy(from[i].weight, to[i].weight.begin());
      std::ranges::copy(from[i].first_moment, to[i].first_moment.begin());
      std::ranges::copy(from[i].second_moment, to[i].second_moment.begin());
    }
    resumed.weights.steps() = first.weights.steps();
    resumed.weights.refresh();
    expect(first.values() == resumed.values(), "refresh must bring the model up to date with the masters");
    first.step(3, plain);
    resumed.step(3, plain);
    expect(first.values() == resumed.values() && first.moments() == resumed.moments(),
           "weights restored through pieces(), steps() and refresh() must go on with the same bits");
  }
  {
    World world(make, {.frozen_units = 1, .dtype = Dtype::bf16});
    const std::vector<std::byte> frozen = detail::frozen_bytes(world.model);
    expect(world.whole(), "frozen parameters must have no masters and no moments");
    expect(
        world.weights.packed_bytes() == trainable_bytes(world.model.units()) && world.packs(world.values()),
        "pack must write what trains, in the precision that the model computes in, and nothing else");
    for (std::uint64_t i = 0; i < 8; ++i) world.step(i, {.learning_rate = 1e-4, .weight_decay = 0.1});
    expect(detail::frozen_bytes(world.model) == frozen, "a step must leave every bit of what is frozen");
    expect(world.values_are_rounded_masters(), "the model's values must be the masters, rounded");
    expect(world.masters() != world.numbers(), "masters must keep what rounding to bf16 loses");
  }
  return expect.sentences;
}

/// Bytes that an actor sends to the others under FSDP, and as many it receives, by the formula of
/// docs/slots/sharding.md: in an optimiser step of so many passes with a backward pass each, and in a pass without
/// one.
struct ShardBytes {
  std::int64_t step = 0, forward = 0;
};
template <class Model>
ShardBytes shard_bytes(const Model& model, int actors, const FsdpKnobs& knobs, std::int64_t passes) {
  const auto part = [&](std::size_t whole) {
    return (static_cast<std::int64_t>(whole) + actors - 1) / actors;
  };
  const std::vector<WeightUnit> units = model.units();
  std::vector<std::int64_t> gathered(units.size());
  const Parameter* last = nullptr;  // frozen parameters that lie side by side travel as one
  std::size_t stretch = 0;
  for (const Parameter& each : model.parameters()) {
    if (!knobs.shard_frozen || each.trainable || each.mapped || !each.alias_of.empty()) continue;
    const bool goes_on = last && last->unit == each.unit && last->data + last->bytes() == each.data;
    if (goes_on) gathered[each.unit] -= part(stretch);
    stretch = (goes_on ? stretch : 0) + each.bytes();
    gathered[each.unit] += part(stretch);
    last = &each;
  }
  std::int64_t gathers = 0, reduced = 0, of_last = 0;
  for (std::size_t unit = 0; unit < units.size(); ++unit) {
    const std::int64_t elements = part(static_cast<std::size_t>(units[unit].count()));
    gathered[unit] += elements * static_cast<std::int64_t>(bytes_of(units[unit].dtype));
    reduced += 4 * elements;
    gathers += gathered[unit];
    if (gathered[unit] > 0) of_last = gathered[unit];
  }
  const bool releases = knobs.release != UnitRelease::never;
  const std::int64_t again = knobs.release == UnitRelease::after_use ? gathers - of_last : 0;
  return {(actors - 1) * (releases ? passes : 1) * (gathers + again + reduced),
          releases ? (actors - 1) * gathers : 0};
}

}  // namespace dvla::testing
