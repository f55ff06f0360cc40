// dvla-test: asan
// Adapters in PEFT's form: what is written is read again, bit for bit; every way in which a folder is not the model's is one
// sentence, and changes nothing. That PEFT itself reads and writes such folders, the adapters of test/golden/model/parity show.
#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/model/adapter_files.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;
using dvla_test::contains;
using dvla_test::TemporaryFolder;

namespace {

/// Two layers with adapters, one without, a table of words. Values by seed.
class Model {
 public:
  explicit Model(std::uint64_t seed, Dtype dtype = Dtype::f32, const std::string& lead = "") {
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, bool trains) {
      parameters_.push_back({.name = name, .shape = std::move(shape), .dtype = dtype, .trainable = trains});
    };
    for (const auto& [layer, out] : {std::pair<std::string, std::int64_t>{"a.q_proj", 3}, {"b.q_proj", 5}}) {
      add(lead + layer + ".weight", {out, 4}, false);
      add(detail::adapter_name(lead + layer, 'A'), {2, 4}, true);
      add(detail::adapter_name(lead + layer, 'B'), {out, 2}, true);
    }
    add(lead + "b.dead.weight", {4, 4}, false);
    add(lead + "words.weight", {6, 4}, false);
    SplitMix64 random(seed);
    memory_.reserve(parameters_.size());
    for (Parameter& each : parameters_) {
      each.data = memory_.emplace_back(each.bytes()).data();
      for (std::int64_t i = 0; i < each.count(); ++i) {
        const float value = static_cast<float>(random.normal());
        from_floats(std::span(&value, 1), dtype,
                    {each.data + static_cast<std::size_t>(i) * bytes_of(dtype), bytes_of(dtype)});
      }
    }
  }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  /// Its adapters' bytes, or the other ones'.
  std::string bytes(bool adapters) const {
    std::string all;
    for (const Parameter& each : parameters_)
      if (each.trainable == adapters) all.append(reinterpret_cast<const char*>(each.data), each.bytes());
    return all;
  }

 private:
  std::vector<Parameter> parameters_;
  std::vector<std::vector<std::byte>> memory_;
};

const Adapters two{.rank = 2, .alpha = 3};

nlohmann::json config_in(const std::filesystem::path& folder) {
  return nlohmann::json::parse(dvla_test::read_text(folder / adapter_config_name));
}

/// A tensor of a file that is to be changed.
struct Tensor {
  io::Dtype dtype = io::Dtype::F32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};
Tensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {io::Dtype::F32, std::move(shape), {bytes.begin(), bytes.end()}};
}
using Tensors = std::map<std::string, Tensor>;

/// What reading a folder says where `change` has been at what export_adapters wrote of Model(1): empty, where it is read.
std::string refusal(const std::function<void(Tensors&, nlohmann::json&)>& change,
                    const Adapters& adapters = two, Dtype dtype = Dtype::f32) {
  const TemporaryFolder folder;
  export_adapters(Model(1), two, folder.path());
  Tensors tensors;
  {
    const io::SafetensorsFile file(folder / adapter_weights_name);
    for (const std::string& name : file.names()) {
      const io::TensorView view = file.tensor(name);
      tensors[name] = {
          view.dtype, {view.shape.begin(), view.shape.end()}, {view.bytes.begin(), view.bytes.end()}};
    }
  }
  nlohmann::json config = config_in(folder.path());
  change(tensors, config);
  std::vector<io::TensorToWrite> all;
  for (const auto& [name, tensor] : tensors) all.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
  io::write_safetensors(folder / adapter_weights_name, all);
  dvla_test::write_text(folder / adapter_config_name, config.dump());
  Model model(2, dtype);
  const std::string before = model.bytes(true);
  const std::string said =
      dvla_test::message_of<Error>([&] { load_adapters(model, adapters, folder.path()); });
  CHECK(!contains(said, "\n"));
  CHECK((model.bytes(true) == before) == !said.empty());
  CHECK(model.bytes(false) == Model(2, dtype).bytes(false));
  return said;
}
std::string config_refusal(const std::string& field, const nlohmann::json& value) {
  return refusal([&](Tensors&, nlohmann::json& config) { config[field] = value; });
}

const std::string q = "base_model.model.a.q_proj.lora_A.weight",
                  b = "base_model.model.a.q_proj.lora_B.weight";

}  // namespace

TEST_CASE("What is written is read again, bit for bit, and the config says what PEFT needs") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const std::string lead : {"", lerobot_prefix}) {
      const TemporaryFolder folder;
      const Model source(1, dtype);
      const std::size_t bytes = export_adapters(source, two, folder / "made" / "here", "base/folder", lead);
      CHECK(bytes == source.bytes(true).size());
      CHECK(std::filesystem::file_size(folder / "made" / "here" / adapter_weights_name) > bytes);
      const io::SafetensorsFile file(folder / "made" / "here" / adapter_weights_name);
      CHECK(file.names().size() == 4);
      CHECK(file.contains("base_model.model." + lead + "b.q_proj.lora_B.weight"));
      CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
      const nlohmann::json config = config_in(folder / "made" / "here");
      CHECK(config["peft_type"] == "LORA");
      CHECK(config["r"] == 2);
      CHECK(config["lora_alpha"] == 3);
      CHECK(config["lora_alpha"].is_number_integer());
      CHECK(config["base_model_name_or_path"] == "base/folder");
      CHECK(config["target_modules"] == nlohmann::json({lead + "a.q_proj", lead + "b.q_proj"}));
      Model model(2, dtype);
      load_adapters(model, two, folder / "made" / "here");
      CHECK(model.bytes(true) == source.bytes(true));
      CHECK(model.bytes(false) == Model(2, dtype).bytes(false));
    }
}

TEST_CASE("Names that the model has with a leading model. are read without one added") {
  const TemporaryFolder folder;
  const Model source(1, Dtype::f32, "model.");
  export_adapters(source, two, folder.path());
  Model model(2, Dtype::f32, "model.");
  load_adapters(model, two, folder.path());
  CHECK(model.bytes(true) == source.bytes(true));
}

TEST_CASE("An alpha that is no whole number is written as it is") {
  const TemporaryFolder folder;
  export_adapters(Model(1), {.rank = 2, .alpha = 2.5}, folder.path());
  CHECK(config_in(folder.path())["lora_alpha"] == 2.5);
}

TEST_CASE("Targets may be named by the ends of names, by an expression, or all at once") {
  CHECK(config_refusal("target_modules", {"q_proj"}).empty());
  CHECK(config_refusal("target_modules", R"(.*\.q_proj)").empty());
  CHECK(config_refusal("target_modules", "all-linear").empty());
  CHECK(config_refusal("init_lora_weights", "gaussian").empty());
  CHECK(config_refusal("use_dora", nullptr).empty());
  CHECK(config_refusal("target_modules", {"q_proj", "out_proj"}).empty());  // no layer of the model's either
  CHECK(contains(config_refusal("target_modules", {"q_proj", "dead"}),
                 "target_modules has 'dead', and no layer in adapter_model.safetensors has that name"));
  CHECK(contains(config_refusal("target_modules", {"a.q_proj"}),
                 "it does not name b.q_proj, beside which the file has an adapter"));
  CHECK(contains(config_refusal("target_modules", R"(a\..*)"), "it does not name b.q_proj"));
  CHECK(contains(config_refusal("target_modules", "(?<=a)q"), "it is no regular expression here"));
  CHECK(contains(config_refusal("target_modules", nullptr), "target_modules is null, and it must be names"));
  CHECK(contains(config_refusal("target_modules", nlohmann::json::array()), "and it must be names"));
}

TEST_CASE("A config of what adapters here do not have, or of others, is refused by the field's name") {
  CHECK(contains(config_refusal("r", 8), "r is 8, and model.lora_rank is 2; they must be the same"));
  CHECK(contains(config_refusal("lora_alpha", 16.5), "lora_alpha is 16.5, and model.lora_alpha is 3"));
  CHECK(contains(config_refusal("r", "2"), "r is \"2\", and it must be a whole number"));
  CHECK(contains(config_refusal("lora_alpha", nullptr), "lora_alpha is null, and it must be a number"));
  CHECK(contains(config_refusal("peft_type", "IA3"), "peft_type is \"IA3\", and it must be \"LORA\""));
  CHECK(contains(config_refusal("bias", "lora_only"), "bias is \"lora_only\""));
  for (const char* flag : {"use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "use_qalora"})
    CHECK(contains(config_refusal(flag, true),
                   std::string(flag) + " is true, and adapters here do not have that"));
  for (const char* table : {"rank_pattern", "alpha_pattern"})
    CHECK(contains(config_refusal(table, {{"a.q_proj", 4}}), std::string(table) + " is an object"));
  CHECK(contains(config_refusal("modules_to_save", {"lm_head"}), "modules_to_save is an array"));
  CHECK(contains(config_refusal("init_lora_weights", "pissa_niter_4"),
                 "init_lora_weights is \"pissa_niter_4\""));
  CHECK(contains(refusal([](auto&, nlohmann::json& config) { config = 3; }), "is no JSON object"));
}

TEST_CASE("Tensors that are not the model's adapters are refused") {
  const auto tensors = [](const std::function<void(Tensors&)>& change) {
    return refusal([&](Tensors& all, nlohmann::json& config) {
      config["target_modules"] = "all-linear";
      change(all);
    });
  };
  const auto renamed = [&](const std::string& from, const std::string& to) {
    return tensors([&](Tensors& all) {
      auto node = all.extract(from);
      node.key() = to;
      all.insert(std::move(node));
    });
  };
  CHECK(tensors([](Tensors&) {}).empty());
  CHECK(contains(renamed(q, "a.q_proj.lora_A.weight"),
                 "tensor 'a.q_proj.lora_A.weight' has no base_model.model. before its name"));
  CHECK(contains(renamed(q, "base_model.model.a.q_proj.lora_A.default.weight"), "and '" + q + "' is not"));
  CHECK(contains(tensors([](Tensors& all) { all.erase(b); }),
                 "tensor '" + q + "' is there, and '" + b + "' is not"));
  CHECK(contains(tensors([](Tensors& all) { all.erase(q); }),
                 "tensor '" + b + "' is there, and '" + q + "' is not"));
  CHECK(contains(tensors([](Tensors& all) { all.clear(); }), "it has no adapter"));
  CHECK(contains(tensors([](Tensors& all) { all.erase(q), all.erase(b); }),
                 "it has no adapter for a.q_proj, beside which the model has one; model.lora_targets must "
                 "match the 1 layers"));
  CHECK(contains(tensors([](Tensors& all) {
                   all["base_model.model.c.lora_A.weight"] = all[q];
                   all["base_model.model.c.lora_B.weight"] = all[b];
                 }),
                 "it has an adapter for c, and this model has no such layer"));
  CHECK(contains(
      tensors([](Tensors& all) { all["base_model.model.a.lora_embedding_A"] = all[q]; }),
      "tensor 'base_model.model.a.lora_embedding_A' is neither lora_A nor lora_B of a linear layer"));
  CHECK(contains(tensors([](Tensors& all) { std::swap(all[b].shape[0], all[b].shape[1]); }),
                 "has another shape"));
  CHECK(contains(tensors([](Tensors& all) { all[b].dtype = io::Dtype::I32; }),
                 "is I32; weights are read from"));
  CHECK(contains(tensors([](Tensors& all) {
                   const float broken = std::numeric_limits<float>::quiet_NaN();
                   std::memcpy(all["base_model.model.b.q_proj.lora_B.weight"].bytes.data() + 8, &broken, 4);
                 }),
                 "has nan at element 2: it must be finite"));
}

TEST_CASE("Beside a layer that has none here, an adapter must change nothing: B is 0") {
  const auto beside_dead = [](float last) {
    return refusal([&](Tensors& all, nlohmann::json& config) {
      config["target_modules"] = {"q_proj", "dead"};
      all["base_model.model.b.dead.lora_A.weight"] = floats({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8});
      all["base_model.model.b.dead.lora_B.weight"] = floats({4, 2}, {0, 0, 0, 0, 0, 0, 0, last});
    });
  };
  CHECK(beside_dead(0).empty());
  CHECK(contains(beside_dead(1e-8F), "it has an adapter for b.dead that changes what comes out"));
  CHECK(contains(beside_dead(std::numeric_limits<float>::infinity()), "has inf at element 7"));
}

TEST_CASE("Copies of the base's weights, which PEFT adds where lm_head is a target, must be the base's own") {
  const auto with_copy = [](const std::string& key, std::size_t index, float more, Dtype dtype) {
    return refusal(
        [&](Tensors& all, nlohmann::json&) {
          const Model model(2, dtype);
          const Parameter& of = model.parameters()[index];
          std::vector<float> values(static_cast<std::size_t>(of.count()));
          to_floats({of.data, of.bytes()}, dtype, values);
          values.back() += more;
          all[key] = floats(of.shape, values);
        },
        two, dtype);
  };
  const std::string layer = "base_model.model.a.q_proj.base_layer.weight",
                    words = "base_model.model.words.weight";
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    CHECK(with_copy(layer, 0, 0, dtype).empty());
    CHECK(with_copy(words, 7, 0, dtype).empty());
    CHECK(contains(with_copy(layer, 0, 0.5F, dtype), "is a weight of the base, and other than this model's"));
    CHECK(contains(with_copy(words, 7, 0.5F, dtype), "is a weight of the base, and other than this model's"));
    CHECK(contains(with_copy(words, 0, 0, dtype), "is a weight of the base, and other than this model's"));
  }
}

TEST_CASE("A folder that lacks a file, and a model without adapters, are refused") {
  const TemporaryFolder folder;
  Model model(1);
  const auto said = [&] {
    return dvla_test::message_of<Error>([&] { load_adapters(model, two, folder.path()); });
  };
  CHECK(contains(said(), "adapter_config.json' is missing"));
  dvla_test::write_text(folder / adapter_config_name, R"({"peft_type": "LORA", )");
  CHECK(contains(said(), "is no JSON object"));
  export_adapters(model, two, folder.path());
  std::filesystem::remove(folder / adapter_weights_name);
  CHECK(contains(said(), "adapter_model.safetensors"));
  CHECK(contains(dvla_test::message_of<ConfigError>(
                     [&] { export_adapters(detail::SomeParameters{}, two, folder.path()); }),
                 "the model has no adapters to write"));
}
