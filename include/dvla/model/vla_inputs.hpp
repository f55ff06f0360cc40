// What vision-language-action models have in common before their networks: which of the environment's cameras they see, and
// which of its tasks. What they are told is prompts.hpp's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/model/bf16_instructions.hpp"

namespace dvla::detail {

/// The environment's cameras that `named` lists, in the order of the model's `slots`: as "top,wrist", one for each slot; as
/// "base_0_rgb=top", with the slot of each; or all in their order where it is empty. A model without slots takes any number. Throws
/// ConfigError where there is no camera, where an unknown one or an unknown slot is named or either twice, and where there are too
/// many for the slots.
inline std::vector<std::size_t> chosen_cameras(std::string_view model, const ObservationSpec& spec,
                                               const std::string& named,
                                               std::span<const std::string_view> slots = {}) {
  const auto listed = [](const auto& all, auto name) {
    std::string text;
    for (const auto& each : all) text += (text.empty() ? "" : ", ") + std::string(name(each));
    return text;
  };
  const std::string known = listed(spec.cameras, [](const CameraSpec& camera) { return camera.name; });
  if (spec.cameras.empty())
    throw ConfigError(model, ": the environment gives no camera, and the model needs one");
  const auto refuse = [&](const std::string& what) {
    throw ConfigError("model.cameras ", what, ", and the environment's cameras are ", known,
                      slots.empty() ? "" : "; the slots of ", slots.empty() ? "" : model,
                      slots.empty() ? "" : " are ", listed(slots, [](auto slot) { return slot; }));
  };
  if (named.empty()) {
    if (!slots.empty() && spec.cameras.size() > slots.size())
      throw ConfigError(model, " takes ", slots.size(), " cameras, and ", spec.cameras.size(), " are given (",
                        known, "); choose with model.cameras");
    std::vector<std::size_t> all(spec.cameras.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    return all;
  }
  std::map<std::size_t, std::size_t> in_slot;
  std::set<std::size_t> seen;
  std::istringstream list(named);
  const bool by_slot = named.find('=') != named.npos;
  for (std::string name; std::getline(list, name, ',');) {
    std::size_t slot = in_slot.size();
    if (by_slot) {
      const std::size_t equals = std::min(name.find('='), name.size());
      if (equals == name.size()) refuse("gives '" + name + "' no slot, and others one");
      const auto found = std::ranges::find(slots, std::string_view(name).substr(0, equals));
      if (found == slots.end()) refuse("names the slot '" + name.substr(0, equals) + "'");
      slot = static_cast<std::size_t>(found - slots.begin());
      name.erase(0, equals + 1);
      if (in_slot.contains(slot)) refuse("fills the slot '" + std::string(*found) + "' twice");
    } else if (!slots.empty() && slot == slots.size()) {
      refuse("names more than " + std::to_string(slots.size()));
    }
    const auto found = std::ranges::find(spec.cameras, name, &CameraSpec::name);
    if (found == spec.cameras.end()) refuse("names '" + name + "'");
    const auto camera = static_cast<std::size_t>(found - spec.cameras.begin());
    if (!seen.insert(camera).second) refuse("names '" + name + "' twice");
    in_slot.emplace(slot, camera);
  }
  std::vector<std::size_t> chosen;
  for (const auto& [slot, camera] : in_slot) chosen.push_back(camera);
  return chosen;
}

/// A row's instruction, one of `tasks`; else an Error, which `model` begins.
inline std::int32_t task_of(std::string_view model, const Observation& observation, std::int64_t row,
                            std::int64_t tasks) {
  const std::int32_t task = observation.instruction[row];
  if (task < 0 || task >= tasks)
    throw Error(std::string(model), ": row ", row, " has instruction ", task,
                ", but the environment's table has ", tasks);
  return task;
}

/// Bytes that a camera's frames, [3, H, W] of float32 and once more, take a row while they are resized: of the largest one's.
inline std::size_t resizing_bytes(const ObservationSpec& spec, const std::vector<std::size_t>& cameras) {
  std::size_t largest = 0;
  for (const std::size_t camera : cameras) {
    const CameraSpec& of = spec.cameras[camera];
    largest = std::max(
        largest, std::size_t{3} * static_cast<std::size_t>(of.height) * static_cast<std::size_t>(of.width));
  }
  return 2 * largest * sizeof(float);
}
/// Bytes of a matrix in float32 beside itself, where products of bfloat16 are made so (model/linear.hpp).
inline std::size_t widened_bytes(Dtype dtype, std::int64_t numbers) {
  return dtype == Dtype::f32 || bf16_instructions() != "none"
             ? 0
             : static_cast<std::size_t>(numbers) * sizeof(float);
}

}  // namespace dvla::detail
