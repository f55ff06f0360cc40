// dvla-test: torch
// A value head around TinyVLA, with adapters on either side of it: what models promise, the policy's own bits,
// gradients of policy and values together, files, and several actors.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <memory_resource>
#include <string>
#include <type_traits>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/model.hpp"
#include "test/complaint.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/model/value_calls.hpp"
#include "test/model/vla.hpp"
#include "test/sharding/actors.hpp"

using namespace dvla;
using dvla_test::Calls, dvla_test::heap;

namespace {

using dvla::testing::detail::gradients_of;
using dvla::testing::detail::set_weights;
using dvla::testing::detail::UnitLog;
using dvla::testing::detail::weights_of;
using dvla::testing::detail::zero_gradients;

template <class Policy>
using Model = machinery_t<Policy, void>;

using Tokens = TinyVLA<TokenHead>;
using Flow = TinyVLA<FlowHead>;

ModelInputs state_inputs() {
  ModelInputs inputs;
  inputs.observation.proprioception = 7;
  inputs.observation.instructions = {"push the cube to the left goal", "push the cube right"};
  inputs.action.dimensions = 2;
  inputs.chunk = 3;
  return inputs;
}
ModelInputs camera_inputs() {
  ModelInputs inputs = state_inputs();
  inputs.observation.cameras = {{"top", 16, 8}};
  inputs.chunk = 2;
  return inputs;
}

template <class Policy>
typename Policy::knobs small(const ModelInputs& inputs, RewardLevel level = RewardLevel::chunk,
                             Dtype dtype = Dtype::f32) {
  typename Policy::knobs knobs;
  knobs.width = 32;
  knobs.blocks = 2;
  knobs.attention_heads = 2;
  knobs.chunk = static_cast<int>(inputs.chunk);
  knobs.dtype = dtype;
  if constexpr (requires { knobs.bins; }) knobs.bins = 8;
  if constexpr (requires { knobs.lora_rank; }) knobs.lora_rank = 4;
  if constexpr (requires { knobs.value_level; }) knobs.value_level = level;
  return knobs;
}

bool of_head(const std::string& name) { return name.starts_with("value."); }

/// Gradients, by name, of the head or of the rest.
template <class M>
std::map<std::string, std::vector<float>> gradients_by_name(const M& model, bool head) {
  std::map<std::string, std::vector<float>> all;
  std::vector<std::size_t> next(model.units().size());
  for (const Parameter& each : model.parameters()) {
    if (!each.trainable) continue;
    const auto count = static_cast<std::size_t>(each.count());
    const auto part = model.units()[each.unit].gradients.subspan(next[each.unit], count);
    next[each.unit] += count;
    if (of_head(each.name) == head) all[each.name].assign(part.begin(), part.end());
  }
  return all;
}
bool zero(const std::map<std::string, std::vector<float>>& gradients) {
  return std::ranges::all_of(gradients, [](const auto& each) {
    return std::ranges::all_of(each.second, [](float value) { return value == 0; });
  });
}
/// Weights that do something: adapters begin with halves that are 0.
template <class M>
void stir(M& model) {
  std::vector<float> weights = weights_of(model);
  SplitMix64 random(5);
  for (float& value : weights)
    if (value == 0) value = static_cast<float>(0.05 * random.normal());
  set_weights(model, weights);
}

std::string all(const std::vector<std::string>& sentences) {
  std::string text;
  for (const auto& sentence : sentences) text += sentence + "\n";
  return text;
}
template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

}  // namespace

static_assert(!HasValues<Model<Tokens>> && TakesValueHead<Model<Tokens>> &&
              TakesValueHead<Model<LoRA<Flow>>>);
static_assert(HasValues<Model<WithValue<Tokens>>> && HasValues<Model<WithValue<Flow>>>);
static_assert(HasValues<Model<WithValue<LoRA<Tokens>>>> && HasValues<Model<LoRA<WithValue<Tokens>>>>);
static_assert(std::string_view(WithValue<LoRA<Flow>>::name) == "WithValue<LoRA<TinyVLA<FlowHead>>>");

#define DVLA_ALL_WITH_VALUES                                                          \
  WithValue<Tokens>, WithValue<Flow>, WithValue<LoRA<Tokens>>, WithValue<LoRA<Flow>>, \
      LoRA<WithValue<Tokens>>, LoRA<WithValue<Flow>>

TEST_CASE_TEMPLATE("a model with a value head keeps what models promise, in either precision", Policy,
                   DVLA_ALL_WITH_VALUES) {
  Model<Policy>::use_threads(1);
  const auto faults = [](const ModelInputs& inputs, RewardLevel level, Dtype dtype) {
    return all(dvla::testing::check_model(
        [&](std::uint64_t seed) { return Model<Policy>(small<Policy>(inputs, level, dtype), inputs, seed); },
        inputs));
  };
  CHECK_EQ(faults(state_inputs(), RewardLevel::action, Dtype::f32), "");
  CHECK_EQ(faults(camera_inputs(), RewardLevel::chunk, Dtype::f32), "");
  CHECK_EQ(faults(camera_inputs(), RewardLevel::action, Dtype::bf16), "");
}

TEST_CASE_TEMPLATE("values are one a decision or one a control step, and the same bits from each call",
                   Policy, DVLA_ALL_WITH_VALUES) {
  Model<Policy>::use_threads(1);
  const ModelInputs inputs = state_inputs();
  for (const RewardLevel level : {RewardLevel::chunk, RewardLevel::action})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      Model<Policy> model(small<Policy>(inputs, level, dtype), inputs, 3);
      stir(model);
      const std::int64_t V = level == RewardLevel::chunk ? 1 : inputs.chunk;
      CHECK((model.decision_layout({5, 2}).value.extents() == Extents{5, 2, V}));
      Calls calls(model, inputs);
      for (const Decoding decoding : {Decoding::sample, Decoding::mode}) {
        calls.act(decoding);
        const std::span<const float> stored = calls.decision->value.span();
        CHECK(std::ranges::equal(calls.values(), stored));
        CHECK(std::ranges::adjacent_find(stored, std::equal_to{}) == stored.end());
        CHECK(std::ranges::any_of(stored, [](float value) { return std::abs(value) > 1e-3f; }));
        if (decoding == Decoding::mode) continue;
        calls.forward_with_values();
        CHECK(std::ranges::equal(calls.value, stored));
      }
      // Some rows: roundings may differ with the shape of matrix products, and what stands elsewhere stays.
      const std::vector<std::int64_t> some{1, 5, 23};
      std::vector<float> few(some.size() * static_cast<std::size_t>(V));
      model.values(*calls.observation, some, few);
      const std::vector<float> before(calls.decision->value.span().begin(),
                                      calls.decision->value.span().end());
      std::ranges::fill(calls.decision->value.span(), 7.0f);
      model.act(*calls.observation, some, Decoding::sample, 7, *calls.decision, calls.action);
      std::size_t next = 0;
      for (const std::int64_t row : calls.rows)
        for (std::int64_t v = 0; v < V; ++v) {
          const float now = calls.decision->value.at(row)[v];
          const bool asked = std::ranges::find(some, row) != some.end();
          if (!asked) {
            CHECK_EQ(now, 7.0f);
            continue;
          }
          CHECK_EQ(now, few[next++]);
          CHECK(now == doctest::Approx(before[static_cast<std::size_t>(row * V + v)]).epsilon(1e-4));
        }
    }
}

TEST_CASE_TEMPLATE("the policy has the same bits with a value head and without", Policy,
                   DVLA_ALL_WITH_VALUES) {
  using Bare = std::conditional_t < requires { small<Policy>({}).denoise_steps; }
  , std::conditional_t < requires { small<Policy>({}).lora_rank; }
  , LoRA<Flow>, Flow >, std::conditional_t < requires { small<Policy>({}).lora_rank; }
  , LoRA<Tokens>, Tokens >> ;
  Model<Policy>::use_threads(1);
  const ModelInputs inputs = camera_inputs();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Model<Policy> model(small<Policy>(inputs, RewardLevel::action, dtype), inputs, 3);
    Model<Bare> bare(small<Bare>(inputs, RewardLevel::action, dtype), inputs, 3);
    CHECK((dvla_test::weights_but(of_head, model) == dvla_test::weights_but(of_head, bare)));
    Calls one(model, inputs);
    Calls<Model<Bare>> other(bare, inputs);
    model.hold_gradients(true), bare.hold_gradients(true);
    using Record = typename Model<Bare>::Decision;
    for (const Decoding decoding : {Decoding::mode, Decoding::sample}) {
      one.act(decoding), other.act(decoding);
      CHECK(record_checksum(static_cast<const Record&>(*one.decision)) == record_checksum(*other.decision));
      CHECK(one.storage == other.storage);
    }
    one.forward(), other.forward();
    CHECK(one.log_prob == other.log_prob);
    CHECK(one.entropy == other.entropy);
    one.backward(), other.backward();
    CHECK((gradients_by_name(model, false) == gradients_by_name(bare, false)));
    CHECK(model.imitate(*one.observation, one.action, one.rows, 0.5) ==
          bare.imitate(*other.observation, other.action, other.rows, 0.5));
    CHECK((gradients_by_name(model, false) == gradients_by_name(bare, false)));
    CHECK(zero(gradients_by_name(model, true)));
    // With values in the pass, and a slope of 0 in them.
    zero_gradients(model), zero_gradients(bare);
    one.forward_with_values(), other.forward();
    CHECK(one.log_prob == other.log_prob);
    one.backward(), other.backward();
    CHECK((gradients_by_name(model, false) == gradients_by_name(bare, false)));
    CHECK(zero(gradients_by_name(model, true)));
  }
}

TEST_CASE_TEMPLATE("gradients of policy and values together are central differences of both", Policy,
                   DVLA_ALL_WITH_VALUES) {
  Model<Policy>::use_threads(1);
  for (const RewardLevel level : {RewardLevel::chunk, RewardLevel::action}) {
    const ModelInputs inputs = camera_inputs();
    Model<Policy> model(small<Policy>(inputs, level), inputs, 3);
    stir(model);
    model.hold_gradients(true);
    Calls calls(model, inputs);
    calls.act();
    calls.forward_with_values();
    calls.backward_with_values();
    const std::vector<float> whole = gradients_of(model), weights = weights_of(model);
    for (const auto& each : gradients_by_name(model, true))
      CHECK_MESSAGE(std::ranges::any_of(each.second, [](float value) { return value != 0; }), each.first);
    SplitMix64 random(17);
    for (int trial = 0; trial < 4; ++trial) {
      std::vector<double> direction(whole.size());
      double length = 0, expected = 0;
      for (std::size_t i = 0; i < whole.size(); ++i) {
        direction[i] =
            trial == 0 || i % 3 == static_cast<std::size_t>(trial - 1) ? static_cast<double>(whole[i]) : 0;
        length += direction[i] * direction[i];
      }
      length = std::sqrt(length);
      for (double& each : direction)
        each =
            (each + 0.1 * length / std::sqrt(static_cast<double>(whole.size())) * random.normal()) / length;
      for (std::size_t i = 0; i < whole.size(); ++i) expected += direction[i] * static_cast<double>(whole[i]);
      const auto at = [&](double along) {
        std::vector<float> there(weights.size());
        for (std::size_t i = 0; i < there.size(); ++i)
          there[i] = static_cast<float>(static_cast<double>(weights[i]) + along * direction[i]);
        set_weights(model, there);
        return calls.loss();
      };
      const double step = 2e-3;
      const double measured = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
      set_weights(model, weights);
      CHECK(measured == doctest::Approx(expected).epsilon(0.01));
    }
    // Parts of the batch, and of the loss, add up.
    zero_gradients(model);
    const std::vector<float> of_log_prob = calls.of_log_prob(), of_entropy = calls.of_entropy(),
                             of_value = calls.of_value();
    const std::size_t E = of_log_prob.size() / calls.rows.size(), V = of_value.size() / calls.rows.size();
    for (const std::size_t first : {0, 16}) {
      const std::size_t count = first == 0 ? 16 : 8;
      const auto part = [&](const auto& of, std::size_t width) {
        return std::span(of).subspan(first * width, count * width);
      };
      std::vector<float> log_prob(count * E), entropy(count * E), value(count * V);
      model.forward(*calls.observation, *calls.decision, part(calls.rows, 1), log_prob, entropy, value);
      model.backward(part(of_log_prob, E), part(of_entropy, E), part(of_value, V));
    }
    CHECK(dvla::testing::detail::distance(gradients_of(model), whole) <=
          1e-4 * dvla::testing::detail::norm(whole));
  }
}

TEST_CASE_TEMPLATE("the head trains, as a unit of its own, at its own rate, beside a frozen model too",
                   Policy, DVLA_ALL_WITH_VALUES) {
  const ModelInputs inputs = camera_inputs();
  auto knobs = small<Policy>(inputs, RewardLevel::action);
  knobs.value_learning_rate = 7;
  const Model<Policy> model(knobs, inputs, 3);
  REQUIRE_EQ(model.units().size(), 5);
  std::vector<std::string> head;
  for (const Parameter& each : model.parameters()) {
    CHECK_EQ(of_head(each.name), each.group.learning_rate == 7);
    CHECK_EQ(each.group.weight_decay, 1);
    if (!of_head(each.name)) continue;
    head.push_back(each.name);
    CHECK(each.trainable);
    CHECK_EQ(each.unit, each.name == "value.query" ? 0 : 4);
  }
  CHECK_EQ(head,
           std::vector<std::string>{"value.query", "value.norm.weight", "value.norm.bias", "value.in.weight",
                                    "value.in.bias", "value.out.weight", "value.out.bias"});
  CHECK_EQ(model.units()[4].count(), 2 * 32 + 33 * 32 + 33 * inputs.chunk);
  CHECK_EQ(model.units()[4].runs.size(), 1);

  const ModelPlan plan = Model<Policy>::plan(knobs, inputs, 16, 16);
  REQUIRE_EQ(plan.parameters.size(), model.parameters().size());
  for (std::size_t i = 0; i < plan.parameters.size(); ++i) {
    CHECK_EQ(plan.parameters[i].name, model.parameters()[i].name);
    CHECK_EQ(plan.parameters[i].shape, model.parameters()[i].shape);
    CHECK_EQ(plan.parameters[i].trainable, model.parameters()[i].trainable);
  }
  CHECK_EQ(plan.decision_bytes, record_bytes(model.decision_layout({1})));
  using Head = std::conditional_t < requires { knobs.denoise_steps; }
  , FlowHead, TokenHead > ;
  CHECK_GT(plan.training_bytes, TinyVlaModel<Head>::plan(knobs, inputs, 16, 16).training_bytes);
}

TEST_CASE("values are learned, by body and head, at the default factor") {
  using Policy = WithValue<Tokens>;
  Model<Policy>::use_threads(1);
  const ModelInputs inputs = state_inputs();
  typename Policy::knobs knobs;
  knobs.chunk = static_cast<int>(inputs.chunk);
  Model<Policy> model(knobs, inputs, 3);
  model.hold_gradients(true);
  UnshardedWeights<Model<Policy>> weights(model, heap);
  Calls calls(model, inputs, 64);
  calls.act();
  std::vector<float> slope(calls.value.size()), none(calls.log_prob.size());
  std::vector<double> losses;
  for (int step = 0; step < 60; ++step) {
    weights.zero_gradients();
    calls.forward_with_values();
    losses.push_back(0);
    for (std::size_t row = 0; row < slope.size(); ++row) {
      // Language turns a sign, as it does in the tasks.
      const auto at = static_cast<std::int64_t>(row);
      const double sign = calls.observation->instruction[at] == 0 ? 1 : -1;
      const double aim =
          0.5 + 0.4 * std::tanh(sign * static_cast<double>(calls.observation->proprioception.at(at)[0]));
      const double off = static_cast<double>(calls.value[row]) - aim;
      losses.back() += off * off / static_cast<double>(slope.size());
      slope[row] = static_cast<float>(2 * off / static_cast<double>(slope.size()));
    }
    model.backward(none, none, slope);
    weights.step({.learning_rate = 3e-4});
  }
  MESSAGE("loss " << losses.front() << " -> " << losses.back());
  CHECK_LT(losses.back(), 0.02 * losses.front());
}

TEST_CASE("hooks hear of each unit in time, whether values are asked for, or are all that is") {
  using Policy = WithValue<LoRA<Tokens>>;
  const ModelInputs inputs = state_inputs();
  Model<Policy> model(small<Policy>(inputs), inputs, 3);
  model.hold_gradients(true);
  Calls calls(model, inputs);
  calls.act();
  const std::vector<std::size_t> down{4, 3, 2, 1, 0};
  const auto heard = [&](auto call) {
    UnitLog log;
    model.hook_units(&log);
    call();
    model.hook_units(nullptr);
    return log;
  };
  const auto faults = [&](UnitLog log) { return all(log.faults(model.units(), false)); };
  const UnitLog with = heard([&] { calls.forward_with_values(), calls.backward_with_values(); });
  CHECK_EQ(faults(with), "");
  CHECK_EQ(with.ready, down);
  CHECK_EQ(with.visited.size(), 10);
  const UnitLog slope_0 = heard([&] { calls.forward_with_values(), calls.backward(); });
  CHECK_EQ(faults(slope_0), "");
  CHECK_EQ(slope_0.ready, down);
  const UnitLog without = heard([&] { calls.forward(), calls.backward(); });
  CHECK_EQ(faults(without), "");
  CHECK_EQ(without.ready, down);
  const UnitLog imitated = heard([&] { model.imitate(*calls.observation, calls.action, calls.rows, 1); });
  CHECK_EQ(faults(imitated), "");
  CHECK_EQ(imitated.ready, down);
  UnitLog alone = heard([&] { calls.values(); });
  CHECK(alone.found.sentences.empty());
  CHECK_FALSE(alone.open);
  CHECK(alone.ready.empty());
  std::vector<std::size_t> used;
  for (const auto& [unit, direction] : alone.visited)
    if (direction == Direction::forward) used.push_back(unit);
  CHECK_EQ(used, std::vector<std::size_t>{0, 1, 2, 4});  // actions are not asked for
  // values() in between does not disturb a backward pass.
  zero_gradients(model);
  calls.forward_with_values();
  calls.values();
  calls.backward_with_values();
  const std::vector<float> disturbed = gradients_of(model);
  zero_gradients(model);
  calls.forward_with_values();
  calls.backward_with_values();
  CHECK_EQ(disturbed, gradients_of(model));
}

TEST_CASE_TEMPLATE("apart from host memory values are the same bits", Head, TokenHead, FlowHead) {
  TinyVlaModel<Head>::use_threads(1);
  ModelInputs inputs = camera_inputs();
  inputs.value_head = {inputs.chunk, {}};
  const auto knobs = small<TinyVLA<Head>>(inputs);
  TinyVlaModel<Head> apart(knobs, inputs, 3, dvla::detail::ComputeDevice::apart_on_the_host()),
      in_place(knobs, inputs, 3);
  apart.hold_gradients(true), in_place.hold_gradients(true);
  Calls<TinyVlaModel<Head>> one(apart, inputs), other(in_place, inputs);
  const std::size_t count = one.rows.size() * static_cast<std::size_t>(inputs.chunk);
  one.value.resize(count), other.value.resize(count);
  std::vector<float> stored(count), there(count);
  const Extents extents{static_cast<std::int64_t>(one.rows.size()), inputs.chunk};
  apart.act(*one.observation, one.rows, Decoding::sample, 7, *one.decision, one.action,
            Field<float>(extents, stored.data()));
  in_place.act(*other.observation, other.rows, Decoding::sample, 7, *other.decision, other.action,
               Field<float>(extents, there.data()));
  CHECK_EQ(stored, there);
  CHECK_EQ(one.values(), other.values());
  one.forward_with_values(), other.forward_with_values();
  CHECK_EQ(one.value, other.value);
  one.backward_with_values(), other.backward_with_values();
  CHECK_EQ(gradients_of(apart), gradients_of(in_place));
}

TEST_CASE("calls without a value head, or of sizes that do not fit, are refused in one sentence") {
  const ModelInputs inputs = state_inputs();
  Model<Tokens> bare(small<Tokens>(inputs), inputs, 3);
  Calls calls(bare, inputs);
  calls.act();
  const std::string no_head = "TinyVLA: this model has no value head; make it as WithValue<Model>";
  CHECK_EQ(error_of([&] { calls.values(); }), no_head);
  CHECK_EQ(error_of([&] { calls.forward_with_values(); }), no_head);
  std::vector<float> storage(24);
  CHECK_EQ(error_of([&] {
             bare.act(*calls.observation, calls.rows, Decoding::mode, 7, *calls.decision, calls.action,
                      Field<float>({24, 1}, storage.data()));
           }),
           no_head);

  using Policy = WithValue<Tokens>;
  Model<Policy> model(small<Policy>(inputs), inputs, 3);
  Calls with(model, inputs);
  with.act();
  std::vector<float> few(23);
  CHECK_EQ(error_of([&] { model.values(*with.observation, with.rows, few); }),
           "TinyVLA: value needs rows x values a decision = 24 floats, not 23");
  const std::vector<std::int64_t> outside{24};
  CHECK_EQ(error_of([&] { model.values(*with.observation, outside, std::span(few).first(1)); }),
           "TinyVLA: row 24 was asked for, but the batch has 24 rows");
  model.hold_gradients(true);
  with.forward_with_values();
  CHECK_EQ(
      error_of([&] { model.backward(with.of_log_prob(), with.of_entropy(), few); }),
      "TinyVLA: backward was given slopes of 23 values, and forward gave 24; call the form of forward that "
      "gives values, and give a slope for each");
  with.forward();
  CHECK(error_of([&] { with.backward_with_values(); }).find("slopes of 24 values, and forward gave 0") !=
        std::string::npos);
  with.decision->value = Field<float>({24, 2}, with.decision->value.data());
  CHECK_EQ(error_of([&] { with.act(); }),
           "TinyVLA: act was given 24 observations, but values of other extents than [24, 1]");
  with.decision->value = Field<float>({24, 1}, with.decision->value.data());
  model.units()[4].floats().back() = std::numeric_limits<float>::quiet_NaN();
  CHECK_EQ(error_of([&] { with.act(); }),
           "TinyVLA: the value of row 0 is not finite; the weights or the observation hold NaN or infinity");
}

TEST_CASE("files: a policy is read from a file with a head, and frozen beside a new head from one without") {
  const dvla_test::TemporaryFolder folder;
  const ModelInputs inputs = state_inputs();
  Model<Tokens> bare(small<Tokens>(inputs), inputs, 3);
  using Policy = WithValue<Tokens>;
  Model<Policy> model(small<Policy>(inputs), inputs, 4);
  io::write_safetensors(folder / "bare", weights_to_write(bare, WeightSet::all));
  io::write_safetensors(folder / "headed", weights_to_write(model, WeightSet::all));
  CHECK(error_of([&] {
          load_weights(model, io::SafetensorsFile(folder / "bare"));
        }).ends_with("has no tensor 'value.query' among its " + std::to_string(bare.parameters().size())));
  load_weights(bare, io::SafetensorsFile(folder / "headed"));
  CHECK((dvla_test::weights_but(of_head, bare) == dvla_test::weights_but(of_head, model)));

  const auto adapted = [&](auto wrapped, const char* base) {
    using Wrapped = typename decltype(wrapped)::type;
    auto knobs = small<Wrapped>(inputs);
    knobs.base_checkpoint = (folder / base).string();
    Model<Wrapped> learner(knobs, inputs, 5);
    for (const Parameter& each : learner.parameters())
      if (!each.trainable)
        for (const Parameter& other : bare.parameters())
          if (each.name == other.name) CHECK_EQ(std::memcmp(each.data, other.data, each.bytes()), 0);
    stir(learner);
    Calls calls(learner, inputs);
    calls.act();
    // Merged: the base's names alone, and the same policy.
    export_merged(learner, folder / "merged");
    Model<Tokens> merged(small<Tokens>(inputs), inputs, 6);
    load_weights(merged, io::SafetensorsFile(folder / "merged"));
    CHECK_FALSE(io::SafetensorsFile(folder / "merged").contains("value.query"));
    std::vector<float> log_prob(calls.log_prob.size()), entropy(log_prob.size());
    merged.forward(*calls.observation, *calls.decision, calls.rows, log_prob, entropy);
    for (std::size_t i = 0; i < log_prob.size(); ++i)
      CHECK(calls.decision->log_prob[static_cast<std::int64_t>(i)] ==
            doctest::Approx(log_prob[i]).epsilon(1e-4));
  };
  adapted(std::type_identity<WithValue<LoRA<Tokens>>>{}, "headed");
  io::write_safetensors(folder / "bare", weights_to_write(bare, WeightSet::all));
  adapted(std::type_identity<WithValue<LoRA<Tokens>>>{}, "bare");
  adapted(std::type_identity<LoRA<WithValue<Tokens>>>{}, "bare");
  const Model<WithValue<LoRA<Tokens>>> outside(small<WithValue<LoRA<Tokens>>>(inputs), inputs, 5);
  const Model<LoRA<WithValue<Tokens>>> inside(small<LoRA<WithValue<Tokens>>>(inputs), inputs, 5);
  CHECK_EQ(weights_of(outside), weights_of(inside));
}

namespace {

/// 20 steps of a loss of policy and values, of which `actor` of `actors` has its rows, in two passes with values,
/// one without, and one of values alone.
template <class M, class Weights>
void learn(M& model, Weights& weights, Calls<M>& calls, int actor, int actors, bool all_in_turn) {
  for (int step = 0; step < 20; ++step) {
    weights.zero_gradients();
    for (int at = all_in_turn ? 0 : actor; at < (all_in_turn ? actors : actor + 1); ++at) {
      std::vector<std::int64_t> mine;
      for (std::int64_t row = at; row < std::ssize(calls.rows); row += actors) mine.push_back(row);
      const std::size_t E = calls.log_prob.size() / calls.rows.size(), n = mine.size();
      std::vector<float> log_prob(n * E), entropy(n * E), value(n), d_log_prob(n * E), none(n * E),
          d_value(n);
      weights.begin_pass({.backward = false});
      model.values(*calls.observation, mine, value);
      for (const int pass : {0, 1, 2}) {
        weights.begin_pass({.last = pass == 2});
        const bool values = pass != 1;
        if (values)
          model.forward(*calls.observation, *calls.decision, mine, log_prob, entropy, value);
        else
          model.forward(*calls.observation, *calls.decision, mine, log_prob, entropy);
        for (std::size_t i = 0; i < n; ++i) {
          d_value[i] = 0.1f * (value[i] - calls.observation->proprioception.at(mine[i])[1]);
          for (std::size_t e = 0; e < E; ++e) d_log_prob[i * E + e] = i % 2 == 0 ? -0.02f : 0.01f;
        }
        if (values)
          model.backward(d_log_prob, none, d_value);
        else
          model.backward(d_log_prob, none);
      }
    }
    weights.step({.learning_rate = 1e-4});
  }
}

}  // namespace

TEST_CASE_TEMPLATE("several actors learn policy and values as one does, whenever units are released", Policy,
                   WithValue<Tokens>, LoRA<WithValue<Flow>>) {
  Model<Policy>::use_threads(1);
  const ModelInputs inputs = camera_inputs();
  constexpr int actors = 2;
  Model<Policy> one(small<Policy>(inputs), inputs, 3);
  one.hold_gradients(true);
  Calls first(one, inputs);
  first.act();
  const std::vector<float> start = weights_of(one);
  {
    UnshardedWeights<Model<Policy>> weights(one, heap);
    learn(one, weights, first, 0, actors, true);
  }
  CHECK_GT(dvla::testing::detail::distance(weights_of(one), start), 1e-3);
  for (const UnitRelease release :
       {UnitRelease::after_use, UnitRelease::after_backward, UnitRelease::never}) {
    CAPTURE(static_cast<int>(release));
    actors_test::run_actors(actors, [&](int actor, const GroupSource& groups) {
      Model<Policy>::use_threads(1);
      Model<Policy> model(small<Policy>(inputs), inputs, 3);
      Calls calls(model, inputs);
      calls.act();
      ShardedWeights<Model<Policy>> weights(model, heap, {.release = release}, groups);
      learn(model, weights, calls, actor, actors, false);
      weights.gather_all();
      CHECK_LT(actors_test::largest_difference(weights_of(model), weights_of(one)), 2e-4);
    });
  }
}
