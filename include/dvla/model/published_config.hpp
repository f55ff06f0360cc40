// config.json of a folder with a published model, read field by field: lerobot's (`type`), that of openpi's converter
// (`action_horizon` and no type), Transformers' (`model_type`), and the library's own, an object `dvla` with every extent, which is
// written here too. Which fields count, and what they may say, is each family's to know (model/pi05.hpp and so on). Dear to
// compile (nlohmann). Reads no weights (model/published_weights.hpp does) and no statistics (environment/action_statistics.hpp).
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/text.hpp"

namespace dvla::detail {

class PublishedConfig {
 public:
  /// Throws ConfigError where `folder` is none, or its config.json is no JSON object.
  explicit PublishedConfig(const std::filesystem::path& folder)
      : where_("'" + (folder / "config.json").string() + "'") {
    std::error_code code;
    if (!std::filesystem::is_directory(folder, code))
      throw ConfigError("model.checkpoint is '", folder.string(),
                        "', which is no folder; give the folder of a published model");
    std::ifstream file(folder / "config.json", std::ios::binary);
    if (!file) throw ConfigError(where_, " cannot be read; a published model's folder has one");
    fields_ = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!fields_.is_object()) throw ConfigError(where_, " is no JSON object, or was cut off");
  }

  bool has(const std::string& field) const { return fields_.contains(field); }
  /// A field that is an object of fields, or of none where it is absent.
  PublishedConfig within(const std::string& field) const {
    const nlohmann::json inner = has(field) ? fields_[field] : nlohmann::json::object();
    if (!inner.is_object()) refuse(field, "an object");
    return {inner, where_, before_ + field + "."};
  }
  /// Throws ConfigError where the field is another text, or there is none. `reads`: what of it does.
  void is(const std::string& field, std::string_view said, std::string_view reads) const {
    if (!has(field))
      throw ConfigError(where_, " has no field '", before_, field, "'; ", reads, " reads ", said);
    const std::string found =
        fields_[field].is_string() ? one_line(fields_[field].get<std::string>()) : shown(fields_[field]);
    if (found != said) throw ConfigError(where_, " says ", field, " ", found, "; ", reads, " reads ", said);
  }
  /// Throws ConfigError where `holds` is not so, which is `must`.
  void demand(bool holds, std::string_view must) const {
    if (!holds) throw ConfigError(where_, ": ", must);
  }
  /// Throws ConfigError where the field is there and is none of `values`.
  void supports(const std::string& field, std::initializer_list<nlohmann::json> values) const {
    if (!has(field)) return;
    std::string must;
    for (const nlohmann::json& each : values) {
      if (fields_[field] == each) return;
      must += (must.empty() ? "" : " or ") + each.dump();
    }
    refuse(field, must + ", which is what is supported");
  }
  std::string text(const std::string& field, const std::string& otherwise) const {
    if (!has(field)) return otherwise;
    if (!fields_[field].is_string()) refuse(field, "text");
    return fields_[field].get<std::string>();
  }
  /// A whole number in [least, most]; `otherwise` where it is absent.
  std::int64_t count(const std::string& field, std::int64_t otherwise, std::int64_t least = 1,
                     std::int64_t most = 1 << 20) const {
    if (!has(field)) return otherwise;
    const nlohmann::json& value = fields_[field];
    if (!value.is_number_integer() || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most)
      refuse(field, "a whole number in [" + std::to_string(least) + ", " + std::to_string(most) + "]");
    return value.get<std::int64_t>();
  }
  /// The same of a field that there must be.
  std::int64_t count(const std::string& field) const {
    if (!has(field)) throw ConfigError(where_, " has no field '", before_, field, "'");
    return count(field, 0);
  }
  /// A number in (0, 1e9].
  double number(const std::string& field, double otherwise) const {
    if (!has(field)) return otherwise;
    if (!fields_[field].is_number() || !(fields_[field].get<double>() > 0) ||
        fields_[field].get<double>() > 1e9)
      refuse(field, "a number above 0, at most 1e9");
    return fields_[field].get<double>();
  }
  /// The one number of a list [n, n], pixels a side that are a multiple of `patch`; `otherwise` where it is absent.
  std::int64_t side(const std::string& field, std::int64_t otherwise, std::int64_t patch) const {
    if (!has(field)) return otherwise;
    const nlohmann::json& sides = fields_[field];
    if (!sides.is_array() || sides.size() != 2 || sides[0] != sides[1] || !sides[0].is_number_integer() ||
        sides[0].get<std::int64_t>() < patch || sides[0].get<std::int64_t>() % patch != 0 ||
        sides[0].get<std::int64_t>() > 4096)
      refuse(field, "two equal sides in pixels, a multiple of " + std::to_string(patch) + ", at most 4096");
    return sides[0].get<std::int64_t>();
  }
  /// How many of lerobot's `input_features` are images; 0: it does not say.
  std::int64_t images() const {
    std::int64_t count = 0;
    if (!has("input_features") || !fields_["input_features"].is_object()) return 0;
    for (const auto& item : fields_["input_features"].items())
      count += item.value().is_object() && item.value().value("type", nlohmann::json()) == "VISUAL" ? 1 : 0;
    return count;
  }

  /// What own_config wrote of `model`, if that is what this is.
  template <class Shape>
  bool own(std::string_view model, Shape& shape) const {
    if (!has("dvla")) return false;
    const PublishedConfig own = within("dvla");
    own.is("model", model, "this model");
    try {
      read_json_value(own.fields_.value("shape", nlohmann::json()), {}, shape);
    } catch (const FormatError& error) {
      throw ConfigError(where_, ": dvla.shape: ", error.what());
    }
    check_extents(own.fields_["shape"], "dvla.shape");
    return true;
  }
  /// The way of making pictures that own_config wrote, if it did.
  template <class Way>
  std::optional<Way> own_pictures() const {
    if (!has("dvla")) return {};
    const PublishedConfig own = within("dvla");
    demand(own.has("pictures"), "dvla has no field 'pictures'");
    Way way = Way::checkpoint;
    try {
      read_json_value(own.fields_["pictures"], {}, way);
    } catch (const FormatError& error) {
      throw ConfigError(where_, ": dvla.pictures: ", error.what());
    }
    demand(way != Way::checkpoint, "dvla.pictures is checkpoint, which is no way of making pictures");
    return way;
  }

 private:
  PublishedConfig(nlohmann::json fields, std::string where, std::string before)
      : fields_(std::move(fields)), where_(std::move(where)), before_(std::move(before)) {}

  [[noreturn]] void refuse(const std::string& field, const std::string& must) const {
    const nlohmann::json& value = fields_[field];
    const std::string said = value.is_array() ? value.dump().substr(0, 80) : shown(value);
    throw ConfigError(where_, ": its field '", before_, field, "' is ", said, "; it must be ", must);
  }
  /// Nothing is divided by 0 or grows beyond reason; whether extents fit one another, tensors and their names say.
  void check_extents(const nlohmann::json& of, const std::string& at) const {
    for (const auto& [name, value] : of.items()) {
      if (value.is_object() || value.is_array()) check_extents(value, at + "." + name);
      if (!value.is_number_integer()) continue;
      const bool may_be_none = name == "condition" || name == "state" || name == "unused" ||
                               name == "registers" || name == "joint_every" || name == "stop_token";
      const std::int64_t least = may_be_none ? 0 : 1, most = name == "layers" ? 1024 : 1 << 24;
      if (value.get<std::int64_t>() < least || value.get<std::int64_t>() > most)
        throw ConfigError(where_, ": its field '", at, ".", name, "' is ", shown(value), "; it must be in [",
                          least, ", ", most, "]");
    }
  }

  nlohmann::json fields_;
  std::string where_, before_;
};

/// Whose way of making pictures a model takes, and what of its checkpoint says so; nothing where there is none, or the knob says it.
template <class Way>
struct TakenPictures {
  Way way;
  std::string because{};

  /// For people.
  void add_to(std::vector<std::string>& notes) const {
    if (!because.empty())
      notes.push_back("pictures: the way of " + enum_name(way) + ", because " + because +
                      " (--pictures names another)");
  }
};
/// Way::checkpoint is asked of the folder: of what own_config wrote there, else of `family(config)`, a TakenPictures. With random
/// weights it is `random`.
template <class Way, class Family>
TakenPictures<Way> taken_pictures(Way knob, const std::string& checkpoint, Way random, Family family) {
  if (knob != Way::checkpoint) return {knob};
  if (checkpoint.empty()) return {random};
  const PublishedConfig config(checkpoint);
  if (const auto own = config.own_pictures<Way>()) return {*own, "its config.json says so"};
  return family(config);
}

/// A config.json with all extents of a model and the way its pictures are made, which PublishedConfig reads.
template <class Shape, class Way>
std::string own_config(std::string_view model, const Shape& shape, Way pictures) {
  nlohmann::ordered_json all;
  all["dvla"]["model"] = model;
  all["dvla"]["pictures"] = enum_name(pictures);
  all["dvla"]["shape"] = json_of<nlohmann::ordered_json>(shape);
  return all.dump(2) + "\n";
}

}  // namespace dvla::detail
