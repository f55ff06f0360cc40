// dvla-test: torch
// Value heads around pi0.5, SmolVLA and OpenVLA-OFT, with adapters on either side of them and beside a frozen vision-language model:
// what models promise, the policy's own bits, what a value is made of, and several actors.
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/openvla_oft.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/model.hpp"
#include "test/model/value_calls.hpp"
#include "test/model/vla.hpp"
#include "test/sharding/actors.hpp"

using namespace dvla;
using dvla::testing::detail::gradients_of;
using dvla::testing::detail::set_weights;
using dvla::testing::detail::weights_of;
using dvla::testing::detail::zero_gradients;
using dvla_test::all, dvla_test::Calls, dvla_test::heap, dvla_test::some_inputs;

namespace {

template <class Policy>
using Model = machinery_t<Policy, void>;

template <class Policy>
typename Policy::knobs tiny(RewardLevel level = RewardLevel::chunk, Dtype dtype = Dtype::f32) {
  typename Policy::knobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  knobs.dtype = dtype;
  if constexpr (requires { knobs.horizon; }) knobs.horizon = 4;
  if constexpr (requires { knobs.lora_rank; }) knobs.lora_rank = 2;
  if constexpr (requires { knobs.value_level; }) knobs.value_level = level;
  return knobs;
}

bool of_head(const std::string& name) { return name.starts_with("value_head."); }

template <class M>
std::map<std::string, std::vector<float>> gradients_by_name(const M& model) {
  std::map<std::string, std::vector<float>> found;
  std::vector<std::size_t> next(model.units().size());
  for (const Parameter& each : model.parameters()) {
    if (!each.trainable) continue;
    const auto count = static_cast<std::size_t>(each.count());
    const auto part = model.units()[each.unit].gradients.subspan(next[each.unit], count);
    next[each.unit] += count;
    found[each.name].assign(part.begin(), part.end());
  }
  return found;
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
template <class Policy>
std::string faults(const typename Policy::knobs& knobs) {
  return all(dvla::testing::check_model(
      [&](std::uint64_t seed) { return Model<Policy>(knobs, some_inputs(), seed); }, some_inputs()));
}

}  // namespace

#define DVLA_BARE Pi05, SmolVLA, OpenVLAOFT

TEST_CASE_TEMPLATE("a published model with a value head keeps what models promise, in either precision", Bare,
                   DVLA_BARE) {
  using Policy = WithValue<Bare>;
  static_assert(HasValues<Model<Policy>> && TakesValueHead<Model<Bare>> && !HasValues<Model<Bare>>);
  Model<Policy>::use_threads(1);
  CHECK_EQ(faults<Policy>(tiny<Policy>(RewardLevel::action)), "");
  CHECK_EQ(faults<Policy>(tiny<Policy>(RewardLevel::chunk, Dtype::bf16)), "");
}

TEST_CASE_TEMPLATE("so it does with adapters, inside and outside", Policy, WithValue<LoRA<Pi05>>,
                   LoRA<WithValue<Pi05>>, WithValue<LoRA<SmolVLA>>, LoRA<WithValue<OpenVLAOFT>>) {
  Model<Policy>::use_threads(1);
  CHECK_EQ(faults<Policy>(tiny<Policy>()), "");
  Model<Policy> model(tiny<Policy>(), some_inputs(), 1);
  for (const Parameter& each : model.parameters())
    CHECK_EQ(each.trainable, of_head(each.name) || each.name.find(".lora_") != std::string::npos);
}

TEST_CASE_TEMPLATE("so it does with learned noise, whose steps share the prefix that the value is of", Bare,
                   Pi05, SmolVLA) {
  using Policy = WithValue<Bare>;
  Model<Policy>::use_threads(1);
  auto knobs = tiny<Policy>();
  knobs.noise = FlowNoise::flow_noise;
  CHECK_EQ(faults<Policy>(knobs), "");
}

TEST_CASE_TEMPLATE("so it does beside a frozen vision-language model, into which no slope of values goes",
                   Bare, Pi05, SmolVLA) {
  using Policy = WithValue<Bare>;
  Model<Policy>::use_threads(1);
  auto knobs = tiny<Policy>();
  knobs.train = Trained::expert;
  CHECK_EQ(faults<Policy>(knobs), "");
  Model<Policy> model(knobs, some_inputs(), 1);
  model.hold_gradients(true);
  Calls calls(model, some_inputs(), 6);
  calls.act();
  calls.forward_with_values();
  model.backward(std::vector<float>(calls.log_prob.size()), std::vector<float>(calls.log_prob.size()),
                 std::vector<float>(calls.value.size(), 1));
  for (const auto& [name, gradient] : gradients_by_name(model)) {
    CAPTURE(name);
    const bool any = std::ranges::any_of(gradient, [](float each) { return each != 0; });
    // The state's projection trains beside the frozen model, and the prefix holds what it makes.
    CHECK_EQ(any, of_head(name) || name.find("state_proj") != std::string::npos);
  }
}

TEST_CASE_TEMPLATE("values are the same bits from each call, and their slope reaches the vision tower", Bare,
                   DVLA_BARE) {
  using Policy = WithValue<Bare>;
  Model<Policy>::use_threads(1);
  for (const RewardLevel level : {RewardLevel::chunk, RewardLevel::action}) {
    Model<Policy> model(tiny<Policy>(level), some_inputs(), 3);
    stir(model);
    const std::int64_t V = level == RewardLevel::chunk ? 1 : 3;
    CHECK((model.decision_layout({5, 2}).value.extents() == Extents{5, 2, V}));
    Calls calls(model, some_inputs(), 6);
    for (const Decoding decoding : {Decoding::mode, Decoding::sample}) {
      calls.act(decoding);
      const std::span<const float> stored = calls.decision->value.span();
      model.values(*calls.observation, calls.rows, calls.value);
      CHECK(std::ranges::equal(calls.value, stored));
      CHECK_EQ(std::set<float>(stored.begin(), stored.end()).size(), stored.size());
    }
    calls.forward_with_values();
    CHECK(std::ranges::equal(calls.value, calls.decision->value.span()));
    model.hold_gradients(true);
    calls.forward_with_values();
    const std::vector<float> none(calls.log_prob.size());
    model.backward(none, none, std::vector<float>(calls.value.size(), 1));
    for (const auto& [name, gradient] : gradients_by_name(model)) {
      const bool any = std::ranges::any_of(gradient, [](float each) { return each != 0; });
      if (of_head(name) || name.find("patch") != std::string::npos) CHECK_MESSAGE(any, name);
    }
  }
}

TEST_CASE_TEMPLATE("the policy has the same bits with a value head and without", Bare, DVLA_BARE) {
  using Policy = WithValue<Bare>;
  Model<Policy>::use_threads(1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    CAPTURE(enum_name(dtype));
    Model<Policy> model(tiny<Policy>(RewardLevel::action, dtype), some_inputs(), 3);
    Model<Bare> bare(tiny<Bare>({}, dtype), some_inputs(), 3);
    CHECK((dvla_test::weights_but(of_head, model) == dvla_test::weights_but(of_head, bare)));
    Calls one(model, some_inputs(), 6);
    Calls<Model<Bare>> other(bare, some_inputs(), 6);
    model.hold_gradients(true), bare.hold_gradients(true);
    using Record = typename Model<Bare>::Decision;
    const auto same_gradients = [&] {
      const auto ours = gradients_by_name(model), theirs = gradients_by_name(bare);
      CHECK_GT(theirs.size(), 20);
      for (const auto& [name, gradient] : ours) {
        CAPTURE(name);
        if (theirs.contains(name))
          CHECK((gradient == theirs.at(name)));
        else  // what values alone read
          CHECK(std::ranges::all_of(gradient, [](float each) { return each == 0; }));
      }
      zero_gradients(model), zero_gradients(bare);
    };
    for (const Decoding decoding : {Decoding::mode, Decoding::sample}) {
      one.act(decoding), other.act(decoding);
      CHECK(record_checksum(static_cast<const Record&>(*one.decision)) == record_checksum(*other.decision));
      CHECK(one.storage == other.storage);
    }
    one.forward(), other.forward();
    CHECK(one.log_prob == other.log_prob);
    one.backward(), other.backward();
    same_gradients();
    CHECK(model.imitate(*one.observation, one.action, one.rows, 0.5) ==
          bare.imitate(*other.observation, other.action, other.rows, 0.5));
    same_gradients();
    one.forward_with_values(), other.forward();  // and a slope of 0 in the values
    CHECK(one.log_prob == other.log_prob);
    one.backward(), other.backward();
    same_gradients();
  }
}

TEST_CASE_TEMPLATE("the head and what it alone reads are the last unit, at the head's rate and in the plan",
                   Bare, DVLA_BARE) {
  using Policy = WithValue<Bare>;
  auto knobs = tiny<Policy>(RewardLevel::action);
  knobs.value_learning_rate = 7;
  const Model<Policy> model(knobs, some_inputs(), 3);
  const Model<Bare> bare(tiny<Bare>(), some_inputs(), 3);
  CHECK_EQ(model.units().size(), bare.units().size() + 1);
  std::int64_t heads = 0;
  for (const Parameter& each : model.parameters()) {
    CHECK_EQ(of_head(each.name), each.group.learning_rate == 7);
    if (!of_head(each.name)) continue;
    ++heads;
    CHECK(each.trainable);
    CHECK_EQ(each.unit, model.units().size() - 1);
  }
  CHECK_EQ(heads, std::is_same_v<Bare, OpenVLAOFT> ? 5 : 8);
  const ModelPlan plan = Model<Policy>::plan(knobs, some_inputs(), 4, 2),
                  without = Model<Bare>::plan(tiny<Bare>(), some_inputs(), 4, 2);
  REQUIRE_EQ(plan.parameters.size(), model.parameters().size());
  for (std::size_t i = 0; i < plan.parameters.size(); ++i) {
    CHECK_EQ(plan.parameters[i].name, model.parameters()[i].name);
    CHECK_EQ(plan.parameters[i].trainable, model.parameters()[i].trainable);
  }
  CHECK_EQ(plan.decision_bytes, record_bytes(model.decision_layout({1})));
  CHECK_GT(plan.sampling_bytes, without.sampling_bytes);
  CHECK_GT(plan.training_bytes, without.training_bytes);
}

TEST_CASE("what a head makes of the tokens that count is NumPy's") {
  const c10::InferenceMode ordinary(false);
  const c10::NoGradGuard no_graph;
  const nlohmann::json golden =
      nlohmann::json::parse(std::ifstream(DVLA_TEST_DIR "/golden/model/golden.json"));
  CHECK_EQ(golden["value"].size(), 3);
  for (const nlohmann::json& one : golden["value"]) {
    const std::string activation = one["activation"];
    CAPTURE(activation);
    const auto widths = one["widths"].get<std::vector<std::int64_t>>();
    dvla::parts::ApartMlp head;
    Parameters weights;
    weights.begin_unit();
    const dvla::parts::ApartMlp::Activation by =
        activation == "relu"   ? dvla::parts::ApartMlp::Activation(&at::relu)
        : activation == "tanh" ? dvla::parts::ApartMlp::Activation(&at::tanh)
                               : [](const at::Tensor& x) { return at::gelu(x); };
    head.declare(weights, "head", widths.front(), {widths.begin() + 1, widths.end() - 1}, widths.back(),
                 {.activation = by, .last_bias = one["last_bias"]});
    weights.allocate(1);
    std::map<std::string, std::vector<float>> given;
    for (std::size_t i = 0; i < one["layers"].size(); ++i)
      for (const char* part : {"weight", "bias"})
        given["head.mlp." + std::to_string(2 * i) + "." + part] =
            one["layers"][i][part].get<std::vector<float>>();
    if (!one["last_bias"].get<bool>()) given.erase("head.mlp.4.bias");
    CHECK_EQ(weights.parameters().size(), given.size());
    for (const Parameter& each : weights.parameters()) {
      REQUIRE(given.contains(each.name));
      REQUIRE_EQ(given[each.name].size() * sizeof(float), each.bytes());
      std::memcpy(each.data, given[each.name].data(), each.bytes());
    }
    auto tokens = one["tokens"].get<std::vector<float>>();
    const auto mask = one["counted"].get<std::vector<bool>>();
    at::Tensor counted = at::ones({1, std::ssize(mask)}, at::kBool);
    for (std::size_t i = 0; i < mask.size(); ++i) counted[0][static_cast<std::int64_t>(i)] = bool(mask[i]);
    const at::Tensor x = at::from_blob(tokens.data(), {1, std::ssize(mask), widths.front()}, at::kFloat);
    const at::Tensor value = head(dvla::layers::masked_mean(x, counted));
    REQUIRE_EQ(value.numel(), widths.back());
    for (std::int64_t i = 0; i < widths.back(); ++i)
      CHECK(value[0][i].item<double>() == doctest::Approx(one["value"][i].get<double>()).epsilon(1e-5));
  }
}

namespace {

/// A network's prefix as `watch` sees it, and what its value head reads: of a row that lacks a camera and a token.
template <class Network, class Shape>
void reads_the_prefix(Shape shape, const std::string& norm, bool padding_counts) {
  shape.views = 2, shape.text = 5, shape.horizon = 4, shape.actions = 7, shape.vocabulary = 50;
  shape.vision = {.width = 24, .layers = 2, .heads = 2, .mlp = 32, .image = 32, .patch = 8};
  shape.language.width = 48, shape.language.layers = 4, shape.language.mlp = 64;
  shape.language.heads = 6, shape.language.kv_heads = 2, shape.language.head_width = 8;
  const auto condition = shape.expert.condition;
  shape.expert = shape.language;
  shape.expert.width = 36, shape.expert.mlp = 40;
  if (condition > 0) shape.expert.condition = 36;
  shape.value = {8, 4};
  Parameters weights;
  Network network(shape, weights, false, ValueHead{1, {}});
  weights.allocate(3);
  const c10::InferenceMode no_graph;
  typename Network::Inputs inputs;
  for (int view = 0; view < 2; ++view) inputs.images.push_back(at::rand({2, 3, 32, 32}) * 2 - 1);
  inputs.image_mask = at::ones({2, 2}, at::kBool);
  inputs.image_mask[0][1] = false;
  inputs.tokens = at::randint(50, {2, 5}, at::kLong);
  inputs.token_mask = at::ones({2, 5}, at::kBool);
  inputs.token_mask[0][4] = false;
  inputs.state = at::randn({2, 32});
  at::Tensor last, read;
  network.watch([&](const std::string& name, const at::Tensor& value) {
    if (name == "prefix.layer.3") last = value;
    if (name == "value.input") read = value;
  });
  const at::Tensor values = network.values(inputs);
  network.watch({});
  at::Tensor weight;
  for (const Parameter& each : weights.parameters())
    if (each.name == norm) weight = at::from_blob(each.data, {48}, at::kFloat);
  const at::Tensor normal = last * (weight + shape.language.norm_offset) /
                            (last.square().mean(-1, true) + shape.language.norm_eps).sqrt();
  const std::int64_t S = last.size(1), a_view = padding_counts ? 16 : 1;
  for (const std::int64_t row : {0, 1}) {
    at::Tensor sum = at::zeros({48});
    std::int64_t count = 0;
    for (std::int64_t token = 0; token < S; ++token) {
      const bool absent = row == 0 && token >= a_view && token < 2 * a_view,
                 padding = row == 0 && token == 2 * a_view + 4;
      if (absent || (padding && !padding_counts)) continue;
      sum = sum + normal[row][token];
      ++count;
    }
    CHECK((sum / static_cast<double>(count) - read[row]).abs().max().item<double>() < 1e-5);
  }
  // Where nothing reads what padding becomes, it is masked as in the reference: it becomes the same.
  Parameters others;
  Network bare(shape, others);
  others.allocate(3);
  at::Tensor masked;
  bare.watch([&](const std::string& name, const at::Tensor& value) {
    if (name == "prefix.layer.3") masked = value;
  });
  (void)bare.prefix(inputs);
  CHECK(((masked - last).abs().max() / last.abs().max()).template item<double>() < 1e-5);
  // The same values over a prefix that was kept.
  const at::Tensor again = network.values(network.prefix(inputs));
  CHECK(again.equal(values));
}

}  // namespace

TEST_CASE("pi0.5's value is of the mean over the cameras that are there and all of the text") {
  reads_the_prefix<dvla::detail::Pi0Network>(
      dvla::detail::Pi0Shape{}, "paligemma_with_expert.paligemma.model.language_model.norm.weight", true);
}
TEST_CASE("SmolVLA's value is of the mean over the tokens that are valid") {
  reads_the_prefix<dvla::detail::SmolVlaNetwork>(
      dvla::detail::SmolVlaShape{}, "model.vlm_with_expert.vlm.model.text_model.norm.weight", false);
}

namespace {

/// Three steps of a loss of policy and values, of which `actor` of two has every second row: a pass with values, one without.
template <class M, class Weights>
void learn(M& model, Weights& weights, Calls<M>& calls, int actor, bool all_in_turn) {
  for (int step = 0; step < 3; ++step) {
    weights.zero_gradients();
    for (int at = all_in_turn ? 0 : actor; at < (all_in_turn ? 2 : actor + 1); ++at) {
      std::vector<std::int64_t> mine;
      for (std::int64_t row = at; row < std::ssize(calls.rows); row += 2) mine.push_back(row);
      const std::size_t n = mine.size();
      std::vector<float> log_prob(n * 6), entropy(n * 6), value(n), none(n * 6), d_value(n);
      weights.begin_pass({.backward = false});
      model.values(*calls.observation, mine, value);
      for (const bool values : {true, false}) {
        weights.begin_pass({.last = !values});
        const std::vector<float> d_log_prob(n * 6, values ? -0.02f : 0.01f);
        if (values) {
          model.forward(*calls.observation, *calls.decision, mine, log_prob, entropy, value);
          for (std::size_t i = 0; i < n; ++i) d_value[i] = 0.1f * (value[i] - 0.5f);
          model.backward(d_log_prob, none, d_value);
        } else {
          model.forward(*calls.observation, *calls.decision, mine, log_prob, entropy);
          model.backward(d_log_prob, none);
        }
      }
    }
    weights.step({.learning_rate = 1e-4});
  }
}

}  // namespace

TEST_CASE_TEMPLATE("several actors learn policy and values as one does, whenever units are released", Policy,
                   WithValue<Pi05>, WithValue<SmolVLA>, LoRA<WithValue<OpenVLAOFT>>) {
  Model<Policy>::use_threads(1);
  Model<Policy> one(tiny<Policy>(), some_inputs(), 3);
  one.hold_gradients(true);
  Calls first(one, some_inputs(), 6);
  first.act();
  const std::vector<float> start = weights_of(one);
  {
    UnshardedWeights<Model<Policy>> weights(one, heap);
    learn(one, weights, first, 0, true);
  }
  CHECK_GT(dvla::testing::detail::distance(weights_of(one), start), 1e-3);
  for (const UnitRelease release :
       {UnitRelease::after_use, UnitRelease::after_backward, UnitRelease::never}) {
    CAPTURE(static_cast<int>(release));
    actors_test::run_actors(2, [&](int actor, const GroupSource& groups) {
      Model<Policy>::use_threads(1);
      Model<Policy> model(tiny<Policy>(), some_inputs(), 3);
      Calls calls(model, some_inputs(), 6);
      calls.act();
      ShardedWeights<Model<Policy>> weights(model, heap, {.release = release}, groups);
      learn(model, weights, calls, actor, false);
      weights.gather_all();
      CHECK_LT(actors_test::largest_difference(weights_of(model), weights_of(one)), 2e-4);
    });
  }
}
