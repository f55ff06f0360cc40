// The adapter of a model that was trained on normalised data: statistics of the data set, dimension by dimension,
// as its checkpoint ships them. Two files are known: OpenVLA's dataset_statistics.json (also the "norm_stats" of
// its config.json; OpenVLA-OFT's arithmetic, which leaves masked dimensions alone and keeps proprioception in
// [-1, 1]), and openpi's norm_stats.json (pi0, pi0.5). Dear to compile (nlohmann). No other conventions.
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
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/environment/adapter.hpp"
#include "dvla/environment/adapter_knobs.hpp"

namespace dvla {

namespace detail {

/// One adapter being read; `path` is what errors begin with.
class ActionStatistics {
 public:
  ActionStatistics(const AdapterKnobs& knobs, const ObservationSpec& shows, const ActionSpec& takes)
      : knobs_(knobs), path_(knobs.action_statistics), shows_(shows), takes_(takes) {}

  Adapter read() {
    std::ifstream file(path_, std::ios::binary);
    if (!file) refuse("it cannot be read");
    file_ = nlohmann::json::parse(file, nullptr, false);
    if (!file_.is_object()) refuse("it is no JSON object, or holds NaN");
    const nlohmann::json& all = file_.contains("norm_stats") ? file_["norm_stats"] : file_;
    openpi_ = all.is_object() && all.contains("actions");
    const nlohmann::json& chosen = openpi_ ? all : by_key(all);

    const std::vector<Axis> axes = read_axes();
    std::vector<Unit> units =
        units_of(chosen, openpi_ ? "actions" : "action", takes_.dimensions, "actions", &takes_);
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
      const double most = openpi_ ? std::numeric_limits<double>::infinity() : 1;
      for (const Unit& unit :
           units_of(chosen, openpi_ ? "state" : "proprio", shows_.proprioception,
                    "proprioception (run.state_statistics false leaves it as it is)", nullptr))
        proprioception.push_back({1 / unit.scale, -unit.offset / unit.scale, -most, most});
    }
    return {adapter_name(knobs_), std::move(action), std::move(proprioception)};
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

  [[noreturn]] void refuse(const std::string& why) const {
    throw ConfigError("run.action_statistics is '" + path_ + "': " + why);
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
                             const std::string& of, const ActionSpec* action) const {
    if (!chosen.is_object() || !chosen.contains(name) || !chosen[name].is_object())
      refuse("it has no statistics '" + name + "' of " + of);
    const nlohmann::json& object = chosen[name];
    static constexpr std::array<std::array<const char*, 2>, 3> names{
        {{"q01", "q99"}, {"min", "max"}, {"mean", "std"}}};
    const auto& [first_name, second_name] = names[static_cast<std::size_t>(knobs_.action_form)];
    const std::vector<double> first = numbers(object, name, first_name, count, of),
                              second = numbers(object, name, second_name, count, of);
    const nlohmann::json mask = !openpi_ && object.contains("mask")
                                    ? object["mask"]
                                    : nlohmann::json(std::vector<bool>(first.size(), true));
    if (!mask.is_array() || mask.size() != first.size() ||
        std::any_of(mask.begin(), mask.end(), [](const auto& each) { return !each.is_boolean(); }))
      refuse("'" + name + ".mask' is not one of true or false for each of " + std::to_string(count) +
             " dimensions");
    const bool is_spread = knobs_.action_form == ActionForm::mean_std;
    const double least = openpi_ ? 1e-6 : 1e-8;  // what both add so as not to divide by 0
    std::vector<Unit> units;
    for (std::size_t i = 0; i < first.size(); ++i) {
      if (!mask[i].get<bool>() ||
          (action != nullptr && action->categories_of(static_cast<std::int64_t>(i)) > 0)) {
        units.emplace_back();
        continue;
      }
      if (is_spread ? second[i] <= 0 : second[i] <= first[i])
        refuse("dimension " + std::to_string(i) + " of '" + name + "' has " + second_name + " " +
               std::to_string(second[i]) +
               (is_spread
                    ? ", which is not above 0"
                    : ", which is not above " + std::string(first_name) + " " + std::to_string(first[i])));
      if (is_spread)
        units.push_back({second[i] + least, first[i]});
      else
        units.push_back({(second[i] - first[i] + least) / 2, first[i] + (second[i] - first[i] + least) / 2});
    }
    return units;
  }
  std::vector<double> numbers(const nlohmann::json& object, const std::string& name, const char* which,
                              std::int64_t count, const std::string& of) const {
    const std::string here = "'" + name + "." + which + "'";
    if (!object.contains(which) || !object[which].is_array())
      refuse("it has no list " + here + "; run.action_form chooses others");
    if (std::ssize(object[which]) != count)
      refuse(here + " has " + std::to_string(object[which].size()) + " numbers, and the environment has " +
             std::to_string(count) + " dimensions of " + of);
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
  nlohmann::json file_;
  bool openpi_ = false;
};

}  // namespace detail

/// What `knobs` choose for this environment. Throws ConfigError, in one sentence, for whatever is wrong with
/// them or the file: sizes, missing lists, numbers that are not finite, ranges without width.
inline Adapter make_adapter(const AdapterKnobs& knobs, const ObservationSpec& shows,
                            const ActionSpec& takes) {
  if (!knobs.action_statistics.empty()) return detail::ActionStatistics(knobs, shows, takes).read();
  if (!knobs.action_key.empty() || !knobs.action_order.empty() || knobs.action_gripper != Gripper::as_is)
    throw ConfigError(
        "run.action_key, run.action_order and run.action_gripper say how statistics are used, and "
        "run.action_statistics names no file");
  return Adapter::bounds(takes);
}

}  // namespace dvla
