// What carries the actors' collectives, which sum gradients and gather parameters: the job's own groups
// (Gloo, between processes) or NCCL, from GPU to GPU. Design: "The two planes". make_group.hpp makes them. No torch, no
// CUDA; cheap to include.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

enum class Collectives : std::uint8_t { gloo, nccl };
template <>
inline constexpr auto enum_names<Collectives> = std::to_array<std::string_view>({"gloo", "nccl"});

}  // namespace dvla
