// Adapters in PEFT's form: a folder with adapter_model.safetensors, an A and a B for each layer, and adapter_config.json (LoraConfig
// of PEFT 0.21). Of whatever has parameters() with adapters among them, a model or dvla::Parameters. What PEFT can
// and these adapters cannot (DoRA, rsLoRA, a rank of a layer's own, biases, modules saved whole) is refused by name. Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/json.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/weight_files.hpp"

namespace dvla {

inline constexpr const char* adapter_config_name = "adapter_config.json";
inline constexpr const char* adapter_weights_name = "adapter_model.safetensors";

namespace detail {

/// Parameters that load_weights and weights_to_write take for a model.
struct SomeParameters {
  std::vector<Parameter> all;
  const std::vector<Parameter>& parameters() const { return all; }
};

/// `which`: A or B.
inline std::string adapter_name(const std::string& layer, char which) {
  return std::string(adapter_prefix) + layer + ".lora_" + which + ".weight";
}
/// The layer that an adapter's tensor stands beside, and whether it is B; nothing where the name is no such tensor's.
inline std::optional<std::pair<std::string, bool>> adapted_layer(std::string_view name) {
  if (!name.starts_with(adapter_prefix)) return {};
  name.remove_prefix(adapter_prefix.size());
  for (const auto& [end, is_b] : {std::pair(".lora_A.weight", false), std::pair(".lora_B.weight", true)})
    if (name.ends_with(end))
      return std::pair(std::string(name.substr(0, name.size() - std::string_view(end).size())), is_b);
  return {};
}

/// What of adapter_config.json counts here.
class AdapterConfig {
 public:
  /// Throws FormatError, and ConfigError where it says what adapters here do not have.
  explicit AdapterConfig(const std::filesystem::path& folder) : path_(folder / adapter_config_name) {
    std::ifstream in(path_, std::ios::binary);
    if (!in) throw FormatError("'" + path_.string() + "' is missing: a folder of adapters has one");
    json_ = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
    if (!json_.is_object()) throw FormatError("'" + path_.string() + "' is no JSON object");
    if (field("peft_type") != "LORA") refuse("peft_type", "it must be \"LORA\"");
    if (field("bias") != "none" && !field("bias").is_null())
      refuse("bias", "adapters here have no biases; it must be \"none\"");
    for (const char* each :
         {"use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias",
          "fan_in_fan_out", "layer_replication", "trainable_token_indices", "target_parameters", "use_qalora",
          "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"})
      if (const nlohmann::json& value = field(each); !value.empty() && value != false)
        refuse(each, "adapters here do not have that; it must be null, false or empty");
    // The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take what they begin with out of the base's weights.
    if (const nlohmann::json& begins = field("init_lora_weights");
        begins.is_string() && begins != "gaussian" && begins != "orthogonal" && begins != "eva")
      refuse("init_lora_weights",
             "such adapters belong to a base whose weights were changed with them; save them converted to "
             "LoRA's");
    if (!field("r").is_number_integer()) refuse("r", "it must be a whole number");
    if (!field("lora_alpha").is_number()) refuse("lora_alpha", "it must be a number");
    const nlohmann::json& targets = field("target_modules");
    const auto text = [](const nlohmann::json& each) { return each.is_string() && each != ""; };
    if (!text(targets) && !(targets.is_array() && !targets.empty() && std::ranges::all_of(targets, text)))
      refuse("target_modules", "it must be names of layers, or a regular expression");
  }

  /// Throws ConfigError where the model's are of another rank or scale.
  void check(const Adapters& model) const {
    if (field("r") != model.rank)
      refuse("r", "model.lora_rank is " + std::to_string(model.rank) + "; they must be the same");
    if (field("lora_alpha") != model.alpha)
      refuse("lora_alpha", "model.lora_alpha is " + number_text(model.alpha) + "; they must be the same");
  }
  /// As model.lora_targets would say it.
  std::string targets() const {
    const nlohmann::json& targets = field("target_modules");
    if (targets.is_string()) return targets == "all-linear" ? "" : targets.get<std::string>();
    std::string all;
    for (const std::string& name : names()) {
      all += all.empty() ? "" : "|";
      for (const char c : name)
        all += (std::string_view(".[]{}()*+?^$|\\").find(c) == std::string_view::npos ? "" : "\\") +
               std::string(1, c);
    }
    return R"((.*\.)?()" + all + ")";
  }
  /// Throws ConfigError unless target_modules means each of these layers, which the file has, and each name that means one of `known`, the
  /// model's, means one of them. (RLinf lists names for OpenVLA-OFT that no layer of it has, which PEFT passes over.)
  void check_targets(const std::vector<std::string>& layers, const std::vector<std::string>& known) const {
    const auto unnamed = [&](const std::string& layer) {
      refuse("target_modules", "it does not name " + layer + ", beside which the file has an adapter");
    };
    if (field("target_modules").is_string()) {
      try {
        const std::regex target(targets().empty() ? ".*" : targets());
        for (const std::string& layer : layers)
          // The library's matcher goes as deep as a text is long.
          if (layer.size() > 1000 || !std::regex_match(layer, target)) unnamed(layer);
      } catch (const std::regex_error& error) {
        refuse("target_modules", std::string("it is no regular expression here: ") + error.what());
      }
      return;
    }
    const std::vector<std::string> all = names();
    for (const std::string& layer : layers)
      if (std::ranges::none_of(all, [&](const std::string& name) { return means(name, layer); }))
        unnamed(layer);
    for (const std::string& name : all) {
      const auto here = [&](const std::string& layer) { return means(name, layer); };
      if (std::ranges::any_of(known, here) && std::ranges::none_of(layers, here))
        throw ConfigError("'" + path_.string() + "': target_modules has " + io::detail::printable(name) +
                          ", and no layer in " + adapter_weights_name + " has that name");
    }
  }

 private:
  static bool means(const std::string& name, const std::string& layer) {
    return layer == name || layer.ends_with("." + name);
  }
  std::vector<std::string> names() const { return field("target_modules").get<std::vector<std::string>>(); }
  const nlohmann::json& field(const char* name) const {
    static const nlohmann::json none;
    const auto found = json_.find(name);
    return found == json_.end() ? none : *found;
  }
  [[noreturn]] void refuse(const char* name, const std::string& why) const {
    throw ConfigError("'" + path_.string() + "': " + name + " is " + shown(field(name)) + ", and " + why);
  }

  std::filesystem::path path_;
  nlohmann::json json_;
};

/// Throws FormatError, which `where` begins, unless all of a tensor is floating point and finite; whether it is all 0.
inline bool is_zero(const io::TensorView& view, const std::string& where) {
  if (!is_weight_dtype(view.dtype))
    throw FormatError(where + " is " + std::string(io::dtype_name(view.dtype)) +
                      "; weights are read from F32, BF16 and F16");
  bool zero = true;
  for_each_value(view, [&](std::size_t i, float value) {
    zero = zero && value == 0;
    if (!std::isfinite(value))
      throw FormatError(where + " has " + number_text(value) + " at element " + std::to_string(i) +
                        ": it must be finite");
  });
  return zero;
}
/// Whether a frozen parameter has what `view` has, in its own precision.
inline bool has_values(const Parameter& parameter, const io::TensorView& view) {
  if (parameter.trainable || !std::ranges::equal(view.shape, parameter.shape)) return false;
  const std::byte* at = host_data(parameter);
  bool same = true;
  for_each_value(view, [&](std::size_t i, float value) {
    std::array<std::byte, 4> rounded{};
    const std::size_t size = bytes_of(parameter.dtype);
    from_floats(std::span(&value, 1), parameter.dtype, std::span(rounded).first(size));
    same = same && std::memcmp(rounded.data(), at + i * size, size) == 0;
  });
  return same;
}

}  // namespace detail

/// Before all names of layers in files of lerobot's policies, whose networks are a member of that name.
inline constexpr const char* lerobot_prefix = "model.";

/// What stands before `name`, one of a model's, in a public file of the model.
inline std::string leading(const io::SafetensorsFile& file, const std::string& name) {
  return file.contains(detail::stored_name(file, name)) ? "" : lerobot_prefix;
}

namespace detail {
/// The parameters that load_adapters gives values, under the file's names. Throws as it does; of parameters that have
/// no memory yet values are not compared.
inline SomeParameters adapters_in(const io::SafetensorsFile& file, const AdapterConfig& config,
                                  const std::vector<Parameter>& parameters) {
  const std::string where = "'" + file.path().string() + "': ";
  const auto refuse = [&](const std::string& what) { throw ConfigError(where + what); };

  std::map<std::string, const Parameter*> mine;
  for (const Parameter& each : parameters) mine[each.name] = &each;
  std::vector<std::string> layers, copies;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(adapter_prefix))
      refuse("tensor " + io::detail::printable(name) + " has no " + std::string(adapter_prefix) +
             " before its name");
    const auto layer = adapted_layer(name);
    if (!layer)
      copies.push_back(name);
    else if (!layer->second)
      layers.push_back(layer->first);
    if (!layer) continue;
    const std::string other = adapter_name(layer->first, layer->second ? 'A' : 'B');
    if (!file.contains(other))
      refuse("tensor " + io::detail::printable(name) + " is there, and " + io::detail::printable(other) +
             " is not");
  }
  if (layers.empty()) refuse("it has no adapter");
  const auto has = [&](const std::string& layer) { return mine.contains(layer + ".weight"); };
  const auto leads = [&](const std::string& layer) {
    return layer.starts_with(lerobot_prefix) && !has(layer) &&
           has(layer.substr(std::string_view(lerobot_prefix).size()));
  };
  const std::string lead = std::ranges::all_of(layers, leads) ? lerobot_prefix : "";
  constexpr std::string_view weight = ".weight";
  std::vector<std::string> known;
  for (const Parameter& each : parameters)
    if (!each.trainable && each.name.ends_with(weight))
      known.push_back(lead + each.name.substr(0, each.name.size() - weight.size()));
  config.check_targets(layers, known);

  for (const std::string& name : copies) {  // <layer>.base_layer.weight, or an embedding under its own name
    std::string own = name.substr(adapter_prefix.size());
    if (own.starts_with(lead)) own.erase(0, lead.size());
    if (const auto at = own.rfind(".base_layer."); at != std::string::npos)
      own.erase(at, std::string_view(".base_layer").size());
    const auto found = mine.find(own);
    if (found == mine.end())
      refuse("tensor " + io::detail::printable(name) + " is neither lora_A nor lora_B of a linear layer");
    const io::TensorView view = file.tensor(name);
    (void)is_zero(view, where + "tensor " + name);
    if (found->second->data != nullptr && !has_values(*found->second, view))
      refuse("tensor " + io::detail::printable(name) +
             " is a weight of the base, and other than this model's");
  }
  SomeParameters taken;
  for (const Parameter& each : parameters) {
    const auto layer = adapted_layer(each.name);
    if (!layer) continue;
    taken.all.push_back(each);
    taken.all.back().name.insert(adapter_prefix.size(), lead);
    if (!file.contains(taken.all.back().name))
      refuse("it has no adapter for " + layer->first +
             ", beside which the model has one; model.lora_targets "
             "must match the " +
             std::to_string(layers.size()) + " layers that it has adapters for, " +
             one_line(config.targets(), 400));
  }
  for (const std::string& layer : layers) {
    const std::string own = layer.starts_with(lead) ? layer.substr(lead.size()) : layer;
    if (mine.contains(adapter_name(own, 'A'))) continue;
    if (!has(own)) refuse("it has an adapter for " + layer + ", and this model has no such layer");
    for (const char which : {'A', 'B'}) {
      const std::string name = adapter_name(layer, which);
      if (!is_zero(file.tensor(name), where + "tensor " + name) && which == 'B')
        refuse(
            "it has an adapter for " + layer +
            " that changes what comes out, and the model has none there; model.lora_targets must match it");
    }
  }
  return taken;
}
}  // namespace detail

/// Gives a model the adapters of `folder`, which `adapters` has rank and alpha of. Every adapter of the model's must be in the
/// file, and each of the file's must be one of the model's, but for those whose B is 0: PEFT has such beside what no pass
/// reads, and they change nothing. Layers may have `model.` before their names, as lerobot's have. Copies of the base's own
/// weights, which PEFT adds where lm_head is a target, must be the model's. Throws ConfigError or FormatError, one
/// sentence, and then leaves the model as it was.
template <class Model>
void load_adapters(Model& model, const Adapters& adapters, const std::filesystem::path& folder) {
  const detail::AdapterConfig config(folder);
  config.check(adapters);
  const io::SafetensorsFile file(folder / adapter_weights_name);
  detail::SomeParameters taken = detail::adapters_in(file, config, model.parameters());
  load_weights(taken, file);
  weights_written(model);
}
/// What of that can be found wrong before a model of these parameters has memory.
inline void check_adapters(const std::vector<Parameter>& parameters, const Adapters& adapters,
                           const std::filesystem::path& folder) {
  const detail::AdapterConfig config(folder);
  config.check(adapters);
  const io::SafetensorsFile file(folder / adapter_weights_name);
  check_weights(detail::adapters_in(file, config, parameters).all, file);
}

/// Writes a model's adapters so that PEFT puts them beside the same layers of the same base: the folder is made if need be, and
/// each file is there whole or not at all. `base`: what the config names as the base. `lead`: lerobot_prefix, or nothing.
/// Returns how many bytes of adapters there are.
template <class Model>
std::size_t export_adapters(const Model& model, const Adapters& adapters, const std::filesystem::path& folder,
                            const std::string& base = {}, const std::string& lead = {}) {
  std::filesystem::create_directories(folder);
  std::vector<io::TensorToWrite> tensors;
  std::vector<std::string> layers;
  std::size_t bytes = 0;
  for (const Parameter& each : model.parameters()) {
    const auto layer = detail::adapted_layer(each.name);
    if (!layer) continue;
    std::string name = each.name;
    tensors.push_back({name.insert(adapter_prefix.size(), lead),
                       detail::file_dtype(each.dtype),
                       each.shape,
                       {detail::host_data(each), each.bytes()}});
    bytes += each.bytes();
    if (!layer->second) layers.push_back(lead + layer->first);
  }
  if (tensors.empty()) throw ConfigError("the model has no adapters to write");
  const bool whole = adapters.alpha == std::floor(adapters.alpha);
  const nlohmann::ordered_json config = {
      {"peft_type", "LORA"},
      {"task_type", nullptr},
      {"base_model_name_or_path", base.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(base)},
      {"inference_mode", true},
      {"r", adapters.rank},
      {"lora_alpha", whole ? nlohmann::ordered_json(static_cast<std::int64_t>(adapters.alpha))
                           : nlohmann::ordered_json(adapters.alpha)},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"use_rslora", false},
      {"use_dora", false},
      {"fan_in_fan_out", false},
      {"init_lora_weights", true},
      {"modules_to_save", nullptr},
      {"rank_pattern", nlohmann::ordered_json::object()},
      {"alpha_pattern", nlohmann::ordered_json::object()},
      {"target_modules", layers},  // by their whole names: what no pass reads is not among them
  };
  io::AtomicFile text(folder / adapter_config_name);
  text.write(config.dump(2) + "\n");
  io::write_safetensors(folder / adapter_weights_name, tensors, {{"format", "pt"}},
                        std::numeric_limits<std::uint64_t>::max());  // PEFT reads one file
  text.commit();
  return bytes;
}

}  // namespace dvla
