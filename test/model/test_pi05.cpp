// dvla-test: torch
// pi0.5 as a model of the pipeline: it keeps what a model promises, whole, beside a frozen vision-language model and under
// LoRA; its prompts are the reference's, and what does not fit is refused. That the network is the published one, examples/parity
// shows against records of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/testing/model.hpp"
#include "test/model/prompts.hpp"
#include "test/model/vla.hpp"

using namespace dvla;
using dvla_test::all, dvla_test::some_inputs, dvla_test::trainable;

namespace {

FlowVlaKnobs tiny() {
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  knobs.horizon = 4;
  return knobs;
}

}  // namespace

static_assert(ModelMachinery<Pi05Model>);
static_assert(PlanningModel<Pi05Model, FlowVlaKnobs>);

TEST_CASE("pi0.5 keeps what a model promises") {
  Pi05Model::use_threads(1);
  const ModelInputs inputs = some_inputs();
  for (const Trained train : {Trained::all, Trained::expert})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(enum_name(train));
      CAPTURE(enum_name(dtype));
      FlowVlaKnobs knobs = tiny();
      knobs.train = train;
      knobs.dtype = dtype;
      if (train == Trained::expert) knobs.pictures = Pictures::openpi;
      const auto make = [&](std::uint64_t seed) { return Pi05Model(knobs, inputs, seed); };
      CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    }
}

TEST_CASE(
    "so it does under every kind of noise that has log-probabilities, alone and beside a frozen model") {
  Pi05Model::use_threads(1);
  const ModelInputs inputs = some_inputs();
  for (const FlowNoise noise : {FlowNoise::flow_cps, FlowNoise::flow_noise})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(enum_name(noise));
      CAPTURE(enum_name(dtype));
      FlowVlaKnobs knobs = tiny();
      knobs.noise = noise;
      knobs.dtype = dtype;
      if (dtype == Dtype::bf16) knobs.train = Trained::expert;
      const auto make = [&](std::uint64_t seed) { return Pi05Model(knobs, inputs, seed); };
      CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    }
}

TEST_CASE("learned noise has a head, which trains beside adapters too; the other weights are as without it") {
  LoraKnobs<FlowVlaKnobs> knobs{tiny()};
  knobs.lora_rank = 2;
  const LoraModel<Pi05Model> without(knobs, some_inputs(), 1);
  knobs.noise = FlowNoise::flow_noise;
  const auto make = [&](std::uint64_t seed) { return LoraModel<Pi05Model>(knobs, some_inputs(), seed); };
  CHECK_EQ(all(dvla::testing::check_model(make, some_inputs())), "");
  const LoraModel<Pi05Model> model = make(1);
  CHECK_EQ(trainable(without.parameters(), "noise_head."), 0);
  CHECK_EQ(trainable(model.parameters(), "noise_head."), 6);
  CHECK_EQ(model.parameters().size(), without.parameters().size() + 6);
  for (const Parameter& each : without.parameters())
    CHECK(std::ranges::any_of(model.parameters(), [&](const Parameter& other) {
      return other.name == each.name && std::memcmp(other.data, each.data, each.bytes()) == 0;
    }));
  const auto training = [&](int steps) {
    LoraKnobs<FlowVlaKnobs> longer = knobs;
    longer.denoise_steps = steps;
    return LoraModel<Pi05Model>::plan(longer, some_inputs(), 2, 2).training_bytes;
  };
  CHECK_GT(training(4), training(2));
}

TEST_CASE("under ode it clones and plays; log-probabilities are 0, and nothing follows from them") {
  FlowVlaKnobs knobs = tiny();
  knobs.noise = FlowNoise::ode;
  Pi05Model model(knobs, some_inputs(), 1);
  model.hold_gradients(true);
  dvla::testing::detail::ModelBatch<Pi05Model> batch(model, some_inputs(), 2);
  batch.act(model, Decoding::sample, 5);
  CHECK(model.imitate(*batch.observation, batch.action, batch.order, 1) > 0);
  CHECK_EQ(ratio_error(model, *batch.observation, *batch.decision, batch.order).error, 0);
  dvla::testing::detail::zero_gradients(model);
  batch.accumulate(model, batch.order);
  CHECK_EQ(dvla::testing::detail::norm(dvla::testing::detail::gradients_of(model)), 0);
}

TEST_CASE("so it does under LoRA, of which only the adapters train") {
  Pi05Model::use_threads(1);
  const ModelInputs inputs = some_inputs();
  LoraKnobs<FlowVlaKnobs> knobs{tiny()};
  knobs.lora_rank = 2;
  const auto make = [&](std::uint64_t seed) { return LoraModel<Pi05Model>(knobs, inputs, seed); };
  CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  const auto model = make(1);
  CHECK_EQ(trainable(model.parameters(), ""), trainable(model.parameters(), ".lora_"));
  CHECK_GT(trainable(model.parameters(), "gemma_expert.model.layers.1.self_attn.q_proj.lora_A"), 0);
}

TEST_CASE("beside a frozen vision-language model the action expert trains, and it alone") {
  FlowVlaKnobs knobs = tiny();
  knobs.train = Trained::expert;
  const Pi05Model model(knobs, some_inputs(), 1);
  CHECK_EQ(trainable(model.parameters(), "paligemma."), 0);
  CHECK_GT(trainable(model.parameters(), "gemma_expert."), 0);
  CHECK_GT(trainable(model.parameters(), "time_mlp_in"), 0);
}

TEST_CASE("published extents have the published number of parameters, before a tensor is made") {
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::full;
  ModelInputs inputs = some_inputs();
  inputs.chunk = knobs.chunk;
  std::int64_t count = 0;
  for (const Parameter& each : Pi05Model::plan(knobs, inputs, 2, 1).parameters) count += each.count();
  CHECK_EQ(count, 3'353'433'872);
}

TEST_CASE("a prompt is the reference's, and its numbers are those of its bins") {
  ObservationSpec spec = some_inputs().observation;
  spec.instructions = {" push_the\ncube "};
  const dvla::detail::Prompts<dvla::detail::Pi05Family> prompts(spec, {"", 512, 0, 160});
  const std::vector<float> state{-1, 0, 1}, beyond{-3, -0.9921875f, 0.999f};
  CHECK_EQ(prompts.text(0, state), "Task: push the cube, State: 0 128 255;\nAction: ");
  CHECK_EQ(prompts.text(0, beyond), "Task: push the cube, State: -1 1 255;\nAction: ");
  const std::vector<float> far{-1e30f, 1e30f, 0}, none{0, std::numeric_limits<float>::quiet_NaN(), 0};
  CHECK_EQ(prompts.text(0, far), "Task: push the cube, State: -1 255 128;\nAction: ");
  CHECK_THROWS_WITH_AS(prompts.text(0, none),
                       "Pi05: number 1 of the state is not finite; the observation holds NaN or infinity",
                       Error);
  std::vector<std::int64_t> tokens(160, -1);
  std::array<bool, 160> valid{};
  prompts.write(0, state, tokens.data(), valid.data());
  const std::size_t count = 1 + prompts.text(0, state).size();
  CHECK_EQ(tokens[0], 1);
  CHECK_EQ(tokens[1], 3 + 'T');
  CHECK_EQ(tokens[count], 0);
  CHECK_EQ(std::ranges::count(valid, true), count);
  CHECK(!valid[count]);
  dvla_test::check_prompts<dvla::detail::Pi05Family>("pi05", "paligemma.model", 200);
}

TEST_CASE("under a tokeniser it keeps what a model promises") {
  Pi05Model::use_threads(1);
  FlowVlaKnobs knobs = tiny();
  knobs.tokenizer = dvla_test::tokenizers + "paligemma.model";
  const ModelInputs inputs = some_inputs();
  const auto make = [&](std::uint64_t seed) { return Pi05Model(knobs, inputs, seed); };
  CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
}

TEST_CASE("a prompt without the state is the task and a line's end") {
  ObservationSpec spec = some_inputs().observation;
  spec.instructions = {" push_the\ncube "};
  const dvla::detail::Prompts<dvla::detail::Pi05Family> prompts(
      spec, {.words = 512, .length = 40, .with_state = false});  // with the state it would not fit
  const std::vector<float> state{-1, 0, 1};
  CHECK_EQ(prompts.text(0, state), "push the cube\n");
  CHECK_EQ(prompts.length(), 40);
}

TEST_CASE("a plan counts the language model's activations where something trains in it or before it alone") {
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::full;
  ModelInputs inputs = some_inputs();
  inputs.chunk = knobs.chunk;
  const std::size_t whole = Pi05Model::plan(knobs, inputs, 1, 8).training_bytes;
  knobs.train = Trained::expert;
  const std::size_t expert = Pi05Model::plan(knobs, inputs, 1, 8).training_bytes;
  CHECK_LT(expert * 4, whole);
}

TEST_CASE("what does not fit is refused in a sentence") {
  const auto refuses = [](const std::string& why, auto change) {
    FlowVlaKnobs knobs = tiny();
    ModelInputs inputs = some_inputs();
    change(knobs, inputs);
    CHECK_THROWS_WITH_AS(Pi05Model(knobs, inputs, 1), doctest::Contains(why.c_str()), ConfigError);
  };
  refuses("give random tiny", [](auto& knobs, auto&) { knobs.random = RandomWeights::none; });
  refuses("flow_cps has no noise in the last step",
          [](auto& knobs, auto&) { knobs.noise = FlowNoise::flow_cps, knobs.denoise_steps = 1; });
  refuses("it must be at most model.horizon", [](auto& knobs, auto&) { knobs.horizon = 2; });
  refuses("gives no camera", [](auto&, auto& inputs) { inputs.observation.cameras.clear(); });
  refuses("gives no instruction", [](auto&, auto& inputs) { inputs.observation.instructions.clear(); });
  const auto of = [](const char* name) { return dvla_test::tokenizers + name; };
  refuses("names no token that begins a text",
          [&](auto& knobs, auto&) { knobs.tokenizer = of("tokenizer.json"); });
  refuses("is no tokeniser", [&](auto& knobs, auto&) { knobs.tokenizer = of("make_golden.py"); });
  refuses("make up to 4", [](auto&, auto& inputs) { inputs.observation.proprioception = 100; });
  refuses("names 'left', and the environment's cameras are top, wrist",
          [](auto& knobs, auto&) { knobs.cameras = "left"; });
  refuses("takes 3 cameras, and 4 are given", [](auto&, auto& inputs) {
    inputs.observation.cameras.assign(4, {"top", 32, 32});
  });
  refuses(
      "names the slot 'camera1', and the environment's cameras are top, wrist; the slots of Pi05 are "
      "base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb",
      [](auto& knobs, auto&) { knobs.cameras = "camera1=top"; });
  refuses("they must fit into these", [](auto&, auto& inputs) { inputs.action.dimensions = 33; });
  refuses("dimension of categories", [](auto&, auto& inputs) { inputs.action.categories = {3, 0}; });
}
