// dvla-test: torch
// Folders of published models: each layout that people have is read to the same bits, shapes come from config.json, and what does
// not fit is one sentence before a tensor is made. The folders are made here, of a small model's weights; names and shapes at
// full size are test_names' business.
#define DOCTEST_CONFIG_NO_SHORT_MACRO_NAMES
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/openvla_oft.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/testing/model.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/model/vla.hpp"

using namespace dvla;
using dvla_test::contains, dvla_test::message_of, dvla_test::some_inputs, dvla_test::TemporaryFolder;

namespace {

template <class Knobs>
Knobs tiny() {
  Knobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  return knobs;
}
template <class Knobs>
Knobs published(const TemporaryFolder& folder) {
  Knobs knobs;
  knobs.checkpoint = folder.path().string();
  knobs.tokenizer = "bytes";
  knobs.chunk = 3;
  return knobs;
}
template <class Model>
std::string bytes_of(const Model& model) {
  std::string all;
  for (const Parameter& each : model.parameters())
    if (!each.apart) all.append(reinterpret_cast<const char*>(each.data), each.bytes());
  return all;
}
/// The record of a decision that the model takes, as bytes.
template <class Model>
std::string decided(Model& model, const ModelInputs& inputs) {
  OwnedRecord<Observation> observation(observation_layout(inputs.observation, {2}),
                                       *std::pmr::new_delete_resource());
  dvla::testing::fill_observation(*observation, inputs.observation, 3);
  OwnedRecord<typename Model::Decision> decision(model.decision_layout({2}),
                                                 *std::pmr::new_delete_resource());
  std::vector<float> action(static_cast<std::size_t>(2 * inputs.chunk * inputs.action.dimensions));
  const std::vector<std::int64_t> rows{0, 1};
  model.act(*observation, rows, Decoding::sample, 5, *decision,
            Field<float>({2, inputs.chunk, inputs.action.dimensions}, action.data()));
  std::string all;
  for_each_field(*decision, [&](const char*, const auto& field) {
    all.append(reinterpret_cast<const char*>(field.data()), field.bytes());
  });
  return all;
}

using Tensors = std::vector<io::TensorToWrite>;
io::TensorToWrite& named(Tensors& tensors, const std::string& end) {
  const auto found =
      std::ranges::find_if(tensors, [&](const auto& each) { return each.name.ends_with(end); });
  DOCTEST_REQUIRE(found != tensors.end());
  return *found;
}
const std::string embedding = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight",
                  lm_head = "paligemma_with_expert.paligemma.lm_head.weight";

/// Writes a folder of a tiny pi0.5 whose tensors are `change`d, and says what a model makes of it: "" if it has the same bits.
struct Pi05Folder {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  Pi05Model source{tiny<FlowVlaKnobs>(), inputs, 1};
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  std::uint64_t limit = io::shard_bytes;

  std::string write(const std::function<void(Tensors&)>& change) {
    Tensors tensors = weights_to_write(source, WeightSet::all);
    change(tensors);
    export_folder(source, folder.path());
    io::write_safetensors(folder / "model.safetensors", tensors, metadata, limit);
    return folder.path().string();
  }
  std::string read() {
    return message_of<Error>([&] {
      Pi05Model model(published<FlowVlaKnobs>(folder), inputs, 2);
      DOCTEST_CHECK((bytes_of(model) == bytes_of(source)));
      DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));
    });
  }
  std::string notes() const {
    return dvla_test::all(Pi05Model::plan(published<FlowVlaKnobs>(folder), inputs, 1, 1).notes);
  }
};

}  // namespace

DOCTEST_TEST_CASE_TEMPLATE("What a model exports it reads again, bit for bit, in either precision", Model,
                           Pi05Model, SmolVlaModel, OpenVlaOftModel) {
  using Knobs = typename Model::Knobs;
  const ModelInputs inputs = some_inputs();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    DOCTEST_CAPTURE(enum_name(dtype));
    const TemporaryFolder folder;
    Knobs knobs = tiny<Knobs>();
    knobs.dtype = dtype;
    Model source(knobs, inputs, 1);
    export_folder(source, folder.path());
    knobs = published<Knobs>(folder);
    knobs.dtype = dtype;
    Model model(knobs, inputs, 2);
    DOCTEST_CHECK((bytes_of(model) == bytes_of(source)));
    DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));
    for (const Parameter& each : model.parameters()) DOCTEST_CHECK(each.mapped == !each.trainable);
    DOCTEST_CHECK(model.config_text() == source.config_text());

    Model copy(model, share_frozen);
    DOCTEST_CHECK((bytes_of(copy) == bytes_of(source)));
    knobs.dtype = dtype == Dtype::f32 ? Dtype::bf16 : Dtype::f32;
    const Model other(knobs, inputs, 2);
    for (std::size_t i = 0; i < other.parameters().size(); ++i) {
      const Parameter &one = source.parameters()[i], &two = other.parameters()[i];
      std::vector<float> sent(static_cast<std::size_t>(one.count())), got(sent.size());
      to_floats({one.data, one.bytes()}, one.dtype, sent);
      to_floats({two.data, two.bytes()}, two.dtype, got);
      for (float& value : sent) value = dtype == Dtype::f32 ? from_bf16(to_bf16(value)) : value;
      DOCTEST_CHECK(got == sent);
    }
  }
}

DOCTEST_TEST_CASE(
    "openpi's and lerobot's files are the same model: names, aliases, shards, and what nobody reads") {
  Pi05Folder made;
  const auto moved = [&](Tensors& tensors, const std::string& to) { named(tensors, embedding).name = to; };
  DOCTEST_SUBCASE("a leading model.") {
    made.write([&](Tensors& tensors) {
      for (auto& each : tensors) each.name = "model." + each.name;
    });
    DOCTEST_CHECK(made.read() == "");
  }
  DOCTEST_SUBCASE("the embedding as an alias in the metadata") {
    made.metadata[embedding] = lm_head;
    made.write([&](Tensors& tensors) { moved(tensors, lm_head); });
    DOCTEST_CHECK(made.read() == "");
  }
  DOCTEST_SUBCASE("the embedding as an alias, behind a leading model.") {
    made.metadata["model." + embedding] = "model." + lm_head;
    made.write([&](Tensors& tensors) {
      moved(tensors, lm_head);
      for (auto& each : tensors) each.name = "model." + each.name;
    });
    DOCTEST_CHECK(made.read() == "");
  }
  DOCTEST_SUBCASE("the embedding as lm_head alone") {
    made.write([&](Tensors& tensors) { moved(tensors, lm_head); });
    DOCTEST_CHECK(made.read() == "");
    DOCTEST_CHECK(!contains(made.notes(), "nobody reads"));
  }
  DOCTEST_SUBCASE("both, and different") {
    const std::vector<float> other(512 * 64, 3.0F);
    made.write([&](Tensors& tensors) {
      tensors.push_back({lm_head, io::Dtype::F32, {512, 64}, std::as_bytes(std::span(other))});
    });
    DOCTEST_CHECK(made.read() == "");
    DOCTEST_CHECK(contains(made.notes(), ", of which nobody reads '" + lm_head + "'"));
  }
  DOCTEST_SUBCASE("older names") {
    made.write([&](Tensors& tensors) {
      for (auto& each : tensors)
        if (each.name.starts_with("time_mlp_")) each.name = "action_" + each.name;
    });
    DOCTEST_CHECK(made.read() == "");
  }
  DOCTEST_SUBCASE("what nobody reads") {
    const std::vector<float> some(6);
    const std::vector<std::int64_t> places(6);
    made.write([&](Tensors& tensors) {
      const auto add = [&](const std::string& name) {
        tensors.push_back({name, io::Dtype::F32, {2, 3}, std::as_bytes(std::span(some))});
      };
      add("paligemma_with_expert.gemma_expert.lm_head.weight");
      add("state_proj.weight");
      add("normalize_inputs.buffer_observation_state.mean");
      add("unnormalize_outputs.buffer_action.std");
      tensors.push_back(
          {"paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_ids",
           io::Dtype::I64,
           {1, 6},
           std::as_bytes(std::span(places))});
    });
    DOCTEST_CHECK(made.read() == "");
    const std::string notes = made.notes();
    for (const char* name :
         {"'paligemma_with_expert.gemma_expert.lm_head.weight'", "'state_proj.weight'", " and 1 more"})
      DOCTEST_CHECK(contains(notes, name));
  }
  DOCTEST_SUBCASE("several files with an index") {
    made.limit = 100'000;
    made.write([](Tensors&) {});
    DOCTEST_CHECK(std::filesystem::exists(made.folder / "model.safetensors.index.json"));
    DOCTEST_CHECK(made.read() == "");
  }
}

DOCTEST_TEST_CASE(
    "Files that the references saved, in openpi's layout and in lerobot's, have the model's tensors and no "
    "others") {
  const std::string records = DVLA_TEST_DIR "/golden/model/parity/records/";
  const auto parsed = [&](const std::string& record) {
    return nlohmann::json::parse(std::ifstream(records + record + "/config.json"));
  };
  const auto decoder = [](dvla::parts::DecoderShape& to, const nlohmann::json& of) {
    to.width = of["width"], to.layers = of["layers"], to.mlp = of["mlp"], to.heads = of["heads"];
    to.kv_heads = of["kv_heads"], to.head_width = of["head_dim"];
  };
  const auto tower = [](auto& to, const nlohmann::json& of) {
    to.width = of["width"], to.layers = of["layers"], to.mlp = of["mlp"], to.heads = of["heads"];
    to.image = of["image"], to.patch = of["patch"];
  };
  const TemporaryFolder folder;
  // Loads it, and compares each parameter with what the record has by `name_of(parameter)`.
  const auto same = [&]<class Network>(const std::string& record, const auto& shape, Network*,
                                       const dvla::detail::PublishedNames& names, auto name_of) {
    DOCTEST_CAPTURE(record);
    std::filesystem::copy_file(records + record + "/model.safetensors", folder / "model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    const io::SafetensorsFile file(folder.path());
    dvla::detail::PublishedWeights weights(folder.path().string(), names);
    Parameters all(file.tensor(file.names().front()).dtype == io::Dtype::F32 ? Dtype::f32 : Dtype::bf16);
    const Network network(shape, all);
    weights.check(record, all.parameters());
    weights.fill(all, 1);
    for (const Parameter& each : all.parameters()) {
      const io::TensorView view = file.tensor(name_of(each.name));
      DOCTEST_CAPTURE(each.name);
      DOCTEST_REQUIRE(view.bytes.size() == each.bytes());
      DOCTEST_CHECK(std::memcmp(view.bytes.data(), each.data, each.bytes()) == 0);
    }
  };
  for (const std::string record : {"pi05-seed7-width64", "pi05-seed11-width80"}) {
    const nlohmann::json of = parsed(record);
    const std::string prefix = of["layout"] == "lerobot" ? "model." : "";
    dvla::detail::Pi0Shape shape;
    tower(shape.vision, of["vision"]);
    decoder(shape.language, of["language"]);
    decoder(shape.expert, of["expert"]);
    shape.expert.condition = shape.expert.width;
    shape.views = 2, shape.text = 64, shape.horizon = of["horizon"], shape.actions = of["action"];
    shape.vocabulary = of["language"]["vocabulary"];
    same(record, shape, static_cast<dvla::detail::Pi0Network*>(nullptr), dvla::detail::Pi05Family::names(),
         [&](const std::string& name) {
           return prefix.empty() && name == embedding ? lm_head : prefix + name;
         });
  }
  for (const std::string record : {"smolvla-seed7-width64", "smolvla-seed11-width80"}) {
    const nlohmann::json of = parsed(record);
    dvla::detail::SmolVlaShape shape;
    tower(shape.vision, of["vision"]);
    decoder(shape.language, of["language"]);
    decoder(shape.expert, of["expert"]);
    shape.shuffle = of["shuffle"], shape.views = 2, shape.text = 64, shape.horizon = of["horizon"];
    shape.actions = of["action"], shape.states = of["state"], shape.vocabulary = of["language"]["vocabulary"];
    same(record, shape, static_cast<dvla::detail::SmolVlaNetwork*>(nullptr),
         dvla::detail::SmolVlaFamily::names(), [](const std::string& name) { return name; });
  }
  for (const std::string record : {"openvla_oft-seed7-width48", "openvla_oft-seed11-width60"}) {
    const nlohmann::json of = parsed(record);
    dvla::detail::OpenVlaShape shape;
    tower(shape.dinov2, of["featurizer"]);
    tower(shape.siglip, of["fused_featurizer"]);
    decoder(shape.language, of["language"]);
    shape.vocabulary = of["language"]["vocabulary"];
    same(record, shape, static_cast<dvla::detail::OpenVlaNetwork*>(nullptr), dvla::detail::openvla_names(),
         [](const std::string& name) { return name; });
  }
}

DOCTEST_TEST_CASE("Heads are as wide as in the run that a folder was exported from, and begin anew") {
  const ModelInputs inputs = some_inputs();
  const auto shapes = [](const auto& model) {
    std::map<std::string, std::vector<std::int64_t>> all;
    for (const Parameter& each : model.parameters()) all[each.name] = each.shape;
    return all;
  };
  const auto check = [&]<class Model>(const std::string& noise, std::type_identity<Model>) {
    using Knobs = ValueKnobs<typename Model::Knobs>;
    const TemporaryFolder folder;
    Knobs knobs{tiny<typename Model::Knobs>()};
    if constexpr (requires { knobs.noise; }) knobs.noise = FlowNoise::flow_noise;
    const ValueModel<Model> source(knobs, inputs, 1);
    export_folder(source, folder.path());
    DOCTEST_CHECK(!io::SafetensorsFile(folder.path()).contains("value_head.mlp.0.weight"));
    Knobs again{published<typename Model::Knobs>(folder)};
    if constexpr (requires { again.noise; }) again.noise = FlowNoise::flow_noise;
    const ValueModel<Model> model(again, inputs, 2);
    DOCTEST_CHECK((bytes_of(model) == bytes_of(source)));
    DOCTEST_CHECK(shapes(model) == shapes(source));
    DOCTEST_CHECK(shapes(model).at("value_head.mlp.2.weight") == std::vector<std::int64_t>{16, 32});
    if (!noise.empty())
      DOCTEST_CHECK(shapes(model).at("noise_head.mlp.2.weight") == std::vector<std::int64_t>{8, 16});
    DOCTEST_CHECK(shapes(ValueModel<Model>(model, share_frozen)) == shapes(source));
    const auto notes = dvla_test::all(ValueModel<Model>::plan(again, inputs, 1, 1).notes);
    DOCTEST_CHECK(contains(notes, "so they begin anew: "));
    const std::string config = dvla_test::read_text(folder / "config.json");
    auto parsed = nlohmann::json::parse(config);
    parsed["dvla"]["shape"]["value"][1] = 0;
    dvla_test::write_text(folder / "config.json", parsed.dump());
    DOCTEST_CHECK(contains(message_of<ConfigError>([&] { (void)ValueModel<Model>(again, inputs, 2); }),
                           "is 0; it must be in [1, "));
  };
  check("noise", std::type_identity<Pi05Model>());
  check("noise", std::type_identity<SmolVlaModel>());
  check("", std::type_identity<OpenVlaOftModel>());
}

DOCTEST_TEST_CASE(
    "RLinf's pi0.5 has its heads in the file, by its own names and widths, and they go on from there") {
  using Model = ValueModel<Pi05Model>;
  const ModelInputs inputs = some_inputs();
  const TemporaryFolder folder;
  ValueKnobs<FlowVlaKnobs> knobs{tiny<FlowVlaKnobs>()};
  knobs.noise = FlowNoise::flow_noise;
  Model source(knobs, inputs, 1);
  const std::vector<float> lowest{2 * std::log(0.08F)}, highest{2 * std::log(0.16F)},
      other{2 * std::log(0.05F)};
  const auto write = [&](const std::vector<float>& low) {
    Tensors tensors = weights_to_write(source, WeightSet::all);
    for (auto& each : tensors)
      for (const std::string number : {"0", "2", "4"})
        if (const std::string ours = "noise_head.mlp." + number + "."; each.name.starts_with(ours))
          each.name = "noise_head.mlp_logvar.moduleList." + std::to_string(std::stoi(number) / 2) +
                      ".linear_1." + each.name.substr(ours.size());
    tensors.push_back({"noise_head.logvar_min", io::Dtype::F32, {1}, std::as_bytes(std::span(low))});
    tensors.push_back({"noise_head.logvar_max", io::Dtype::F32, {1}, std::as_bytes(std::span(highest))});
    export_folder(source, folder.path());
    io::write_safetensors(folder / "model.safetensors", tensors);
    auto config = nlohmann::json::parse(dvla_test::read_text(folder / "config.json"));
    config["dvla"]["shape"]["value"] = {5, 4, 3};  // the file's own count
    config["dvla"]["shape"]["noise"] = {7, 6};
    dvla_test::write_text(folder / "config.json", config.dump());
  };
  const auto everything = [](const auto& model) {
    std::string all;
    for (const Parameter& each : model.parameters())
      all.append(each.name).append(reinterpret_cast<const char*>(each.data), each.bytes());
    return all;
  };
  write(lowest);
  ValueKnobs<FlowVlaKnobs> again{published<FlowVlaKnobs>(folder)};
  again.noise = FlowNoise::flow_noise;
  Model model(again, inputs, 2);
  DOCTEST_CHECK((everything(model) == everything(source)));
  DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));
  const auto notes = dvla_test::all(Model::plan(again, inputs, 1, 1).notes);
  DOCTEST_CHECK(contains(notes, "nobody reads 'noise_head.logvar_min', 'noise_head.logvar_max'"));
  DOCTEST_CHECK(!contains(notes, "begin anew"));

  // Trained on and merged, the file's heads are the new ones.
  for (const WeightUnit& unit : model.units()) std::ranges::fill(unit.floats(), 0.01F);
  const TemporaryFolder merged;
  const io::SafetensorsFile file(
      export_merged(model, merged / "model.safetensors", model.published().file(),
                    [&](const Parameter& each) { return model.published().stored_name_of(each); }));
  const auto names = [](const io::SafetensorsFile& of) {
    const auto all = of.names();
    return std::set<std::string>(all.begin(), all.end());
  };
  DOCTEST_CHECK((names(file) == names(*model.published().file())));
  for (const char* name : {"value_head.mlp.2.weight", "noise_head.mlp_logvar.moduleList.1.linear_1.bias"})
    DOCTEST_CHECK(std::ranges::all_of(file.span<float>(name), [](float value) { return value == 0.01F; }));

  // Without them the model is the published one alone.
  const Pi05Model bare(published<FlowVlaKnobs>(folder), inputs, 2);
  DOCTEST_CHECK((bytes_of(bare) == bytes_of(source)));
  write(other);
  DOCTEST_CHECK(
      contains(message_of<ConfigError>([&] { (void)Model(again, inputs, 2); }),
               "the checkpoint's noise_head.logvar_min says a standard deviation of 0.05, and this model's "
               "noise has 0.08; choose another model.noise than flow_noise"));
  again.noise = FlowNoise::flow_sde;
  DOCTEST_CHECK(message_of<ConfigError>([&] { (void)Model(again, inputs, 2); }) == "");
}

DOCTEST_TEST_CASE(
    "Pictures are made as in the run that a folder was exported from, unless the knob says otherwise") {
  const ModelInputs inputs = some_inputs();
  const TemporaryFolder folder;
  FlowVlaKnobs knobs = tiny<FlowVlaKnobs>();
  const std::string lerobot = [&] {
    Pi05Model model(knobs, inputs, 1);
    return decided(model, inputs);
  }();
  knobs.pictures = Pictures::openpi;
  Pi05Model source(knobs, inputs, 1);
  DOCTEST_REQUIRE((decided(source, inputs) != lerobot));
  export_folder(source, folder.path());
  FlowVlaKnobs again = published<FlowVlaKnobs>(folder);
  Pi05Model model(again, inputs, 2);
  DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));
  const auto notes = [&] { return dvla_test::all(Pi05Model::plan(again, inputs, 1, 1).notes); };
  DOCTEST_CHECK(contains(notes(), "pictures: the way of openpi, because its config.json says so"));
  DOCTEST_CHECK(contains(notes(), "prompts: a token a byte, which stands in for a tokeniser"));
  again.pictures = Pictures::lerobot;
  Pi05Model otherwise(again, inputs, 2);
  DOCTEST_CHECK((decided(otherwise, inputs) == lerobot));
  DOCTEST_CHECK(!contains(notes(), "pictures:"));
  DOCTEST_CHECK(
      !contains(dvla_test::all(Pi05Model::plan(tiny<FlowVlaKnobs>(), inputs, 1, 1).notes), "pictures:"));

  again.pictures = Pictures::checkpoint;
  const std::string config = dvla_test::read_text(folder / "config.json");
  const auto refuses = [&](const std::string& instead, const std::string& why) {
    auto changed = nlohmann::json::parse(config);
    changed["dvla"].erase("pictures");
    if (!instead.empty()) changed["dvla"]["pictures"] = instead;
    dvla_test::write_text(folder / "config.json", changed.dump());
    DOCTEST_CHECK(contains(message_of<ConfigError>([&] { (void)Pi05Model(again, inputs, 2); }), why));
  };
  refuses("authors", "dvla.pictures: it is \"authors\"; it must be one of checkpoint lerobot openpi");
  refuses("checkpoint", "dvla.pictures is checkpoint, which is no way of making pictures");
  refuses("", "dvla has no field 'pictures'");
}

DOCTEST_TEST_CASE("SmolVLA's names need no leading model., and its words may be lm_head's") {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  const SmolVlaModel source(tiny<FlowVlaKnobs>(), inputs, 1);
  Tensors tensors = weights_to_write(source, WeightSet::all);
  for (auto& each : tensors) each.name.erase(0, std::string("model.").size());
  named(tensors, "embed_tokens.weight").name = "vlm_with_expert.vlm.lm_head.weight";
  export_folder(source, folder.path());
  io::write_safetensors(folder / "model.safetensors", tensors);
  DOCTEST_CHECK((bytes_of(SmolVlaModel(published<FlowVlaKnobs>(folder), inputs, 2)) == bytes_of(source)));
}

DOCTEST_TEST_CASE(
    "What is missing, surplus or of another shape or type is one sentence, before a tensor is made") {
  Pi05Folder made;
  const std::vector<std::int64_t> integers(64);
  const std::string folder = made.write([&](Tensors& tensors) {
    std::erase_if(tensors,
                  [](const auto& each) { return contains(each.name, "vision_model.encoder.layers.1."); });
    auto& projector = named(tensors, "multi_modal_projector.linear.weight");
    std::swap(projector.shape[0], projector.shape[1]);
    auto& bias = named(tensors, "time_mlp_in.bias");
    bias.dtype = io::Dtype::I64;
    bias.bytes = std::as_bytes(std::span(integers)).first(8 * 32);
    for (const char* name : {"extra.a", "extra.b", "extra.c", "extra.d", "extra.e"}) {
      tensors.push_back(named(tensors, "time_mlp_out.bias"));
      tensors.back().name = name;
    }
    named(tensors, "action_out_proj.bias").name = "action_out_proj.shift";
  });
  const std::string tower =
      "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.1.";
  const std::string said = made.read();
  DOCTEST_CHECK(said.starts_with("'" + folder + "' has other tensors than Pi05: 17 tensors are missing: '" +
                                 tower + "layer_norm1.weight', '" + tower + "layer_norm1.bias', "));
  DOCTEST_CHECK(contains(said, " and 13 more; 6 are not the model's: "));
  DOCTEST_CHECK(contains(said, "'extra.a'"));
  DOCTEST_CHECK(contains(
      said,
      "; 2 do not fit: 'paligemma_with_expert.paligemma.model.multi_modal_projector.linear.weight' is [32 x "
      "64] and not [64 x 32], 'time_mlp_in.bias' is I64 and not F32, BF16 or F16"));
  DOCTEST_CHECK(!contains(said, "\n"));
  DOCTEST_CHECK(message_of<ConfigError>([&] {
                  (void)Pi05Model::plan(published<FlowVlaKnobs>(made.folder), made.inputs, 1, 1);
                }) == said);

  made.write([](Tensors& tensors) {
    tensors.push_back(named(tensors, "time_mlp_in.bias"));
    tensors.back().name = "model.time_mlp_in.bias";
  });
  DOCTEST_CHECK(contains(made.read(), "has time_mlp_in.bias twice, as "));
  std::vector<float> broken(32, 1.0F);
  broken[7] = std::numeric_limits<float>::quiet_NaN();
  made.write(
      [&](Tensors& tensors) { named(tensors, "time_mlp_in.bias").bytes = std::as_bytes(std::span(broken)); });
  DOCTEST_CHECK(contains(made.read(), "time_mlp_in.bias has nan at element 7: it must be finite"));
}

DOCTEST_TEST_CASE(
    "An index that names an absent file, one elsewhere, or a tensor that is not there is one sentence") {
  Pi05Folder made;
  made.limit = 100'000;
  made.write([](Tensors&) {});
  const auto index = made.folder / "model.safetensors.index.json";
  const std::string good = dvla_test::read_text(index);
  const std::string first = "\"model-00001-of-";
  DOCTEST_REQUIRE(contains(good, first));
  const auto said = [&](const std::string& file) {
    std::string text = good;
    const std::size_t at = text.find(first);
    text.replace(at, text.find('"', at + 1) + 1 - at, "\"" + file + "\"");
    dvla_test::write_text(index, text);
    return made.read();
  };
  DOCTEST_CHECK(contains(said("absent.safetensors"), "the file 'absent.safetensors' is missing"));
  DOCTEST_CHECK(
      contains(said("../x.safetensors"), "'../x.safetensors', which is none of the index's folder"));
  DOCTEST_CHECK(contains(said("/etc/passwd"), "'/etc/passwd', which is none of the index's folder"));
  const std::string elsewhere =
      said("model-00002-of-" + good.substr(good.find(first) + 16, 5) + ".safetensors");
  DOCTEST_CHECK((contains(elsewhere, "is not in the file") || contains(elsewhere, "lies in the file")));
  dvla_test::write_text(index, good);
  DOCTEST_CHECK(made.read() == "");
}

DOCTEST_TEST_CASE(
    "What is merged has the form of the checkpoint: lerobot's names, a tied tensor under the other name, "
    "dead ones") {
  Pi05Folder made;
  std::vector<std::string> names;
  const std::vector<float> dead(6, 2);
  made.write([&](Tensors& tensors) {
    named(tensors, embedding).name = lm_head;
    for (auto& each : tensors) each.name.insert(0, "model.");
    tensors.push_back(
        io::tensor_to_write<float>("model.paligemma_with_expert.gemma_expert.lm_head.weight", {2, 3}, dead));
    for (const auto& each : tensors) names.push_back(each.name);
  });
  LoraKnobs<FlowVlaKnobs> knobs{published<FlowVlaKnobs>(made.folder)};
  knobs.lora_rank = 2;
  LoraModel<Pi05Model> model(knobs, made.inputs, 2);
  for (const WeightUnit& unit : model.units()) std::ranges::fill(unit.floats(), 0.01F);
  const TemporaryFolder merged;
  const io::SafetensorsFile file(
      export_merged(model, merged / "model.safetensors", model.published().file(),
                    [&](const Parameter& each) { return model.published().stored_name_of(each); }));
  DOCTEST_CHECK(file.metadata() == made.metadata);
  DOCTEST_CHECK(file.names().size() == names.size());
  std::size_t changed = 0;
  for (const std::string& name : names) {
    DOCTEST_CAPTURE(name);
    DOCTEST_REQUIRE(file.contains(name));
    changed += !std::ranges::equal(file.tensor(name).bytes, model.published().file()->tensor(name).bytes);
  }
  DOCTEST_CHECK(changed == static_cast<std::size_t>(dvla_test::trainable(model.parameters(), ".lora_A")));
  export_folder(made.source, merged / "config");
  std::filesystem::copy(merged / "config" / "config.json", merged / "config.json");
  Pi05Model whole(published<FlowVlaKnobs>(merged), made.inputs, 3);
  model.merged([&](const Parameter& parameter, const at::Tensor& value) {
    for (const Parameter& each : whole.parameters())
      if (each.name == parameter.name)
        DOCTEST_CHECK(std::memcmp(each.data, value.const_data_ptr(), each.bytes()) == 0);
  });
}

DOCTEST_TEST_CASE("Under LoRA a checkpoint is the frozen base, computed with where the file has it") {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  Pi05Model source(tiny<FlowVlaKnobs>(), inputs, 1);
  export_folder(source, folder.path());
  LoraKnobs<FlowVlaKnobs> knobs{published<FlowVlaKnobs>(folder)};
  knobs.lora_rank = 2;
  LoraModel<Pi05Model> model(knobs, inputs, 2);
  DOCTEST_CHECK((bytes_of(model) == bytes_of(source)));
  DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));  // B begins at 0
  const ModelPlan plan = LoraModel<Pi05Model>::plan(knobs, inputs, 1, 1);
  DOCTEST_REQUIRE(plan.parameters.size() == model.parameters().size());
  for (std::size_t i = 0; i < plan.parameters.size(); ++i) {
    DOCTEST_CHECK(plan.parameters[i].mapped == !plan.parameters[i].trainable);
    DOCTEST_CHECK(model.parameters()[i].mapped == !model.parameters()[i].trainable);
  }
  DOCTEST_CHECK(contains(dvla_test::all(plan.notes), "weights of '" + folder.path().string() + "': "));

  // What is merged is read again, with adapters that no longer do nothing.
  for (const WeightUnit& unit : model.units()) {
    const std::span<float> values = unit.floats();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.01F * static_cast<float>(i % 7);
  }
  const TemporaryFolder merged;
  export_folder(model, merged.path());
  Pi05Model whole(published<FlowVlaKnobs>(merged), inputs, 3);
  DOCTEST_CHECK((bytes_of(whole) != bytes_of(source)));

  knobs.dtype = Dtype::bf16;  // another precision is read and rounded
  const LoraModel<Pi05Model> rounded(knobs, inputs, 2);
  DOCTEST_CHECK(std::ranges::none_of(rounded.parameters(), &Parameter::mapped));
  knobs.base_checkpoint = folder.path().string();
  DOCTEST_CHECK(contains(message_of<ConfigError>([&] { LoraModel<Pi05Model>(knobs, inputs, 2); }),
                         "both give the frozen base its weights, so leave one out"));
}

DOCTEST_TEST_CASE("Beside an action expert that trains, the frozen model is mapped, and the expert is not") {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  Pi05Model source(tiny<FlowVlaKnobs>(), inputs, 1);
  export_folder(source, folder.path());
  FlowVlaKnobs knobs = published<FlowVlaKnobs>(folder);
  knobs.train = Trained::expert;
  Pi05Model model(knobs, inputs, 2);
  DOCTEST_CHECK((decided(model, inputs) == decided(source, inputs)));
  for (const Parameter& each : model.parameters()) DOCTEST_CHECK(each.mapped == !each.trainable);
}

DOCTEST_TEST_CASE(
    "Extents are what config.json says, and the published ones where its writer's class has defaults") {
  const TemporaryFolder folder;
  const auto config = [&](const std::string& text) { dvla_test::write_text(folder / "config.json", text); };
  using dvla::detail::Pi05Family, dvla::detail::SmolVlaFamily;
  FlowVlaKnobs knobs = published<FlowVlaKnobs>(folder);
  const auto same = [](const auto& one, const auto& other) {
    return json_of(one).dump() == json_of(other).dump();
  };

  config(R"({"action_dim": 24, "action_horizon": 10, "paligemma_variant": "gemma_2b",
             "action_expert_variant": "gemma_300m", "precision": "bfloat16"})");
  dvla::detail::Pi0Shape pi05;
  pi05.actions = 24, pi05.horizon = 10;
  DOCTEST_CHECK(same(Pi05Family::shape(knobs), pi05));
  knobs.horizon = 12;
  DOCTEST_CHECK(Pi05Family::shape(knobs).horizon == 12);
  knobs.horizon = 0;

  const std::string written = DVLA_TEST_DIR "/golden/model/configs/";  // by lerobot itself, with one camera
  config(dvla_test::read_text(written + "pi05.json"));
  pi05 = {};
  pi05.views = 1;
  DOCTEST_CHECK(same(Pi05Family::shape(knobs), pi05));
  config(dvla_test::read_text(written + "smolvla.json"));
  dvla::detail::SmolVlaShape smolvla;
  smolvla.views = 1;
  DOCTEST_CHECK(same(SmolVlaFamily::shape(knobs), smolvla));

  config(R"({"type": "pi05"})");
  DOCTEST_CHECK(same(Pi05Family::shape(knobs), dvla::detail::Pi0Shape{}));
  config(
      R"({"type": "pi05", "chunk_size": 30, "max_action_dim": 16, "tokenizer_max_length": 96, "min_period": 0.01,
             "max_period": 2.0, "image_resolution": [448, 448], "input_features": {
               "observation.images.a": {"type": "VISUAL", "shape": [3, 9, 9]},
               "observation.images.b": {"type": "VISUAL", "shape": [3, 9, 9]},
               "observation.state": {"type": "STATE", "shape": [8]}}})");
  pi05 = {};
  pi05.horizon = 30, pi05.actions = 16, pi05.text = 96, pi05.views = 2, pi05.vision.image = 448;
  pi05.shortest_period = 0.01, pi05.longest_period = 2;
  DOCTEST_CHECK(same(Pi05Family::shape(knobs), pi05));

  config(R"({"type": "smolvla", "num_expert_layers": 0, "prefix_length": 0})");
  DOCTEST_CHECK(same(SmolVlaFamily::shape(knobs), dvla::detail::SmolVlaShape{}));
  config(
      R"({"type": "smolvla", "chunk_size": 20, "max_action_dim": 14, "max_state_dim": 15, "num_vlm_layers": 8,
             "expert_width_multiplier": 0.5, "self_attn_every_n_layers": -1, "resize_imgs_with_padding": [256, 256],
             "tokenizer_max_length": 64})");
  smolvla = {};
  smolvla.horizon = 20, smolvla.actions = 14, smolvla.states = 15, smolvla.text = 64, smolvla.joint_every = 0;
  smolvla.vision.image = 256;
  smolvla.language.layers = smolvla.expert.layers = 8;
  smolvla.expert.width = 480, smolvla.expert.mlp = 1280;  // get_intermediate_size(480)
  DOCTEST_CHECK(same(SmolVlaFamily::shape(knobs), smolvla));

  OpenVlaOftKnobs oft = published<OpenVlaOftKnobs>(folder);
  config(
      R"({"model_type": "openvla", "arch_specifier": "no-align+fused-gelu-mlp", "image_sizes": [224, 224], "image_resize_strategy": "resize-naive",
             "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
             "n_action_bins": 256, "pad_to_multiple_of": 64, "norm_stats": {"a": {}},
             "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}})");
  dvla::detail::OpenVlaShape openvla;
  openvla.stop = false, openvla.chunk = 3, openvla.views = 2, openvla.dimensions = 6;
  DOCTEST_CHECK(same(dvla::detail::openvla_oft_shape(oft, 2, 6), openvla));
  config(
      R"({"model_type": "openvla", "text_config": {"hidden_size": 128, "num_hidden_layers": 3, "rms_norm_eps": 1e-5,
             "num_attention_heads": 4, "intermediate_size": 200, "vocab_size": 1000, "rope_theta": 5000}})");
  openvla.vocabulary = 1000;
  openvla.language.width = 128, openvla.language.layers = 3, openvla.language.mlp = 200;
  openvla.language.heads = openvla.language.kv_heads = 4, openvla.language.head_width = 32;
  openvla.language.norm_eps = 1e-5, openvla.language.theta = 5000;
  DOCTEST_CHECK(same(dvla::detail::openvla_oft_shape(oft, 2, 6), openvla));
}

DOCTEST_TEST_CASE_TEMPLATE(
    "A file with the published names and shapes at full size is the model's, and is mapped under LoRA", Model,
    Pi05Model, SmolVlaModel, OpenVlaOftModel) {
  using Knobs = typename Model::Knobs;
  const bool pi05 = std::is_same_v<Model, Pi05Model>, smolvla = std::is_same_v<Model, SmolVlaModel>;
  const std::string name = pi05      ? "pi05"
                           : smolvla ? "smolvla"
                                     : "openvla_oft",
                    golden = DVLA_TEST_DIR "/golden/model/";
  std::ifstream names(golden + "names/" + name + ".tsv");
  DOCTEST_REQUIRE(names.good());
  nlohmann::json header = nlohmann::json::object();
  std::uint64_t bytes = 0;
  std::int64_t used = 0;
  for (std::string line; std::getline(names, line);) {
    std::istringstream words(line);
    std::string tensor, shape, dtype, kind;
    words >> tensor >> shape >> dtype >> kind;
    if (tensor == "#") continue;
    std::vector<std::int64_t> sizes;
    std::int64_t count = 1;
    std::istringstream list(shape);
    for (std::string size; std::getline(list, size, 'x');) {
      sizes.push_back(std::stoll(size));
      count *= sizes.back();
    }
    used += kind == "used" ? count : 0;
    const std::uint64_t end = bytes + 2 * static_cast<std::uint64_t>(count);
    header[tensor] = {{"dtype", "BF16"}, {"shape", sizes}, {"data_offsets", {bytes, end}}};
    bytes = end;
  }
  const TemporaryFolder folder;  // the file is a hole behind its header
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string start(8, '\0');
  const std::uint64_t length = text.size();
  std::memcpy(start.data(), &length, 8);
  dvla_test::write_text(folder / "model.safetensors", start + text);
  std::filesystem::resize_file(folder / "model.safetensors", 8 + length + bytes);
  dvla_test::write_text(folder / "config.json",
                        pi05 || smolvla ? dvla_test::read_text(golden + "configs/" + name + ".json")
                                        : R"({"model_type": "openvla"})");
  ModelInputs inputs = some_inputs();
  inputs.observation.cameras.resize(1);  // as the configurations have
  LoraKnobs<Knobs> knobs{published<Knobs>(folder)};
  knobs.dtype = Dtype::bf16;
  const ModelPlan plan = LoraModel<Model>::plan(knobs, inputs, 1, 1);
  std::int64_t count = 0;
  for (const Parameter& each : plan.parameters) {
    DOCTEST_CHECK(each.mapped == !each.trainable);
    if (!each.apart) count += each.count();
  }
  DOCTEST_CHECK(count == used);
  DOCTEST_CHECK(contains(dvla_test::all(plan.notes), "nobody reads") == (pi05 || smolvla));
  const auto pictures = [&](const std::string& why) {
    DOCTEST_CHECK(contains(dvla_test::all(LoraModel<Model>::plan(knobs, inputs, 1, 1).notes),
                           "pictures: the way of " + why));
  };
  pictures(pi05      ? "lerobot, because its config.json is lerobot's"
           : smolvla ? "lerobot, because SmolVLA has no other"
                     : "rlinf, because the folder has no action_head; nothing in it tells SimpleVLA-RL's");
  dvla_test::write_text(folder / "action_head--1_checkpoint.pt", "");
  if (pi05) dvla_test::write_text(folder / "config.json", R"({"action_dim": 32, "action_horizon": 50})");
  if (!smolvla)
    pictures(pi05 ? "openpi, because its config.json is that of openpi's converter"
                  : "authors, because the folder has an action_head");
}

DOCTEST_TEST_CASE(
    "A config.json of another model, or with what is not supported, is refused by field, value and what "
    "would do") {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  const FlowVlaKnobs knobs = published<FlowVlaKnobs>(folder);
  const auto refuses = [&](const std::string& text, const std::string& why, auto shape) {
    dvla_test::write_text(folder / "config.json", text);
    const std::string said = message_of<ConfigError>([&] { (void)shape(); });
    DOCTEST_CAPTURE(said);
    DOCTEST_CHECK(contains(said, why));
    DOCTEST_CHECK(!contains(said, "\n"));
  };
  const auto pi05 = [&] { return dvla::detail::Pi05Family::shape(knobs); };
  const auto smolvla = [&] { return dvla::detail::SmolVlaFamily::shape(knobs); };
  const auto openvla = [&] {
    return dvla::detail::openvla_oft_shape(published<OpenVlaOftKnobs>(folder), 1, 7);
  };
  refuses("{", "config.json' is no JSON object", pi05);
  refuses("[]", "config.json' is no JSON object", pi05);
  refuses("{}", "config.json' has no field 'type'; this model reads pi05", pi05);
  refuses(R"({"type": "smolvla"})", "config.json' says type smolvla; this model reads pi05", pi05);
  refuses(R"({"type": "pi0"})", "says type pi0; this model reads pi05", pi05);
  refuses(R"({"type": "pi05"})", "says type pi05; this model reads smolvla", smolvla);
  refuses(R"({"type": "pi05"})", "has no field 'model_type'; this model reads openvla", openvla);
  refuses(R"({"type": 7})", "says type 7; this model reads pi05", pi05);
  refuses(R"({"action_horizon": 10})", "has no field 'action_dim'", pi05);
  refuses(R"({"type": "pi05", "paligemma_variant": "gemma_300m"})",
          "its field 'paligemma_variant' is \"gemma_300m\"; it must be \"gemma_2b\"", pi05);
  refuses(R"({"type": "pi05", "chunk_size": "many"})",
          "its field 'chunk_size' is \"many\"; it must be a whole number in [1, ", pi05);
  refuses(R"({"type": "pi05", "image_resolution": [224, 225]})",
          "'image_resolution' is [224,225]; it must be two equal", pi05);
  refuses(R"({"type": "pi05", "max_period": -1})", "'max_period' is -1; it must be a number above 0", pi05);
  refuses(R"({"type": "pi05", "use_relative_actions": true})", "'use_relative_actions' is true", pi05);
  refuses(R"({"type": "smolvla", "num_expert_layers": 8})",
          "'num_expert_layers' is 8; it must be -1 or 0 or 16", smolvla);
  refuses(R"({"type": "smolvla", "attention_mode": "self_attn"})", "it must be \"cross_attn\"", smolvla);
  refuses(R"({"model_type": "openvla", "image_sizes": [384, 384]})",
          "its field 'image_sizes' is [384,384]; it must be [224,224]", openvla);
  refuses(R"({"model_type": "openvla", "text_config": {"model_type": "mistral"}})",
          "its field 'text_config.model_type' is \"mistral\"; it must be \"llama\"", openvla);
  refuses(R"({"model_type": "openvla", "image_resize_strategy": "letterbox"})",
          "its field 'image_resize_strategy' is \"letterbox\"; it must be \"resize-naive\"", openvla);
  refuses(R"({"model_type": "openvla", "text_config": 3})",
          "its field 'text_config' is 3; it must be an object", openvla);
  refuses(R"({"dvla": {"model": "SmolVLA"}})", "says model SmolVLA; this model reads Pi05", pi05);
  refuses(R"({"dvla": {"model": "Pi05"}})", "dvla.shape", pi05);
  const std::string own = Pi05Model(tiny<FlowVlaKnobs>(), inputs, 1).config_text();
  std::string changed = own;
  changed.replace(changed.find("\"patch\": 14"), 11, "\"patch\": 0");
  refuses(changed, "its field 'dvla.shape.vision.patch' is 0; it must be in [1, ", pi05);
  FlowVlaKnobs nowhere = knobs;
  nowhere.checkpoint = (folder / "absent").string();
  DOCTEST_CHECK(
      contains(message_of<ConfigError>([&] { Pi05Model(nowhere, inputs, 1); }), "which is no folder"));
  FlowVlaKnobs both = knobs;
  both.random = RandomWeights::full;
  DOCTEST_CHECK(contains(message_of<ConfigError>([&] { check(both); }),
                         "and model.random is full; a model has its weights from one of them"));
}

DOCTEST_TEST_CASE("A checkpoint's actions may lie beyond [-1, 1], a random network's may not") {
  const TemporaryFolder folder;
  const ModelInputs inputs = some_inputs();
  Pi05Model source(tiny<FlowVlaKnobs>(), inputs, 1);
  for (const Parameter& each : source.parameters())
    if (each.name == "action_out_proj.bias") {
      const std::vector<float> far(static_cast<std::size_t>(each.count()), -3.0F);
      std::memcpy(each.data, far.data(), each.bytes());
    }
  export_folder(source, folder.path());
  Pi05Model model(published<FlowVlaKnobs>(folder), inputs, 2);
  const auto largest = [&](Pi05Model& of) {
    OwnedRecord<Observation> observation(observation_layout(inputs.observation, {1}),
                                         *std::pmr::new_delete_resource());
    dvla::testing::fill_observation(*observation, inputs.observation, 3);
    OwnedRecord<FlowDecision> decision(of.decision_layout({1}), *std::pmr::new_delete_resource());
    std::vector<float> action(6);
    const std::vector<std::int64_t> rows{0};
    of.act(*observation, rows, Decoding::mode, 1, *decision, Field<float>({1, 3, 2}, action.data()));
    return std::ranges::max(action);
  };
  DOCTEST_CHECK(largest(source) == 1.0F);
  DOCTEST_CHECK(largest(model) > 1.5F);
}
