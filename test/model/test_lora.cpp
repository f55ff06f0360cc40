// dvla-test: torch
// Adapters of a model that computes with torch, as files: a model begins with those of a folder, or refuses it; what it has
// with them added in has the form of the public file that was trained.
#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;
using dvla_test::contains;
using dvla_test::TemporaryFolder;

namespace {

using Tiny = TinyVlaModel<TokenHead>;
using Adapted = LoraModel<Tiny>;

ModelInputs some_inputs() {
  ModelInputs inputs;
  inputs.observation.proprioception = 3;
  inputs.observation.instructions = {"go"};
  inputs.action.dimensions = 2;
  inputs.chunk = 2;
  return inputs;
}
LoraKnobs<TokenHeadKnobs> small() {
  LoraKnobs<TokenHeadKnobs> knobs;
  knobs.width = 32;
  knobs.blocks = 2;
  knobs.attention_heads = 2;
  knobs.chunk = 2;
  knobs.lora_rank = 2;
  knobs.lora_alpha = 3;
  return knobs;
}
/// B is not 0.
void move(Adapted& model) {
  std::vector<float> weights = dvla::testing::detail::weights_of(model);
  SplitMix64 random(5);
  for (float& value : weights) value = static_cast<float>(0.05 * random.normal());
  dvla::testing::detail::set_weights(model, weights);
}
std::map<std::string, std::string> values_of(const io::SafetensorsFile& file) {
  std::map<std::string, std::string> all;
  for (const std::string& name : file.names()) {
    const auto bytes = file.tensor(name).bytes;
    all[name] = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  return all;
}

}  // namespace

TEST_CASE("A model begins with the adapters of a folder, and so do its copies; another base stays as it is") {
  const TemporaryFolder folder;
  Adapted source(small(), some_inputs(), 1);
  move(source);
  // What travels and is checkpointed is what such a folder has.
  CHECK(export_adapters(source, source.adapters(), folder.path()) == trainable_bytes(source.units()));
  auto knobs = small();
  knobs.adapters = folder.path().string();
  const Adapted model(knobs, some_inputs(), 2), plain(small(), some_inputs(), 2), copy(model, share_frozen);
  CHECK(dvla::testing::detail::weights_of(model) == dvla::testing::detail::weights_of(source));
  CHECK(dvla::testing::detail::weights_of(copy) == dvla::testing::detail::weights_of(source));
  CHECK(copy.adapters().rank == 2);
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter &one = model.parameters()[i], &other = plain.parameters()[i];
    if (!one.trainable) CHECK(std::memcmp(one.data, other.data, one.bytes()) == 0);
  }
}

TEST_CASE("A folder of another rank, scale or other layers than the knobs say is refused") {
  const TemporaryFolder folder;
  const Adapted source(small(), some_inputs(), 1);
  export_adapters(source, source.adapters(), folder.path());
  const auto refusal = [&](auto change) {
    auto knobs = small();
    knobs.adapters = folder.path().string();
    change(knobs);
    return dvla_test::message_of<ConfigError>([&] { const Adapted model(knobs, some_inputs(), 2); });
  };
  CHECK(refusal([](auto&) {}).empty());
  CHECK(contains(refusal([](auto& knobs) { knobs.lora_rank = 4; }), "r is 2, and model.lora_rank is 4"));
  CHECK(contains(refusal([](auto& knobs) { knobs.lora_alpha = 16; }),
                 "lora_alpha is 3, and model.lora_alpha is 16"));
  CHECK(contains(refusal([](auto& knobs) { knobs.blocks = 3; }), "it has no adapter for blocks.2."));
  CHECK(contains(refusal([](auto& knobs) { knobs.blocks = 1; }), "and this model has no such layer"));
  CHECK(contains(refusal([](auto& knobs) { knobs.width = 64; }), "has another shape than this model"));
  // Their B is 0, so that nothing changes where the model has none.
  CHECK(refusal([](auto& knobs) { knobs.lora_targets = ".*mlp.*"; }).empty());
}

TEST_CASE("A pattern that matches nothing names some layers, and says how many there are") {
  auto knobs = small();
  knobs.lora_targets = "gate_proj";
  CHECK(dvla_test::message_of<ConfigError>([&] { const Adapted model(knobs, some_inputs(), 2); }) ==
        "model.lora_targets is 'gate_proj', which matches no linear layer; they are proprioception, "
        "blocks.0.attention.query, blocks.0.attention.key_value, blocks.0.attention.out, blocks.0.mlp.in, "
        "blocks.0.mlp.out, blocks.1.attention.query, blocks.1.attention.key_value and 4 more");
}

TEST_CASE(
    "Merged weights have the form of the file that was trained: names, aliases, metadata, what the model "
    "lacks") {
  const TemporaryFolder folder;
  const Tiny base(small(), some_inputs(), 3);
  const std::vector<float> dead{1, 2, 3};
  for (const std::string lead : {"", lerobot_prefix})
    for (const bool in_16_bits : {false, true}) {
      std::vector<io::TensorToWrite> tensors = weights_to_write(base, WeightSet::all, lead);
      // The output layer's weight under another name, and again as a copy.
      const std::string output = lead + "output.weight";
      for (io::TensorToWrite& each : tensors)
        if (each.name == output) each.name = "tied.weight";
      const auto tied = std::ranges::find(tensors, "tied.weight", &io::TensorToWrite::name);
      REQUIRE(tied != tensors.end());
      tensors.push_back({"copy.weight", tied->dtype, tied->shape, tied->bytes});
      tensors.push_back(io::tensor_to_write<float>("dead.weight", {3}, dead));
      const std::map<std::string, std::string> metadata{{"format", "pt"}, {output, "tied.weight"}};
      io::write_safetensors(folder / "base.safetensors", tensors, metadata);
      const io::SafetensorsFile public_file(folder / "base.safetensors");

      auto knobs = small();
      if (in_16_bits) knobs.dtype = Dtype::bf16;
      Adapted model(knobs, some_inputs(), 4);
      load_weights(model, public_file, WeightSet::frozen, lead);
      move(model);
      const auto path = export_merged(model, folder / "out" / "model.safetensors", &public_file);
      const io::SafetensorsFile merged(path);
      const auto before = values_of(public_file), after = values_of(merged);
      CHECK(merged.metadata() == metadata);
      REQUIRE(before.size() == after.size());
      for (const auto& [name, bytes] : before) {
        CAPTURE(name);
        REQUIRE(after.contains(name));
        CHECK((merged.tensor(name).dtype == io::Dtype::BF16) == (in_16_bits && name != "dead.weight"));
      }
      CHECK(after.at("dead.weight") == before.at("dead.weight"));
      CHECK(after.at("copy.weight") == after.at("tied.weight"));
      CHECK(after.at("tied.weight") != before.at("tied.weight"));

      Tiny alone(knobs, some_inputs(), 5);  // the base, which reads it as its own
      load_weights(alone, merged, WeightSet::all, lead);
      std::size_t compared = 0;
      model.merged([&](const Parameter& parameter, const at::Tensor& value) {
        for (const Parameter& each : alone.parameters())
          if (each.name == parameter.name) {
            CHECK(std::memcmp(each.data, value.const_data_ptr(), each.bytes()) == 0);
            ++compared;
          }
      });
      CHECK(compared == alone.parameters().size());
    }
}

TEST_CASE("Merged weights in the form of another model's file are refused") {
  const TemporaryFolder folder;
  auto other = small();
  other.blocks = 1;
  io::write_safetensors(folder / "base.safetensors",
                        weights_to_write(Tiny(other, some_inputs(), 3), WeightSet::all));
  const io::SafetensorsFile file(folder / "base.safetensors");
  const Adapted model(small(), some_inputs(), 4);
  CHECK(contains(
      dvla_test::message_of<ConfigError>([&] { export_merged(model, folder / "model.safetensors", &file); }),
      ": it is no checkpoint of the model that was trained"));
}

TEST_CASE("A model without adapters is exported as it is") {
  const TemporaryFolder folder;
  const Tiny model(small(), some_inputs(), 3);
  export_merged(model, folder / "model.safetensors");
  CHECK(has_weights(model, io::SafetensorsFile(folder / "model.safetensors"), WeightSet::all));
}
