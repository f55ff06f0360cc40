// Where fields lie and models compute: on the CPU, or on a GPU if the program was built with CUDA and the machine
// has one. Only the names; what a program can do, and the one sentence that refuses: memory/cuda_form.hpp.
#pragma once

#include <cstdint>

namespace dvla {

enum class Device : std::uint8_t { cpu, cuda };
constexpr const char* device_name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

}  // namespace dvla
