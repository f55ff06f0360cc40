// Where fields lie and models compute: on the CPU, or on a GPU if the program was built with CUDA and the machine
// has one. Only the names; what a program can do, and the one sentence that refuses: memory/cuda_form.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

enum class Device : std::uint8_t { cpu, cuda };
template <>
inline constexpr auto enum_names<Device> = std::to_array<std::string_view>({"cpu", "cuda"});

}  // namespace dvla
