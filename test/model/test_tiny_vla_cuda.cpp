// dvla-test: gpu serial
// TinyVLA on a GPU against TinyVLA on the CPU, and what swapping its copies without a device-wide
// synchronisation needs.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <vector>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"
#include "test/gpu.hpp"

using namespace dvla;
using dvla::testing::detail::gradients_of;

namespace {

ModelInputs some_inputs(Device device) {
  ModelInputs inputs;
  inputs.observation.proprioception = 7;
  inputs.observation.cameras = {{"wrist", 16, 16}};
  inputs.observation.instructions = {"push the cube to the left goal", "push the cube right"};
  inputs.action.dimensions = 2;
  inputs.chunk = 4;
  inputs.device = device;
  return inputs;
}
MemoryKnobs on_cuda() { return {.environment_pool_mib = 8, .model_pool_mib = 8, .device = Device::cuda}; }

template <class Head>
struct Calls {
  explicit Calls(TinyVlaModel<Head>& which)
      : model(which),
        observation(observation_layout(some_inputs(Device::cpu).observation, {33}),
                    *std::pmr::new_delete_resource()),
        decision(model.decision_layout({33}), *std::pmr::new_delete_resource()),
        storage(33 * 8),
        action({33, 4, 2}, storage.data()) {
    dvla::testing::fill_observation(*observation, some_inputs(Device::cpu).observation, 4);
    for (std::int64_t i = 0; i < 33; ++i) rows.push_back(i);
  }
  void act(std::uint64_t seed = 7) {
    model.act(*observation, rows, Decoding::sample, seed, *decision, action);
  }
  std::vector<float> forward(const typename TinyVlaModel<Head>::Decision& of) {
    std::vector<float> log_prob(storage.size()), entropy(storage.size());
    model.forward(*observation, of, rows, log_prob, entropy);
    return log_prob;
  }
  void backward() {
    model.backward(std::vector<float>(storage.size(), 1.0f), std::vector<float>(storage.size(), 0.5f));
  }

  TinyVlaModel<Head>& model;
  OwnedRecord<Observation> observation;
  OwnedRecord<typename TinyVlaModel<Head>::Decision> decision;
  std::vector<float> storage;
  Field<float> action;
  std::vector<std::int64_t> rows;
};

double relative(std::span<const float> one, std::span<const float> other) {
  return dvla::testing::detail::distance(one, other) / (dvla::testing::detail::norm(other) + 1e-30);
}

}  // namespace

DOCTEST_TEST_CASE_TEMPLATE("on a GPU a model keeps what models promise", Head, TokenHead, FlowHead) {
  const DualPoolMachinery memory(on_cuda());
  typename Head::knobs knobs;
  knobs.width = 64;
  const auto make = [&](std::uint64_t seed) {
    return TinyVlaModel<Head>(knobs, some_inputs(Device::cuda), seed);
  };
  for (const std::string& fault : dvla::testing::check_model(make, some_inputs(Device::cuda)))
    DOCTEST_FAIL_CHECK(fault);
}

DOCTEST_TEST_CASE_TEMPLATE("log-probabilities and gradients are the CPU's", Head, TokenHead, FlowHead) {
  const DualPoolMachinery memory(on_cuda());
  TinyVlaModel<Head> gpu({}, some_inputs(Device::cuda), 3), cpu({}, some_inputs(Device::cpu), 3);
  gpu.hold_gradients(true), cpu.hold_gradients(true);
  Calls<Head> on_gpu(gpu), on_cpu(cpu);
  on_cpu.act();
  const auto expected = on_cpu.forward(*on_cpu.decision), given = on_gpu.forward(*on_cpu.decision);
  DOCTEST_CHECK(relative(given, expected) < 1e-4);
  on_cpu.backward(), on_gpu.backward();
  DOCTEST_CHECK(relative(gradients_of(gpu), gradients_of(cpu)) < 1e-3);
  const double loss = cpu.imitate(*on_cpu.observation, on_cpu.action, on_cpu.rows, 1.0);
  DOCTEST_CHECK(std::abs(gpu.imitate(*on_cpu.observation, on_cpu.action, on_cpu.rows, 1.0) - loss) <
                1e-3 * std::abs(loss));
  DOCTEST_CHECK(relative(gradients_of(gpu), gradients_of(cpu)) < 1e-3);
}

DOCTEST_TEST_CASE_TEMPLATE("so are values and their gradients", Head, TokenHead, FlowHead) {
  const DualPoolMachinery memory(on_cuda());
  const auto make = [](Device device) {
    ModelInputs inputs = some_inputs(device);
    inputs.value_head = {1, {}};
    auto model = std::make_unique<TinyVlaModel<Head>>(typename Head::knobs{}, inputs, 3);
    model->hold_gradients(true);
    return model;
  };
  const auto gpu = make(Device::cuda), cpu = make(Device::cpu);
  Calls<Head> calls(*cpu);
  calls.act();
  const auto learn = [&](TinyVlaModel<Head>& model) {
    std::vector<float> log_prob(calls.storage.size()), entropy(log_prob.size()), value(33), again(33);
    model.forward(*calls.observation, *calls.decision, calls.rows, log_prob, entropy, value);
    model.backward(std::vector<float>(log_prob.size(), 1.0f), std::vector<float>(log_prob.size(), 0.5f),
                   std::vector<float>(33, 1.0f));
    model.values(*calls.observation, calls.rows, again);
    DOCTEST_CHECK(relative(again, value) < 1e-4);
    return value;
  };
  DOCTEST_CHECK(relative(learn(*gpu), learn(*cpu)) < 1e-4);
  DOCTEST_CHECK(relative(gradients_of(*gpu), gradients_of(*cpu)) < 1e-3);
}

DOCTEST_TEST_CASE("one lane fills and swaps copies while another samples: no version is torn") {
  const DualPoolMachinery memory(on_cuda());
  using Model = TinyVlaModel<TokenHead>;
  const auto make = [] { return std::make_unique<Model>(TokenHeadKnobs{}, some_inputs(Device::cuda), 3); };
  Model plain({}, some_inputs(Device::cpu), 3);
  const std::vector<float> start = dvla::testing::detail::weights_of(plain);
  struct Versioned {
    std::unique_ptr<Model> model;
    int version = -1;
  };
  FrontBack<Versioned> copies(Versioned{make()}, Versioned{make()});
  constexpr int versions = 50;
  const auto scaled = [&](int version, Model& to) {
    std::vector<float> values = start;
    for (float& value : values) value *= 1 + 0.02f * static_cast<float>(version);
    dvla::testing::detail::set_weights(to, values);
  };
  std::atomic<bool> done{false};
  std::jthread reception([&] {
    Model::enter_lane(lane_kind::reception);
    for (int version = 0; version < versions; ++version)
      copies.fill([&](Versioned& back) {
        scaled(version, *back.model);
        back.version = version;
      });
    done = true;
  });
  Model::enter_lane(lane_kind::sampling);
  int seen = 0;
  for (bool last = false; !last;) {
    last = done;
    if (!copies.try_swap()) continue;
    Calls<TokenHead> calls(*copies.front().model);
    calls.act(static_cast<std::uint64_t>(copies.front().version));
    scaled(copies.front().version, plain);
    Calls<TokenHead> reference(plain);
    const auto expected = reference.forward(*calls.decision);
    DOCTEST_CHECK(relative(calls.decision->log_prob.span(), expected) < 1e-3);
    ++seen;
  }
  DOCTEST_CHECK(seen > 0);
  Model::enter_lane(lane_kind::every);
}

DOCTEST_TEST_CASE(
    "sampling and training at the same time, each on its lane's stream, give what each gives alone") {
  const DualPoolMachinery memory(on_cuda());
  const auto trained = [](lane_kind lane) {
    TinyVlaModel<TokenHead>::enter_lane(lane);
    TinyVlaModel<TokenHead> model({}, some_inputs(Device::cuda), 3);
    model.hold_gradients(true);
    Calls<TokenHead> calls(model);
    for (std::uint64_t i = 0; i < 20; ++i) {
      calls.act(i);
      (void)calls.forward(*calls.decision);
      calls.backward();
    }
    return gradients_of(model);
  };
  const auto alone = trained(lane_kind::every);
  std::vector<float> first, second;
  {
    std::jthread one([&] { first = trained(lane_kind::sampling); });
    std::jthread two([&] { second = trained(lane_kind::training); });
  }
  DOCTEST_CHECK(relative(first, alone) < 1e-4);
  DOCTEST_CHECK(relative(second, alone) < 1e-4);
}
