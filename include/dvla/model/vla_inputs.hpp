// What vision-language-action models have in common before their networks: which of the environment's cameras they see, and
// which of its tasks. What they are told is prompts.hpp's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/model/bf16_instructions.hpp"

namespace dvla::detail {

/// The environment's cameras that `named` lists, as "top,wrist", or all in their order where it is empty. Throws ConfigError,
/// which `model` begins, where there is none, an unknown one is named, or there are more than `most`.
inline std::vector<std::size_t> chosen_cameras(std::string_view model, const ObservationSpec& spec,
                                               const std::string& named,
                                               std::size_t most = std::numeric_limits<std::size_t>::max()) {
  std::string known;
  for (const CameraSpec& camera : spec.cameras) known += (known.empty() ? "" : ", ") + camera.name;
  if (spec.cameras.empty())
    throw ConfigError(model, ": the environment gives no camera, and the model needs one");
  std::vector<std::size_t> chosen;
  if (named.empty()) {
    for (std::size_t i = 0; i < spec.cameras.size(); ++i) chosen.push_back(i);
  } else {
    std::istringstream list(named);
    for (std::string name; std::getline(list, name, ',');) {
      const auto found = std::ranges::find(spec.cameras, name, &CameraSpec::name);
      if (found == spec.cameras.end())
        throw ConfigError("model.cameras names '", name, "', and the environment's cameras are ", known);
      chosen.push_back(static_cast<std::size_t>(found - spec.cameras.begin()));
      if (std::ranges::count(chosen, chosen.back()) > 1)
        throw ConfigError("model.cameras names '", name, "' twice");
    }
  }
  if (chosen.size() > most)
    throw ConfigError(model, " takes ", most, " cameras, and ", chosen.size(), " are given (", known,
                      "); choose with model.cameras");
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
