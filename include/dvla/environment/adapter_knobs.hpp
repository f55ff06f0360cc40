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
