// dvla-test: torch
// OpenVLA-OFT as a model of the pipeline: it keeps what a model promises, whole and under LoRA; its images, prompts and actions
// are the reference's, and what does not fit is refused. That the network is the published one, examples/parity shows
// against records of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/openvla_oft.hpp"
#include "dvla/testing/model.hpp"
#include "test/model/prompts.hpp"
#include "test/model/vla.hpp"

using namespace dvla;
using dvla_test::all, dvla_test::trainable;

namespace {

ModelInputs some_inputs() { return dvla_test::some_inputs("Push it"); }
OpenVlaOftKnobs tiny() {
  OpenVlaOftKnobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  return knobs;
}

}  // namespace

static_assert(ModelMachinery<OpenVlaOftModel>);
static_assert(PlanningModel<OpenVlaOftModel, OpenVlaOftKnobs>);

TEST_CASE("OpenVLA-OFT keeps what a model promises, at any temperature, with prompts padded and not") {
  OpenVlaOftModel::use_threads(1);
  for (const bool padded : {true, false})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(padded);
      CAPTURE(enum_name(dtype));
      ModelInputs inputs = some_inputs();
      if (!padded) inputs.observation.instructions = {"lift", "push"};
      OpenVlaOftKnobs knobs = tiny();
      knobs.dtype = dtype;
      if (padded) knobs.temperature = 1.6f;
      if (!padded) knobs.pictures = OpenVlaPictures::authors;
      const auto make = [&](std::uint64_t seed) { return OpenVlaOftModel(knobs, inputs, seed); };
      CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    }
}

TEST_CASE("so it does under LoRA, of which only the adapters train") {
  OpenVlaOftModel::use_threads(1);
  const ModelInputs inputs = some_inputs();
  LoraKnobs<OpenVlaOftKnobs> knobs{tiny()};
  knobs.lora_rank = 2;
  for (const std::string targets :
       {"", R"(.*\.(proj|qkv|q|kv|fc[123]|out_proj|[qkvo]_proj|gate_proj|up_proj|down_proj|lm_head))",
        R"(language_model\..*)"}) {
    CAPTURE(targets);
    knobs.lora_targets = targets;
    const auto make = [&](std::uint64_t seed) { return LoraModel<OpenVlaOftModel>(knobs, inputs, seed); };
    CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
    const auto model = make(1);
    const auto count = [&](const std::string& of) { return trainable(model.parameters(), of); };
    // A and B of: two towers' patches and two blocks of four layers, the projector, two layers of Llama, and its end.
    const std::int64_t vision = 2 * 2 * (1 + 2 * 4), language = 2 * (2 * 7 + 1);
    CHECK_EQ(count(""), count(".lora_"));
    CHECK_EQ(count("language_model."), language);
    CHECK_EQ(count(""), targets.starts_with("language") ? language : vision + 2 * 3 + language);
    CHECK_EQ(count("attn_pool"), 0);
    CHECK_EQ(count("blocks.2."), 0);
  }
}

TEST_CASE("published extents have the published number of parameters, before a tensor is made") {
  OpenVlaOftKnobs knobs;
  knobs.random = RandomWeights::full;
  ModelInputs inputs = some_inputs();
  inputs.chunk = knobs.chunk;
  const ModelPlan plan = OpenVlaOftModel::plan(knobs, inputs, 2, 1);
  std::int64_t count = 0;
  for (const Parameter& each : plan.parameters) count += each.count();
  CHECK_EQ(count, 7'541'237'184);
  CHECK_GT(plan.sampling_bytes, 0);
  CHECK_GT(plan.training_bytes, OpenVlaOftModel::plan(knobs, inputs, 1, 1).sampling_bytes);
}

TEST_CASE("a prompt is the reference's; BOS stands before its padding") {
  ObservationSpec spec = some_inputs().observation;
  using Prompts = dvla::detail::Prompts<dvla::detail::OpenVlaWording>;
  const Prompts prompts(spec, {"", 640, 576});
  CHECK_EQ(prompts.text(1, {}), "In: What action should the robot take to push it?\nOut: ");
  const std::int64_t longest = std::ssize(prompts.text(0, {})), other = std::ssize(prompts.text(1, {}));
  CHECK_EQ(prompts.length(), 1 + longest);
  CHECK(prompts.padded());
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(prompts.length()), -1);
  const auto valid = std::make_unique<bool[]>(tokens.size());
  prompts.write(0, {}, tokens.data(), valid.get());
  CHECK_EQ(tokens[1], 3 + 'I');
  CHECK_EQ(std::count(valid.get(), valid.get() + prompts.length(), true), prompts.length());
  prompts.write(1, {}, tokens.data(), valid.get());
  CHECK_EQ(std::count(valid.get(), valid.get() + prompts.length(), true), 1 + other);
  CHECK(valid[0]);
  CHECK(!valid[1]);
  CHECK_EQ(tokens[0], 1);
  CHECK_EQ(std::ranges::count(tokens, 576), longest - other);
  CHECK_EQ(tokens[static_cast<std::size_t>(prompts.length() - other)], 3 + 'I');
  CHECK_EQ(tokens.back(), 3 + ' ');
  spec.instructions = {"lift", "push"};
  const Prompts alike(spec, {"", 640, 576});
  CHECK(!alike.padded());
  dvla_test::check_prompts<dvla::detail::OpenVlaWording>("openvla_oft", "llama.model", 0);
}

TEST_CASE("under a tokeniser it keeps what a model promises, and its prompts end in a blank") {
  OpenVlaOftModel::use_threads(1);
  OpenVlaOftKnobs knobs = tiny();
  knobs.tokenizer = dvla_test::tokenizers + "llama.model";
  const ModelInputs inputs = some_inputs();
  const auto make = [&](std::uint64_t seed) { return OpenVlaOftModel(knobs, inputs, seed); };
  CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  const dvla::detail::Prompts<dvla::detail::OpenVlaWording> prompts(inputs.observation,
                                                                    {knobs.tokenizer, 640, 576});
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(prompts.length()));
  const auto valid = std::make_unique<bool[]>(tokens.size());
  prompts.write(1, {}, tokens.data(), valid.get());
  CHECK_EQ(tokens.back(), open_tokenizer(knobs.tokenizer)->facts().blank);
}

TEST_CASE("tokens are the reference's actions: 255 bins for 256 ids, the last of which is the lowest") {
  const dvla::detail::OpenVlaOftHead head(tiny(), some_inputs().action, 1);
  CHECK_EQ(head.outputs(), 256);
  CHECK_EQ(head.queries(), 6);
  // bin_centers[clip(vocabulary - id - 1, 0, 254)] with bin_centers = (bins[:-1] + bins[1:]) / 2 and bins = linspace(-1, 1, 256)
  for (std::int64_t token = 0; token < 256; ++token) {
    const std::int64_t id = 31744 + token, bin = std::clamp<std::int64_t>(32000 - id - 1, 0, 254);
    const auto edge = [](std::int64_t i) { return -1 + 2 * static_cast<double>(i) / 255; };
    const double centre = (edge(bin) + edge(bin + 1)) / 2;
    const float ours = head.bin_centre(static_cast<std::size_t>(token));
    CHECK_LE(std::abs(static_cast<double>(ours) - centre), 1e-6);
    CHECK_EQ(head.bin_of(ours), static_cast<std::size_t>(std::max<std::int64_t>(token, 1)));
  }
  // vocabulary - digitize(action, bins)
  CHECK_EQ(head.bin_of(-1), 255);
  CHECK_EQ(head.bin_of(-7), 255);
  CHECK_EQ(head.bin_of(0.999f), 1);
  CHECK_EQ(head.bin_of(1), 0);
  CHECK_EQ(head.bin_of(7), 0);
}

TEST_CASE("pictures are stretched, rounded to bytes and normalised for either tower") {
  const c10::InferenceMode no_graph;
  at::Tensor frames = at::zeros({1, 2, 4, 3}, at::kByte);
  frames.select(2, 3).fill_(255);
  const at::Tensor kept = dvla::layers::resized_bicubic(at::full({2, 56, 56, 3}, 51, at::kByte), 56);
  CHECK(kept.sizes() == at::IntArrayRef{2, 3, 56, 56});
  CHECK_EQ(kept.min().item<double>(), doctest::Approx(0.2));
  CHECK_EQ(kept.max().item<double>(), doctest::Approx(0.2));
  const at::Tensor small = dvla::layers::resized_bicubic(frames, 8) * 255;
  CHECK(small.sizes() == at::IntArrayRef{1, 3, 8, 8});
  CHECK_EQ((small - small.round()).abs().max().item<double>(), doctest::Approx(0).epsilon(1e-4));
  CHECK_EQ(small.min().item<double>(), 0);
  CHECK_EQ(small.max().item<double>(), doctest::Approx(255));
  const at::Tensor both = dvla::layers::normalised_twice(at::full({1, 3, 1, 1}, 0.2f)).flatten();
  const std::vector<double> expected{
      (0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225, -0.6, -0.6, -0.6};
  REQUIRE(both.numel() == 6);
  for (std::int64_t i = 0; i < 6; ++i)
    CHECK_EQ(both[i].item<double>(), doctest::Approx(expected[static_cast<std::size_t>(i)]).epsilon(1e-5));
}

TEST_CASE("the model sees frames as RLinf shows them, or the authors") {
  const ModelInputs inputs = some_inputs();
  OwnedRecord<Observation> observation(observation_layout(inputs.observation, {1}),
                                       *std::pmr::new_delete_resource());
  dvla::testing::fill_observation(*observation, inputs.observation, 3);
  const std::vector<std::int64_t> rows{0};
  const auto log_probs = [&](OpenVlaPictures pictures) {
    OpenVlaOftKnobs knobs = tiny();
    knobs.pictures = pictures;
    OpenVlaOftModel model(knobs, inputs, 1);
    OwnedRecord<TokenDecision> decision(model.decision_layout({1}), *std::pmr::new_delete_resource());
    std::vector<float> values(6);
    model.act(*observation, rows, Decoding::mode, 1, *decision, Field<float>({1, 3, 2}, values.data()));
    const std::span<const float> all = decision->log_prob.span();
    return std::vector<float>(all.begin(), all.end());
  };
  CHECK(log_probs(OpenVlaPictures::rlinf) == log_probs(OpenVlaPictures::rlinf));
  CHECK(log_probs(OpenVlaPictures::rlinf) != log_probs(OpenVlaPictures::authors));
}

TEST_CASE("what does not fit is refused in a sentence") {
  const auto refuses = [](const std::string& why, auto change) {
    OpenVlaOftKnobs knobs = tiny();
    ModelInputs inputs = some_inputs();
    change(knobs, inputs);
    CHECK_THROWS_WITH_AS(OpenVlaOftModel(knobs, inputs, 1), doctest::Contains(why.c_str()), ConfigError);
  };
  refuses("give random tiny", [](auto& knobs, auto&) { knobs.random = RandomWeights::none; });
  refuses("model.dtype is f16", [](auto& knobs, auto&) { knobs.dtype = Dtype::f16; });
  refuses("temperature must be above 0", [](auto& knobs, auto&) { knobs.temperature = 0; });
  refuses("gives no camera", [](auto&, auto& inputs) { inputs.observation.cameras.clear(); });
  refuses("gives no instruction", [](auto&, auto& inputs) { inputs.observation.instructions.clear(); });
  refuses("names 'left', and the environment's cameras are top, wrist",
          [](auto& knobs, auto&) { knobs.cameras = "left"; });
  refuses("names no token that begins a text",
          [](auto& knobs, auto&) { knobs.tokenizer = dvla_test::tokenizers + "tokenizer.json"; });
  refuses("dimension of categories", [](auto&, auto& inputs) { inputs.action.categories = {3, 0}; });
}

TEST_CASE("an instruction that the environment's table does not have is refused when it comes") {
  const ModelInputs inputs = some_inputs();
  OpenVlaOftModel model(tiny(), inputs, 1);
  OwnedRecord<Observation> observation(observation_layout(inputs.observation, {1}),
                                       *std::pmr::new_delete_resource());
  dvla::testing::fill_observation(*observation, inputs.observation, 3);
  observation->instruction[0] = 2;
  OwnedRecord<TokenDecision> decision(model.decision_layout({1}), *std::pmr::new_delete_resource());
  std::vector<float> values(6);
  const std::vector<std::int64_t> rows{0};
  CHECK_THROWS_WITH_AS(
      model.act(*observation, rows, Decoding::sample, 1, *decision, Field<float>({1, 3, 2}, values.data())),
      doctest::Contains("row 0 has instruction 2, but the environment's table has 2"), Error);
}
