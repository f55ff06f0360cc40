// UnshardedWeights: the whole model in one trainer.
#include <doctest/doctest.h>

#include "dvla/memory/model_pool.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/sharding.hpp"

using dvla::Dtype;
using dvla::ShardPiece;
using dvla::testing::LinearKnobs;
using dvla::testing::LinearModel;

namespace {
dvla::ModelInputs inputs() {
  return {{.cameras = {}, .proprioception = 3, .instructions = {"go"}}, {.dimensions = 3}, 1};
}
}  // namespace

TEST_CASE("UnshardedWeights keep what a sharding promises") {
  const auto make = [](LinearModel& model, std::pmr::memory_resource& memory) {
    return dvla::UnshardedWeights<LinearModel>(model, memory);
  };
  for (const std::string& violation : dvla::testing::check_sharding(make)) FAIL_CHECK(violation);
}

TEST_CASE(
    "Moments, and masters in 16 bits, live in the pool that was given; float32 values are the masters") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    dvla::ModelPool pool{std::size_t{1} << 20};
    LinearModel model({.frozen_units = 1, .dtype = dtype}, inputs(), 7);
    dvla::UnshardedWeights<LinearModel> weights(model, pool);
    const std::vector<ShardPiece> pieces = weights.pieces();
    REQUIRE(pieces.size() == 2);  // the frozen unit has none
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const dvla::WeightUnit& unit = model.units()[i + 1];
      CHECK(pieces[i].range.count == unit.count());
      CHECK(pool.contains(pieces[i].first_moment.data()));
      CHECK(pool.contains(pieces[i].second_moment.data()));
      CHECK(pool.contains(pieces[i].weight.data()) == (dtype == Dtype::bf16));
      if (dtype == Dtype::f32) CHECK(pieces[i].weight.data() == unit.floats().data());
    }
  }
}

TEST_CASE("Optimiser groups scale learning rate and weight decay, run by run, wherever a unit is cut") {
  std::vector<float> weight(6, 1.0F), first(6), second(6);
  const std::vector<float> gradient(6, 0.5F);
  dvla::WeightUnit unit;
  unit.values = std::as_writable_bytes(std::span(weight));
  unit.runs = {{2, {1, 1}}, {2, {0.5, 0}}, {2, {0, 1}}};
  const dvla::AdamWKnobs knobs{.learning_rate = 0.1, .weight_decay = 0.5, .max_grad_norm = 0};
  for (const auto& [begin, count] : {std::pair<std::size_t, std::size_t>{0, 3}, {3, 3}}) {
    const auto cut = [begin = begin, count = count](auto& values) {
      return std::span(values).subspan(begin, count);
    };
    const ShardPiece piece{{static_cast<std::int64_t>(begin), static_cast<std::int64_t>(count)},
                           cut(weight),
                           cut(first),
                           cut(second)};
    dvla::step_piece(unit, static_cast<std::int64_t>(begin), piece, cut(gradient), knobs, 1, 0);
  }
  // By hand: a first step moves by the learning rate, after shrinking by learning rate x weight decay.
  const std::vector<double> expected{0.85, 0.85, 0.95, 0.95, 1, 1};
  for (std::size_t i = 0; i < 6; ++i)
    CHECK(static_cast<double>(weight[i]) == doctest::Approx(expected[i]).epsilon(1e-6));
}

TEST_CASE("A model whose optimiser runs do not cover its unit is refused in one sentence") {
  struct Short {
    void hold_gradients(bool) {}
    std::vector<dvla::WeightUnit> units() const { return all; }
    std::vector<dvla::WeightUnit> all;
  };
  std::vector<float> values(4), gradients(4);
  Short model{{{.dtype = Dtype::f32,
                .values = std::as_writable_bytes(std::span(values)),
                .gradients = gradients,
                .runs = {{3, {}}}}}};
  CHECK_THROWS_WITH_AS(
      dvla::units_to_train(model),
      "unit 0 of the model has 4 trainable elements, but its optimiser runs have 3 and its gradients 4; all "
      "three must be equal",
      dvla::Error);
}
