// dvla-test: torch
// A network apart from host memory, on any machine: the copies to and fro are made, from host memory to host
// memory. What a GPU adds, streams and events, test_tiny_vla_cuda.cpp asks where there is one.
#define DOCTEST_CONFIG_NO_SHORT_MACRO_NAMES
#include <doctest/doctest.h>

#include <algorithm>
#include <memory_resource>
#include <string>
#include <vector>

#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"

using namespace dvla;

namespace {

ModelInputs some_inputs() {
  ModelInputs inputs;
  inputs.observation.proprioception = 7;
  inputs.observation.cameras = {{"wrist", 8, 8}};
  inputs.observation.instructions = {"push the cube to the left goal", "push the cube right"};
  inputs.action.dimensions = 2;
  inputs.chunk = 2;
  return inputs;
}
template <class Head>
typename Head::knobs small() {
  typename Head::knobs knobs;
  knobs.width = 32;
  knobs.blocks = 2;
  knobs.attention_heads = 2;
  knobs.chunk = 2;
  return knobs;
}

template <class Head>
struct Apart : TinyVlaModel<Head> {
  using TinyVlaModel<Head>::TinyVlaModel;
  explicit Apart(std::uint64_t seed = 3)
      : TinyVlaModel<Head>(small<Head>(), some_inputs(), seed,
                           dvla::detail::ComputeDevice::apart_on_the_host()) {}
};

/// One rollout of 9 rows, its log-probabilities, and gradients of their sum.
template <class Model>
struct Calls {
  explicit Calls(Model& which)
      : model(which),
        observation(observation_layout(some_inputs().observation, {9}), *std::pmr::new_delete_resource()),
        decision(model.decision_layout({9}), *std::pmr::new_delete_resource()),
        storage(9 * 4),
        action({9, 2, 2}, storage.data()) {
    dvla::testing::fill_observation(*observation, some_inputs().observation, 4);
    for (std::int64_t i = 0; i < 9; ++i) rows.push_back(i);
  }
  std::vector<float> act() {
    model.act(*observation, rows, Decoding::sample, 7, *decision, action);
    return storage;
  }
  std::vector<float> forward() {
    std::vector<float> log_prob(storage.size()), entropy(storage.size());
    model.forward(*observation, *decision, rows, log_prob, entropy);
    return log_prob;
  }
  void backward() {
    model.backward(std::vector<float>(storage.size(), 1.0f), std::vector<float>(storage.size(), 0.5f));
  }

  Model& model;
  OwnedRecord<Observation> observation;
  OwnedRecord<typename Model::Decision> decision;
  std::vector<float> storage;
  Field<float> action;
  std::vector<std::int64_t> rows;
};

using dvla::testing::detail::gradients_of;

}  // namespace

static_assert(ModelElsewhere<TinyVlaModel<TokenHead>>);

DOCTEST_TEST_CASE_TEMPLATE("apart from host memory a model keeps what models promise", Head, TokenHead,
                           FlowHead) {
  TinyVlaModel<Head>::use_threads(1);
  const auto faults =
      dvla::testing::check_model([](std::uint64_t seed) { return Apart<Head>(seed); }, some_inputs());
  for (const std::string& fault : faults) DOCTEST_FAIL_CHECK(fault);
}

DOCTEST_TEST_CASE_TEMPLATE("it computes the same bits as in place", Head, TokenHead, FlowHead) {
  TinyVlaModel<Head>::use_threads(1);
  Apart<Head> apart;
  TinyVlaModel<Head> in_place(small<Head>(), some_inputs(), 3);
  Calls one(apart);
  Calls<TinyVlaModel<Head>> other(in_place);
  apart.hold_gradients(true), in_place.hold_gradients(true);
  DOCTEST_CHECK(one.act() == other.act());
  DOCTEST_CHECK(one.forward() == other.forward());
  apart.units()[1].gradients[5] = in_place.units()[1].gradients[5] = 2;  // what is added to
  one.backward(), other.backward();
  DOCTEST_CHECK(gradients_of(apart) == gradients_of(in_place));
  DOCTEST_CHECK(apart.imitate(*one.observation, one.action, one.rows, 0.5) ==
                in_place.imitate(*other.observation, other.action, other.rows, 0.5));
  DOCTEST_CHECK(gradients_of(apart) == gradients_of(in_place));
}

DOCTEST_TEST_CASE("weights are copied when they are said to be written") {
  Apart<TokenHead> model;
  Calls calls(model);
  calls.act();
  std::vector<std::vector<float>> seen;
  const auto scale = [&] {
    for (const WeightUnit& unit : model.units())
      for (float& value : unit.floats()) value *= 1.1f;
  };
  const auto see = [&] { seen.push_back(calls.forward()); };
  see();
  scale(), see();
  DOCTEST_CHECK(seen[1] == seen[0]);  // not said
  model.weights_written();
  see();
  DOCTEST_CHECK(seen[2] != seen[1]);
  see();
  DOCTEST_CHECK(seen[3] == seen[2]);
}

DOCTEST_TEST_CASE("hooks are told of all units before weights are copied, and after gradients are back") {
  struct Hooks final : UnitHooks {
    explicit Hooks(Apart<TokenHead>& which) : model(which) {
      for (const WeightUnit& unit : model.units()) {
        gathered.emplace_back(unit.floats().begin(), unit.floats().end());
        std::ranges::fill(unit.floats(), 0.0f);
      }
    }
    void after_unit(std::size_t, dvla::Direction) override {}
    void before_unit(std::size_t unit, dvla::Direction) override {
      before.push_back(unit);
      std::ranges::copy(gathered[unit], model.units()[unit].floats().begin());  // they arrive only now
    }
    void gradient_ready(std::size_t unit) override {
      ready.push_back(unit);
      whole &= std::ranges::any_of(model.units()[unit].gradients, [](float value) { return value != 0; });
    }
    Apart<TokenHead>& model;
    std::vector<std::vector<float>> gathered;
    std::vector<std::size_t> before, ready;
    bool whole = true;
  };
  Apart<TokenHead> model;
  Calls calls(model);
  calls.act();
  model.hold_gradients(true);
  const std::vector<float> expected = calls.forward();
  calls.backward();
  const std::vector<float> gradient = gradients_of(model);
  dvla::testing::detail::zero_gradients(model);
  Hooks hooks(model);
  model.hook_units(&hooks);
  model.weights_written();
  DOCTEST_CHECK(calls.forward() == expected);
  const std::vector<std::size_t> all{0, 1, 2, 3};
  DOCTEST_CHECK(hooks.before == all);
  DOCTEST_CHECK(hooks.ready.empty());
  calls.backward();
  DOCTEST_CHECK(hooks.ready == std::vector<std::size_t>({3, 2, 1, 0}));
  DOCTEST_CHECK(hooks.whole);
  DOCTEST_CHECK(gradients_of(model) == gradient);
  model.hook_units(nullptr);
}

DOCTEST_TEST_CASE("a program without CUDA makes no model for it") {
  ModelInputs inputs = some_inputs();
  inputs.device = Device::cuda;
  DOCTEST_CHECK_THROWS_AS(TinyVlaModel<TokenHead>(small<TokenHead>(), inputs, 1), ConfigError);
}
