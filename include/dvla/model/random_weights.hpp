// Which extents a vision-language-action model without a checkpoint has. Torch-free, as knobs are.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// Toy extents, or the published ones.
enum class RandomWeights : std::uint8_t { none, tiny, full };
template <>
inline constexpr auto enum_names<RandomWeights> = std::to_array<std::string_view>({"none", "tiny", "full"});

}  // namespace dvla
