// The adapter of a model that was trained on normalised data: statistics of the data set, dimension by dimension,
// as its checkpoint ships them. Three files are known: OpenVLA's dataset_statistics.json (also the "norm_stats" of
// its config.json; OpenVLA-OFT's arithmetic, which leaves masked dimensions alone and keeps proprioception in
// [-1, 1]), openpi's norm_stats.json (pi0, pi0.5), and lerobot's policy_preprocessor.json with the safetensors that it names.
// A checkpoint's folder has one of them; openpi's lie in it as assets/<id>/norm_stats.json, RLinf's as <id>/norm_stats.json,
// where the id is the key. Dear to compile
// (nlohmann). No other conventions; not the buffers that lerobot once kept among the weights.
//
// Legend: A action dimensions, P proprioception.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/adapter.hpp"
#include "dvla/environment/adapter_knobs.hpp"
#include "dvla/io/safetensors.hpp"

namespace dvla {

namespace detail {

/// One adapter being read; `path` is what errors begin with.
class ActionStatistics {
 public:
  ActionStatistics(const AdapterKnobs& knobs, const ObservationSpec& shows, const ActionSpec& takes)
      : knobs_(knobs), path_(knobs.action_statistics), shows_(shows), takes_(takes) {}

  Adapter read() {
    const nlohmann::json all = found();
    const bool alone = writer_ == Writer::lerobot || (all.is_object() && all.contains("actions"));
    const nlohmann::json& chosen = alone ? all : by_key(all);
    const bool openpi = chosen.is_object() && chosen.contains("actions");
    if (openpi) writer_ = Writer::openpi;

    const std::vector<Axis> axes = read_axes();
    std::vector<Unit> units =
        units_of(chosen, openpi ? "actions" : "action", takes_.dimensions, "actions", &takes_);
    if (knobs_.action_gripper != Gripper::as_is) {
      Unit& gripper = units.back();
      gripper = {2 * gripper.scale, 2 * gripper.offset - 1};
    }
    std::vector<AdaptedAction> action;
    for (std::int64_t a = 0; a < takes_.dimensions; ++a) {
      const auto [from, sign] = axes[static_cast<std::size_t>(a)];
      AdaptedAction each = Adapter::within_bounds(takes_, a);
      if (each.category && (from != a || sign < 0))
        refuse("dimension " + std::to_string(a) +
               " of the environment's actions is one of categories, which pass through unchanged, and "
               "run.action_order moves it");
      const Unit unit = units[static_cast<std::size_t>(from)];
      each.from = from;
      each.number.scale = sign * unit.scale;
      each.number.offset = sign * unit.offset;
      each.binary = knobs_.action_gripper == Gripper::binary && from + 1 == takes_.dimensions;
      action.push_back(each);
    }
    std::vector<AdaptedNumber> proprioception;
    if (knobs_.state_statistics && shows_.proprioception > 0) {
      const double most = writer_ == Writer::openvla ? 1 : std::numeric_limits<double>::infinity();
      const char* const state = writer_ == Writer::openvla ? "proprio"
                                : openpi                   ? "state"
                                                           : "observation.state";
      for (const Unit& unit :
           units_of(chosen, state, shows_.proprioception,
                    "proprioception (run.state_statistics false leaves it as it is)", nullptr))
        proprioception.push_back({1 / unit.scale, -unit.offset / unit.scale, -most, most});
    }
    return {adapter_name(knobs_), std::move(action), std::move(proprioception), std::move(warnings_)};
  }

 private:
  /// The data set's unit = scale * the model's + offset.
  struct Unit {
    double scale = 1, offset = 0;
  };
  struct Axis {
    std::int64_t from;
    int sign;
  };
  enum class Writer { openvla, openpi, lerobot };

  [[noreturn]] void refuse(const std::string& why) const {
    throw ConfigError("run.action_statistics is '" + path_ + "': " + why);
  }

  /// What the file or the folder has: one data set's statistics, or several by their keys.
  nlohmann::json found() {
    const std::filesystem::path path = path_;
    std::error_code code;
    if (!std::filesystem::is_directory(path, code)) return data_sets(path);
    if (std::filesystem::exists(path / "policy_preprocessor.json", code))
      return data_sets(path / "policy_preprocessor.json");
    if (std::filesystem::exists(path / "dataset_statistics.json", code))
      return data_sets(path / "dataset_statistics.json");
    if (std::filesystem::exists(path / "config.json", code))
      if (const nlohmann::json config = parsed(path / "config.json"); config.contains("norm_stats"))
        return config["norm_stats"];
    nlohmann::json all = nlohmann::json::object();
    for (const auto& assets : {path / "assets", path})  // RLinf's folders have no "assets" before the id
      if (all.empty()) {
        std::filesystem::recursive_directory_iterator entry(
            assets, std::filesystem::directory_options::skip_permission_denied, code);
        for (; !code && entry != std::filesystem::recursive_directory_iterator(); entry.increment(code)) {
          if (entry.depth() >= 2) entry.disable_recursion_pending();  // an id is <owner>/<name> at most
          if (entry->path().filename() == "norm_stats.json")
            all[entry->path().parent_path().lexically_relative(assets).generic_string()] =
                data_sets(entry->path());
        }
      }
    if (all.empty())
      refuse(
          "the folder has no statistics, which would be policy_preprocessor.json, dataset_statistics.json, "
          "norm_stats in "
          "config.json, or assets/<id>/norm_stats.json, or that without assets; name a file of them, or "
          "bounds for the environment's "
          "own units");
    return all;
  }
  nlohmann::json parsed(const std::filesystem::path& path) const {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse("'" + path.string() + "' cannot be read");
    nlohmann::json all = nlohmann::json::parse(file, nullptr, false);
    if (!all.is_object()) refuse("'" + path.string() + "' is no JSON object, or holds NaN");
    return all;
  }
  nlohmann::json data_sets(const std::filesystem::path& path) {
    const nlohmann::json all = parsed(path);
    if (all.contains("steps")) return lerobot(all["steps"], path.parent_path());
    return all.contains("norm_stats") ? all["norm_stats"] : all;
  }
  /// The statistics of lerobot's normaliser, as lists by feature and name, and which of them it takes.
  nlohmann::json lerobot(const nlohmann::json& steps, const std::filesystem::path& folder) {
    writer_ = Writer::lerobot;
    for (const nlohmann::json& step : steps) {
      if (!step.is_object() || step.value("registry_name", nlohmann::json()) != "normalizer_processor")
        continue;
      const nlohmann::json config = step.value("config", nlohmann::json::object());
      if (!config.is_object() || !step.contains("state_file") || !step["state_file"].is_string())
        refuse("its normaliser names no state_file with statistics; name a file of them, or bounds");
      form_of_ = config.value("norm_map", nlohmann::json::object());
      const auto name = step["state_file"].get<std::string>();
      if (std::filesystem::path(name).filename() != name)
        refuse("its normaliser has the state_file " + io::detail::printable(name) +
               ", which is none of its folder");
      const io::SafetensorsFile file(folder / name);
      nlohmann::json all = nlohmann::json::object();
      for (const std::string& tensor : file.names()) {
        const io::TensorView view = file.tensor(tensor);
        const std::size_t dot = tensor.rfind('.');
        if (dot == tensor.npos || view.dtype != io::Dtype::F32 || view.shape.size() != 1) continue;
        nlohmann::json& list = all[tensor.substr(0, dot)][tensor.substr(dot + 1)];
        for (const float value : file.span<float>(tensor)) list.push_back(value);
      }
      return all;
    }
    refuse("none of its steps is a normaliser (normalizer_processor)");
  }
  /// The names of a feature's two lists; none: it is not normalised.
  std::array<std::string, 2> lists_of(const std::string& name) const {
    ActionForm form = knobs_.action_form;
    if (form == ActionForm::stored && writer_ == Writer::lerobot) {
      const std::string type = name == "action" ? "ACTION" : "STATE";
      const nlohmann::json said =
          form_of_.is_object() ? form_of_.value(type, nlohmann::json("IDENTITY")) : nlohmann::json();
      if (said == "IDENTITY") return {};
      if (said == "QUANTILE10") return {"q10", "q90"};
      form = said == "QUANTILES"  ? ActionForm::quantiles
             : said == "MIN_MAX"  ? ActionForm::min_max
             : said == "MEAN_STD" ? ActionForm::mean_std
                                  : ActionForm::stored;
      if (form == ActionForm::stored)
        refuse("norm_map." + type + " is " + shown(said) +
               "; it must be IDENTITY, QUANTILES, QUANTILE10, MIN_MAX or MEAN_STD");
    }
    if (form == ActionForm::min_max) return {"min", "max"};
    if (form == ActionForm::mean_std) return {"mean", "std"};
    return {"q01", "q99"};
  }

  const nlohmann::json& by_key(const nlohmann::json& all) const {
    std::string keys;
    if (all.is_object())
      for (const auto& item : all.items()) keys += (keys.empty() ? "" : ", ") + item.key();
    const std::string& key = knobs_.action_key;
    if (key.empty() && all.is_object() && all.size() == 1) return all.front();
    if (!all.is_object() || !all.contains(key))
      refuse((key.empty() ? "run.action_key is empty" : "it has no '" + key + "' (run.action_key)") +
             "; it has " + (keys.empty() ? "no data set" : keys.substr(0, 400)));
    return all[key];
  }

  /// `count` units of one of the objects "action" and "state"; a category (of `action`, if any) has none.
  std::vector<Unit> units_of(const nlohmann::json& chosen, const std::string& name, std::int64_t count,
                             const std::string& of, const ActionSpec* action) {
    const auto [first_name, second_name] = lists_of(name);
    if (first_name.empty()) return std::vector<Unit>(static_cast<std::size_t>(count));
    if (!chosen.is_object() || !chosen.contains(name) || !chosen[name].is_object())
      refuse("it has no statistics '" + name + "' of " + of);
    const nlohmann::json& object = chosen[name];
    std::vector<double> first = numbers(object, name, first_name),
                        second = numbers(object, name, second_name);
    const bool is_spread = second_name == "std";
    const auto width = [&](std::size_t i) { return is_spread ? second[i] : second[i] - first[i]; };
    const auto n = static_cast<std::size_t>(count);
    // openpi fills states and actions up, and its lists with them; it takes of a list what it needs (transforms.py:145).
    while (writer_ == Writer::openpi && first.size() > n && second.size() == first.size() &&
           width(first.size() - 1) == 0)
      first.pop_back(), second.pop_back();
    for (const auto& [list, its] : {std::pair(&first, &first_name), std::pair(&second, &second_name)})
      if (list->size() != n)
        refuse("'" + name + "." + *its + "' has " + std::to_string(list->size()) +
               " numbers, and the environment has " + std::to_string(count) + " dimensions of " + of);
    const nlohmann::json mask = writer_ == Writer::openvla && object.contains("mask")
                                    ? object["mask"]
                                    : nlohmann::json(std::vector<bool>(n, true));
    if (!mask.is_array() || mask.size() != n ||
        std::any_of(mask.begin(), mask.end(), [](const auto& each) { return !each.is_boolean(); }))
      refuse("'" + name + ".mask' is not one of true or false for each of " + std::to_string(count) +
             " dimensions");
    std::vector<Unit> units;
    for (std::size_t i = 0; i < n; ++i) {
      if (!mask[i].get<bool>() ||
          (action != nullptr && action->categories_of(static_cast<std::int64_t>(i)) > 0)) {
        units.emplace_back();
        continue;
      }
      if (width(i) < 0)
        refuse("dimension " + std::to_string(i) + " of '" + name + "' has " + second_name + " " +
               std::to_string(second[i]) +
               (is_spread ? ", which is below 0"
                          : ", which is below " + first_name + " " + std::to_string(first[i])));
      // What each adds so as not to divide by 0; lerobot adds it to ranges only where they have no width.
      const double least = writer_ == Writer::openpi ? 1e-6 : 1e-8,
                   added = writer_ == Writer::lerobot && !is_spread && width(i) > 0 ? 0 : least;
      if (width(i) == 0)
        warnings_.push_back("dimension " + std::to_string(i) + " of '" + name + "' in '" + path_ + "' has " +
                            (is_spread ? second_name + " 0" : first_name + " = " + second_name) +
                            ", so what is not its " + first_name + " is divided by " + number_text(least));
      if (is_spread)
        units.push_back({second[i] + added, first[i]});
      else
        units.push_back({(width(i) + added) / 2, first[i] + (width(i) + added) / 2});
    }
    return units;
  }
  std::vector<double> numbers(const nlohmann::json& object, const std::string& name,
                              const std::string& which) const {
    const std::string here = "'" + name + "." + which + "'";
    if (!object.contains(which) || !object[which].is_array())
      refuse("it has no list " + here + "; run.action_form chooses others");
    std::vector<double> all;
    for (const auto& each : object[which]) {
      if (!each.is_number() || !std::isfinite(each.get<double>()))
        refuse(here + " has something that is no finite number");
      all.push_back(each.get<double>());
    }
    return all;
  }

  /// run.action_order: for each of the environment's dimensions the model's, a minus turning its sign.
  std::vector<Axis> read_axes() const {
    std::vector<Axis> all;
    std::vector<bool> seen(static_cast<std::size_t>(takes_.dimensions));
    const std::string& text = knobs_.action_order;
    for (std::int64_t a = 0; text.empty() && a < takes_.dimensions; ++a) all.push_back({a, 1});
    for (std::size_t begin = 0; !text.empty() && begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      Axis axis{-1, text[begin] == '-' ? -1 : 1};
      const char *const at = text.data() + begin + (axis.sign < 0 ? 1 : 0), *const stop = text.data() + end;
      const auto read = std::from_chars(at, stop, axis.from);
      if (read.ec != std::errc{} || read.ptr != stop || *at == '-' || axis.from < 0 ||
          axis.from >= takes_.dimensions || seen[static_cast<std::size_t>(axis.from)]) {
        all.clear();
        break;
      }
      seen[static_cast<std::size_t>(axis.from)] = true;
      all.push_back(axis);
      begin = end + 1;
    }
    if (std::ssize(all) != takes_.dimensions)
      throw ConfigError("run.action_order is '" + text + "'; it must name each of the " +
                        std::to_string(takes_.dimensions) +
                        " dimensions of an action once, from 0 on, as 0,1,-2: a minus turns the sign");
    return all;
  }

  const AdapterKnobs& knobs_;
  const std::string path_;
  const ObservationSpec& shows_;
  const ActionSpec& takes_;
  Writer writer_ = Writer::openvla;
  nlohmann::json form_of_;  ///< lerobot's norm_map
  std::vector<std::string> warnings_;
};

}  // namespace detail

/// What `knobs` choose for this environment. Throws ConfigError, in one sentence, for whatever is wrong with
/// them or the file: sizes, missing lists, numbers that are not finite, ranges that end before they begin; a range without width
/// is one of the adapter's warnings.
inline Adapter make_adapter(const AdapterKnobs& knobs, const ObservationSpec& shows,
                            const ActionSpec& takes) {
  if (!knobs.action_statistics.empty() && knobs.action_statistics != no_statistics)
    return detail::ActionStatistics(knobs, shows, takes).read();
  if (!knobs.action_key.empty() || !knobs.action_order.empty() || knobs.action_gripper != Gripper::as_is)
    throw ConfigError(
        "run.action_key, run.action_order and run.action_gripper say how statistics are used, and "
        "run.action_statistics names no file");
  return Adapter::bounds(takes);
}

}  // namespace dvla
