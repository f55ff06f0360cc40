// Where a vision-language-action model has its weights from: a published checkpoint's folder, or nowhere, with toy extents or
// the published ones. Torch-free, as knobs are.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

/// Toy extents, or the published ones.
enum class RandomWeights : std::uint8_t { none, tiny, full };
template <>
inline constexpr auto enum_names<RandomWeights> = std::to_array<std::string_view>({"none", "tiny", "full"});
namespace detail {
/// Throws ConfigError unless exactly one of the two says where the weights come from.
inline void check_source(RandomWeights random, const std::string& checkpoint) {
  if (random == RandomWeights::none && checkpoint.empty())
    throw ConfigError(
        "model.checkpoint is empty and model.random is none; give checkpoint the folder of a published "
        "model, or give random tiny, or full for the published extents");
  if (random != RandomWeights::none && !checkpoint.empty())
    throw ConfigError("model.checkpoint is '", checkpoint, "' and model.random is ", enum_name(random),
                      "; a model has its weights from one of them, so leave the other out");
}
}  // namespace detail

}  // namespace dvla
