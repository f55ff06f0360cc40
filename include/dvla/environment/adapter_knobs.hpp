// What chooses the adapter between a model's units and an environment's. Members of RunKnobs, since it belongs to
// the pair and to neither.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// Which of a data set's statistics are -1 and 1 of the model, or 0 and a standard deviation from it.
enum class ActionForm : std::uint8_t { quantiles, min_max, mean_std };
template <>
inline constexpr auto enum_names<ActionForm> = std::to_array<std::string_view>({"quantiles", "min_max",
                                                                                "mean_std"});

/// The model's last dimension: taken as it is, or from [0, 1] onto [-1, 1], or onto -1 and 1 alone.
enum class Gripper : std::uint8_t { as_is, unit, binary };
template <>
inline constexpr auto enum_names<Gripper> = std::to_array<std::string_view>({"as_is", "unit", "binary"});

struct AdapterKnobs {
  std::string action_statistics;  ///< file; empty: the environment's bounds
  std::string action_key;         ///< data set in it; empty: the only one
  ActionForm action_form = ActionForm::quantiles;
  std::string
      action_order;  ///< the model's dimension for each of the environment's, as 0,1,-2; empty: as they come
  Gripper action_gripper = Gripper::as_is;
  bool state_statistics = true;  ///< proprioception is normalised by the same file
};

template <>
inline constexpr auto knob_docs<AdapterKnobs> = std::to_array<KnobDoc>({
    {"action_statistics",
     "dataset_statistics.json or norm_stats.json of the data that the model was trained on, which turns its "
     "actions into the environment's units; empty = [-1, 1] onto the environment's bounds"},
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
  if (knobs.action_statistics.empty()) return "bounds";
  std::string name = enum_name(knobs.action_form);
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
