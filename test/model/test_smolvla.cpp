// dvla-test: torch
// SmolVLA as a model of the pipeline: it keeps what a model promises, whole, beside a frozen vision-language model and under LoRA,
// and what does not fit is refused. That the network is the published one, examples/parity shows against records of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/smolvla.hpp"
#include "dvla/testing/model.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/model/prompts.hpp"
#include "test/model/vla.hpp"

using namespace dvla;
using dvla_test::all, dvla_test::read_text, dvla_test::some_inputs, dvla_test::TemporaryFolder,
    dvla_test::trainable, dvla_test::write_text;

namespace {

FlowVlaKnobs tiny() {
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  knobs.horizon = 4;
  return knobs;
}

}  // namespace

static_assert(ModelMachinery<SmolVlaModel>);
static_assert(PlanningModel<SmolVlaModel, FlowVlaKnobs>);

TEST_CASE("SmolVLA keeps what a model promises") {
  SmolVlaModel::use_threads(1);
  const ModelInputs inputs = some_inputs();
  for (const Trained train : {Trained::all, Trained::expert})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(enum_name(train));
      CAPTURE(enum_name(dtype));
      FlowVlaKnobs knobs = tiny();
      knobs.train = train;
      knobs.dtype = dtype;
      const auto make = [&](std::uint64_t seed) { return SmolVlaModel(knobs, inputs, seed); };
      CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    }
}

TEST_CASE("so it does under flow_cps, and under learned noise, of whose steps an update makes all again") {
  SmolVlaModel::use_threads(1);
  const ModelInputs inputs = some_inputs();
  for (const FlowNoise noise : {FlowNoise::flow_cps, FlowNoise::flow_noise})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(enum_name(noise));
      CAPTURE(enum_name(dtype));
      FlowVlaKnobs knobs = tiny();
      knobs.noise = noise;
      knobs.denoise_steps = 3;
      knobs.dtype = dtype;
      const auto make = [&](std::uint64_t seed) { return SmolVlaModel(knobs, inputs, seed); };
      CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    }
}

TEST_CASE("so it does under LoRA, of which only the adapters train") {
  SmolVlaModel::use_threads(1);
  const ModelInputs inputs = some_inputs();
  LoraKnobs<FlowVlaKnobs> knobs{tiny()};
  knobs.lora_rank = 2;
  const auto make = [&](std::uint64_t seed) { return LoraModel<SmolVlaModel>(knobs, inputs, seed); };
  CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  const auto model = make(1);
  CHECK_EQ(trainable(model.parameters(), ""), trainable(model.parameters(), ".lora_"));
  CHECK_GT(trainable(model.parameters(), "lm_expert.layers.1.self_attn.q_proj.lora_A"), 0);
}

TEST_CASE("beside a frozen vision-language model the expert trains, and what turns the state into a token") {
  FlowVlaKnobs knobs = tiny();
  knobs.train = Trained::expert;
  const SmolVlaModel model(knobs, some_inputs(), 1);
  CHECK_EQ(trainable(model.parameters(), ".vlm."), 0);
  CHECK_GT(trainable(model.parameters(), ".lm_expert."), 0);
  CHECK_GT(trainable(model.parameters(), "state_proj"), 0);
}

TEST_CASE("published extents have the published number of parameters, but for the head that nobody reads") {
  FlowVlaKnobs knobs;
  knobs.random = RandomWeights::full;
  ModelInputs inputs = some_inputs();
  inputs.chunk = knobs.chunk;
  std::int64_t count = 0;
  for (const Parameter& each : SmolVlaModel::plan(knobs, inputs, 2, 1).parameters) count += each.count();
  CHECK_EQ(count + 47'308'800, 450'046'176);
}

TEST_CASE("a prompt is the task and the end of a line") {
  const dvla::detail::Prompts<dvla::detail::SmolVlaFamily> prompts(some_inputs().observation,
                                                                   {"", 512, 0, 64});
  CHECK_EQ(prompts.text(1, {}), "push_it\n");
  std::vector<std::int64_t> tokens(64, -1);
  std::array<bool, 64> valid{};
  prompts.write(1, {}, tokens.data(), valid.data());
  CHECK_EQ(tokens[0], 3 + 'p');
  CHECK_EQ(tokens[8], 0);
  CHECK_EQ(std::ranges::count(valid, true), 8);
  CHECK(valid[7]);
  dvla_test::check_prompts<dvla::detail::SmolVlaFamily>("smolvla", "tokenizer.json", 48);
}

TEST_CASE("what does not fit is refused in a sentence") {
  const auto refuses = [](const std::string& why, auto change) {
    FlowVlaKnobs knobs = tiny();
    ModelInputs inputs = some_inputs();
    change(knobs, inputs);
    CHECK_THROWS_WITH_AS(SmolVlaModel(knobs, inputs, 1), doctest::Contains(why.c_str()), ConfigError);
  };
  refuses("gives no camera", [](auto&, auto& inputs) { inputs.observation.cameras.clear(); });
  // A tokeniser of one token more than the model has words.
  const TemporaryFolder folder;
  auto file = nlohmann::json::parse(read_text(dvla_test::tokenizers + "tokenizer.json"));
  for (std::size_t id = file["model"]["vocab"].size() + file["added_tokens"].size() - 2; id <= 512; ++id)
    file["model"]["vocab"]["token" + std::to_string(id)] = id;
  write_text(folder / "tokenizer.json", file.dump());
  refuses("has 513 tokens, and the model's table of words 512",
          [&](auto& knobs, auto&) { knobs.tokenizer = folder.path().string(); });
  refuses("SmolVLA has lerobot's way alone", [](auto& knobs, auto&) { knobs.pictures = Pictures::openpi; });
  refuses("the slots of SmolVLA are camera1, camera2, camera3",
          [](auto& knobs, auto&) { knobs.cameras = "base_0_rgb=top"; });
  refuses("make up to 101 tokens",
          [](auto&, auto& inputs) { inputs.observation.instructions = {std::string(100, 'a')}; });
  refuses("state has 40 numbers, and the model takes 32",
          [](auto&, auto& inputs) { inputs.observation.proprioception = 40; });
}
