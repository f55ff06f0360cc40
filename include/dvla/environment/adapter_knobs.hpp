// What chooses the adapter between a model's units and an environment's. Members of RunKnobs, since it belongs to
// the pair and to neither.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// Which of a data set's statistics are -1 and 1 of the model, or 0 and a standard deviation from it. `stored`: those that the file
/// says, as lerobot's do; quantiles where it does not say.
enum class ActionForm : std::uint8_t { stored, quantiles, min_max, mean_std };
template <>
inline constexpr auto enum_names<ActionForm> = std::to_array<std::string_view>({"stored", "quantiles",
                                                                                "min_max", "mean_std"});

/// In the place of a file: no statistics, although the model's checkpoint may have some.
inline constexpr std::string_view no_statistics = "bounds";

/// The model's last dimension: taken as it is, or from [0, 1] onto [-1, 1], or onto -1 and 1 alone.
enum class Gripper : std::uint8_t { as_is, unit, binary };
template <>
inline constexpr auto enum_names<Gripper> = std::to_array<std::string_view>({"as_is", "unit", "binary"});

struct AdapterKnobs {
  std::string
      action_statistics;   ///< file or folder; empty: the model's checkpoint's, or the environment's bounds
  std::string action_key;  ///< data set in it; empty: the only one
  ActionForm action_form = ActionForm::stored;
  std::string
      action_order;  ///< the model's dimension for each of the environment's, as 0,1,-2; empty: as they come
  Gripper action_gripper = Gripper::as_is;
  bool state_statistics = true;  ///< proprioception is normalised by the same file
};

template <>
inline constexpr auto knob_docs<AdapterKnobs> = std::to_array<KnobDoc>({
    {"action_statistics",
     "statistics of the data that the model was trained on, which turn its actions into the environment's "
     "units: dataset_statistics.json, norm_stats.json, policy_preprocessor.json, or a checkpoint's folder; "
     "bounds = [-1, 1] onto the environment's bounds; empty = the model's checkpoint, or else bounds"},
    {"action_key", "data set in action_statistics; empty = the only one"},
    {"action_form", "which statistics the model was normalised by"},
    {"action_order",
     "the model's dimension for each of the environment's, as 0,1,-2: a minus turns the sign; empty = as "
     "they come"},
    {"action_gripper",
     "the model's last dimension: as it is, from [0, 1] onto [-1, 1], or onto -1 and 1 alone"},
    {"state_statistics", "with action_statistics: proprioception is normalised by the same file"},
});

/// "bounds", or what the statistics are.
inline std::string adapter_name(const AdapterKnobs& knobs) {
  if (knobs.action_statistics.empty() || knobs.action_statistics == no_statistics)
    return std::string(no_statistics);
  std::string name = knobs.action_form == ActionForm::stored ? "statistics" : enum_name(knobs.action_form);
  if (!knobs.action_key.empty()) name += " of " + knobs.action_key;
  name += " in " + knobs.action_statistics;
  if (!knobs.action_order.empty()) name += ", order " + knobs.action_order;
  if (knobs.action_gripper != Gripper::as_is) name += ", gripper " + enum_name(knobs.action_gripper);
  if (!knobs.state_statistics) name += ", proprioception as it is";
  return name;
}

}  // namespace dvla

template <std::same_as<dvla::AdapterKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::action_statistics, &K::action_key, &K::action_form, &K::action_order,
                    &K::action_gripper, &K::state_statistics> {};
