// The precisions that a model's parameters are kept and computed in. Values only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// In which precision a parameter is kept and computed with.
enum class Dtype : std::uint8_t { f32, bf16, f16 };
template <>
inline constexpr auto enum_names<Dtype> = std::to_array<std::string_view>({"f32", "bf16", "f16"});

constexpr std::size_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace dvla
