// describe(): a pipeline as text, one line a slot: the policy, whether it is a default, and its compile-time
// facts.
#pragma once

#include <string>
#include <string_view>

#include "dvla/core/machinery.hpp"
#include "dvla/core/slot.hpp"
#include "dvla/environment/adapter_knobs.hpp"

namespace dvla::detail {

template <class Policy>
constexpr std::string_view policy_name() {
  if constexpr (requires { std::string_view(Policy::name); }) return Policy::name;
  return "(unnamed)";
}

/// The facts that a policy states about itself, comma-separated; empty if none.
template <class Policy>
std::string facts() {
  std::string all;
  const auto add = [&all](const std::string& fact) { all += (all.empty() ? "" : ", ") + fact; };
  if constexpr (requires { Policy::staleness_is_recorded; }) {
    add("staleness as recorded");
  } else if constexpr (requires { Policy::max_staleness; }) {
    add((PolicyFor<Policy, algorithm_slot> ? "allows staleness " : "staleness up to ") +
        std::to_string(Policy::max_staleness));
  }
  if constexpr (needs_values<Policy>) add("needs values");
  if constexpr (has_value_head<Policy>) add("has a value head");
  if constexpr (requires { Policy::zero_copy; }) add(Policy::zero_copy ? "zero copy" : "copies");
  if constexpr (spans_processes<Policy>) add("spans processes");
  if constexpr (separates_roles<Policy>) add("separates roles");
  return all;
}

template <class Pipeline, class... Policies>
std::string describe_lines(list<Policies...>) {
  std::string text;
  const auto line = [&text](std::string_view slot, std::string_view name, bool is_default,
                            const std::string& facts) {
    const auto column = [](std::string cell, std::size_t width) {
      cell.resize(cell.size() < width ? width : cell.size() + 1, ' ');
      return cell;
    };
    const std::string policy = std::string(name) + (is_default ? " (default)" : "");
    text += column(std::string(slot), 15) + (facts.empty() ? policy : column(policy, 38) + facts) + '\n';
  };
  (line(Policies::slot::name, policy_name<Policies>(), Pipeline::template is_default<typename Policies::slot>,
        facts<Policies>()),
   ...);
  return text;
}

template <class Pipeline>
std::string describe() {
  return describe_lines<Pipeline>(typename Pipeline::policies{});
}
/// With what a configuration chooses between model and environment.
template <class Pipeline>
std::string describe(const AdapterKnobs& run) {
  const std::string name = adapter_name(run);
  return describe<Pipeline>() + "adapter        " + name + (name == "bounds" ? " (default)\n" : "\n");
}

}  // namespace dvla::detail
