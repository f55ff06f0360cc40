// dvla-test: torch
// Decisions that keep what the action expert sees of a frozen vision-language model (model.keep_prefix): an update over them is the
// update that runs that model again, which it then does not; what models promise holds; records, plans and several actors.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory_resource>
#include <numeric>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/model.hpp"
#include "test/model/vla.hpp"
#include "test/sharding/actors.hpp"

using namespace dvla;
using dvla::testing::detail::distance;
using dvla::testing::detail::gradients_of;
using dvla::testing::detail::ModelBatch;
using dvla::testing::detail::norm;
using dvla::testing::detail::weights_of;
using dvla::testing::detail::zero_gradients;
using dvla_test::some_inputs;

namespace {

template <class Policy>
using Model = machinery_t<Policy, void>;

std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

template <class Policy = Pi05>
typename Policy::knobs tiny(bool keeps, FlowNoise noise = FlowNoise::flow_sde, Dtype dtype = Dtype::f32) {
  typename Policy::knobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  knobs.horizon = 4;
  knobs.train = Trained::expert;
  knobs.noise = noise;
  knobs.dtype = dtype;
  knobs.keep_prefix = keeps;
  if constexpr (requires { knobs.lora_rank; }) knobs.lora_rank = 2;
  return knobs;
}
/// The same decisions without their prefixes, as a model lays them out that does not keep them.
template <class Decision>
Decision without_prefix(Decision decision) {
  decision.prefix = {};
  return decision;
}
/// What stands in the frames and the state is not what was acted on.
void spoil(Observation& observation) {
  for (Field<std::uint8_t>& frames : observation.frames)
    for (std::uint8_t& pixel : frames.span()) pixel = static_cast<std::uint8_t>(255 - pixel);
  for (float& number : observation.proprioception.span()) number = -number;
}

}  // namespace

TEST_CASE("log-probabilities and gradients over kept prefixes have the bits of those that make them again") {
  Pi05Model::use_threads(1);
  for (const FlowNoise noise : {FlowNoise::flow_sde, FlowNoise::flow_noise})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const bool recomputes : {false, true}) {
        CAPTURE(enum_name(noise));
        CAPTURE(enum_name(dtype));
        CAPTURE(recomputes);
        auto knobs = tiny(true, noise, dtype);
        knobs.gradient_checkpointing = recomputes;
        Pi05Model keeps(knobs, some_inputs(), 3);
        knobs.keep_prefix = false;
        Pi05Model runs(knobs, some_inputs(), 3);
        ModelBatch<Pi05Model> kept(keeps, some_inputs(), 6), plain(runs, some_inputs(), 6);
        kept.act(keeps, Decoding::sample, 7), plain.act(runs, Decoding::sample, 7);
        CHECK(record_checksum(without_prefix(*kept.decision)) == record_checksum(*plain.decision));
        CHECK(kept.action_storage == plain.action_storage);
        keeps.hold_gradients(true), runs.hold_gradients(true);
        // All rows, as act had them: the same products of matrices. Of some rows those have other shapes, and round otherwise.
        CHECK(kept.log_prob(keeps, kept.order) == plain.log_prob(runs, plain.order));
        CHECK(kept.last_entropy == plain.last_entropy);
        kept.accumulate(keeps, kept.order), plain.accumulate(runs, plain.order);
        CHECK_GT(norm(gradients_of(keeps)), 0);
        CHECK(gradients_of(keeps) == gradients_of(runs));
        zero_gradients(keeps), zero_gradients(runs);
        const std::vector<std::int64_t> some{4, 1, 2};
        const double rounding = dtype == Dtype::f32 ? 1e-4 : 0.05;
        kept.accumulate(keeps, some), plain.accumulate(runs, some);
        CHECK_LT(distance(gradients_of(keeps), gradients_of(runs)), rounding * norm(gradients_of(runs)));
        zero_gradients(keeps), zero_gradients(runs);
        // Demonstrations have no decisions: their prefixes are made.
        CHECK(keeps.imitate(*kept.observation, kept.action, kept.order, 0.5) ==
              runs.imitate(*plain.observation, plain.action, plain.order, 0.5));
        CHECK(gradients_of(keeps) == gradients_of(runs));
      }
}

TEST_CASE("an update reads the prefix from the decision, and nothing of the observation") {
  Pi05Model::use_threads(1);
  Pi05Model model(tiny(true), some_inputs(), 3);
  ModelBatch<Pi05Model> batch(model, some_inputs(), 4);
  batch.act(model, Decoding::sample, 7);
  const std::vector<float> before = batch.log_prob(model, batch.order);
  spoil(*batch.observation);
  CHECK(batch.log_prob(model, batch.order) == before);
  // A copy reads what the other has kept.
  Pi05Model copy(model, share_frozen);
  CHECK(batch.log_prob(copy, batch.order) == before);
  std::vector<std::uint8_t> first(batch.decision->prefix.at(0).span().begin(),
                                  batch.decision->prefix.at(0).span().end());
  std::ranges::copy(batch.decision->prefix.at(1).span(), batch.decision->prefix.at(0).data());
  const std::vector<float> other = batch.log_prob(model, batch.order);
  const auto elements = static_cast<std::ptrdiff_t>(batch.elements);
  CHECK_FALSE(std::equal(other.begin(), other.begin() + elements, before.begin()));
  CHECK(std::equal(other.begin() + elements, other.end(), before.begin() + elements));
  // The mode is not trained on, and writes none.
  std::ranges::fill(batch.decision->prefix.span(), std::uint8_t{0x55});
  batch.act(model, Decoding::mode, 7);
  CHECK(std::ranges::all_of(batch.decision->prefix.span(), [](std::uint8_t each) { return each == 0x55; }));
}

TEST_CASE_TEMPLATE("a model that keeps prefixes keeps what models promise", Policy, Pi05, WithValue<Pi05>,
                   LoRA<Pi05>, WithValue<LoRA<Pi05>>) {
  Model<Policy>::use_threads(1);
  for (const auto& [noise, dtype] :
       {std::pair(FlowNoise::flow_sde, Dtype::f32), std::pair(FlowNoise::flow_noise, Dtype::f32),
        std::pair(FlowNoise::flow_sde, Dtype::bf16)}) {
    CAPTURE(enum_name(noise));
    CAPTURE(enum_name(dtype));
    const auto knobs = tiny<Policy>(true, noise, dtype);
    const auto make = [&](std::uint64_t seed) { return Model<Policy>(knobs, some_inputs(), seed); };
    CHECK_EQ(dvla_test::all(dvla::testing::check_model(make, some_inputs())), "");
  }
}

TEST_CASE("values over kept prefixes have the bits that act stored, and their gradient") {
  using Valued = Model<WithValue<Pi05>>;
  Valued::use_threads(1);
  Valued keeps(tiny<WithValue<Pi05>>(true), some_inputs(), 3),
      runs(tiny<WithValue<Pi05>>(false), some_inputs(), 3);
  ModelBatch<Valued> kept(keeps, some_inputs(), 5), plain(runs, some_inputs(), 5);
  kept.act(keeps, Decoding::sample, 7), plain.act(runs, Decoding::sample, 7);
  CHECK(std::ranges::equal(kept.decision->value.span(), plain.decision->value.span()));
  std::vector<float> value(5), again(5), log_prob(5 * 6), entropy(5 * 6), none(5 * 6);
  keeps.values(*kept.observation, kept.order, value);
  CHECK(std::ranges::equal(value, kept.decision->value.span()));
  keeps.hold_gradients(true), runs.hold_gradients(true);
  keeps.forward(*kept.observation, *kept.decision, kept.order, log_prob, entropy, again);
  CHECK(value == again);
  const std::vector<float> slope{1, -2, 0.5f, 0, 3};
  keeps.backward(none, none, slope);
  runs.forward(*plain.observation, *plain.decision, plain.order, log_prob, entropy, again);
  runs.backward(none, none, slope);
  CHECK_GT(norm(gradients_of(keeps)), 0);
  CHECK(gradients_of(keeps) == gradients_of(runs));
}

TEST_CASE("a record's prefix is as large as the plan says, and an update takes less memory for it") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const auto bytes = [&]<class Policy>(const typename Policy::knobs& knobs) {
      const Model<Policy> model(knobs, some_inputs(), 1);
      const std::size_t record = record_bytes(model.decision_layout({1}));
      CHECK_EQ(Model<Policy>::plan(knobs, some_inputs(), 4, 2).decision_bytes, record);
      return static_cast<std::int64_t>(record);
    };
    const auto policy =
        bytes.operator()<Pi05>(tiny(true, {}, dtype)) - bytes.operator()<Pi05>(tiny(false, {}, dtype));
    const auto valued = bytes.operator()<WithValue<Pi05>>(tiny<WithValue<Pi05>>(true, {}, dtype)) -
                        bytes.operator()<WithValue<Pi05>>(tiny<WithValue<Pi05>>(false, {}, dtype));
    // Two cameras of 16 tokens and 200 of text, in 2 layers keys and values of one head of 16; a byte a token; 64 of float32.
    const std::int64_t numbers = 2 * 2 * 232 * 16, size = dtype == Dtype::f32 ? 4 : 2;
    CHECK_EQ(policy, (numbers * size + 232 + 63) / 64 * 64);
    CHECK_EQ(valued, (numbers * size + 232 + 64 * 4 + 63) / 64 * 64);
  }
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::full;
  knobs.train = Trained::expert;
  knobs.dtype = Dtype::bf16;
  ModelInputs inputs = some_inputs();
  inputs.chunk = knobs.chunk;
  for (const bool recomputes : {false, true}) {
    knobs.gradient_checkpointing = recomputes;
    knobs.keep_prefix = false;
    const ModelPlan runs = Pi05Model::plan(knobs, inputs, 1, 8);
    knobs.keep_prefix = true;
    const ModelPlan keeps = Pi05Model::plan(knobs, inputs, 1, 8);
    CHECK_LT(keeps.training_bytes, runs.training_bytes);
    CHECK_EQ(keeps.sampling_bytes, runs.sampling_bytes);
    CHECK_EQ(keeps.decision_bytes - runs.decision_bytes, 13'124'352);  // 18 layers of 712 tokens
  }
}

TEST_CASE("where a prefix does not stay right, and where a record has none, it is refused in a sentence") {
  const auto refuses = [](const std::string& why, auto call) {
    CHECK_THROWS_WITH_AS(call(), doctest::Contains(why.c_str()), ConfigError);
  };
  auto knobs = tiny(true);
  knobs.train = Trained::all;
  refuses("model.keep_prefix is true and model.train is all", [&] { check(knobs); });
  refuses("model.keep_prefix is true and model.train is all",
          [&] { (void)Pi05Model::plan(knobs, some_inputs(), 1, 1); });
  LoraKnobs<FlowVlaKnobs> adapted{knobs};
  refuses("model.keep_prefix is true and model.train is all",
          [&] { (void)LoraModel<Pi05Model>(adapted, some_inputs(), 1); });
  refuses("SmolVLA's prefix does not stay",
          [&] { (void)SmolVlaModel::plan(tiny(true), some_inputs(), 1, 1); });

  Pi05Model keeps(tiny(true), some_inputs(), 3);
  const Pi05Model runs(tiny(false), some_inputs(), 3);
  ModelBatch<Pi05Model> batch(keeps, some_inputs(), 2);
  OwnedRecord<FlowDecision> without(runs.decision_layout({2}), heap);
  std::vector<float> log_prob(12), entropy(12);
  const char* const lacks = "Pi05: decisions do not hold the prefixes of 2 observations, 59648 bytes each";
  CHECK_THROWS_WITH_AS(
      keeps.act(*batch.observation, batch.order, Decoding::sample, 7, *without, batch.action),
      doctest::Contains(lacks), Error);
  batch.act(keeps, Decoding::sample, 7);
  CHECK_THROWS_WITH_AS(
      keeps.forward(*batch.observation, without_prefix(*batch.decision), batch.order, log_prob, entropy),
      doctest::Contains(lacks), Error);
}

namespace {

/// Three steps over kept prefixes, of which `actor` of two has every second row; `all`: both parts, one behind the other.
template <class M, class Weights>
void learn(M& model, Weights& weights, int actor, bool all) {
  ModelBatch<M> batch(model, some_inputs(), 6);
  batch.act(model, Decoding::sample, 7);
  for (int step = 0; step < 3; ++step) {
    weights.zero_gradients();
    for (int part = all ? 0 : actor; part < (all ? 2 : actor + 1); ++part) {
      weights.begin_pass({.last = true});
      const std::vector<std::int64_t> mine{part, part + 2, part + 4};
      (void)batch.log_prob(model, mine);
      const std::vector<float> slope(mine.size() * 6, 0.02f), none(slope.size());
      model.backward(slope, none);
    }
    weights.step({.learning_rate = 1e-4});
  }
}

}  // namespace

TEST_CASE_TEMPLATE("several actors learn over kept prefixes as one does, whatever is sharded", Policy, Pi05,
                   WithValue<LoRA<Pi05>>) {
  Model<Policy>::use_threads(1);
  Model<Policy> one(tiny<Policy>(true), some_inputs(), 3);
  one.hold_gradients(true);
  const std::vector<float> start = weights_of(one);
  {
    UnshardedWeights<Model<Policy>> weights(one, heap);
    learn(one, weights, 0, true);
  }
  CHECK_GT(distance(weights_of(one), start), 1e-3);
  for (const UnitRelease release : {UnitRelease::after_use, UnitRelease::after_backward, UnitRelease::never})
    for (const bool frozen : {false, true}) {
      if (frozen && release == UnitRelease::never) continue;
      CAPTURE(static_cast<int>(release));
      CAPTURE(frozen);
      actors_test::run_actors(2, [&](int actor, const GroupSource& groups) {
        Model<Policy>::use_threads(1);
        Model<Policy> model(tiny<Policy>(true), some_inputs(), 3);
        model.hold_gradients(true);
        ShardedWeights<Model<Policy>> weights(model, heap, {.release = release, .shard_frozen = frozen},
                                              groups);
        weights.gather_all();
        learn(model, weights, actor, false);
        weights.gather_all();
        CHECK_LT(actors_test::largest_difference(weights_of(model), weights_of(one)), 2e-4);
      });
    }
}
