// What carries the actors' collectives, which sum gradients and gather parameters: the job's own groups
// (Gloo, between processes) or NCCL, from GPU to GPU. Design: "The two planes". Only the choice, and the
// sentences that refuse it: who makes the groups is nccl_form.hpp. No torch, no CUDA, and cheap to include.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

#include "dvla/core/device.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

enum class Collectives : std::uint8_t { gloo, nccl };
template <>
inline constexpr auto enum_names<Collectives> = std::to_array<std::string_view>({"gloo", "nccl"});

class NcclForm;
/// nullptr: the program was built without NCCL (placement/nccl_group.hpp).
inline std::atomic<NcclForm*> nccl_form{nullptr};

/// Throws ConfigError unless this program can do that for models on `device`.
inline void check_collectives(Collectives collectives, Device device) {
  if (collectives == Collectives::gloo) return;
  if (device != Device::cuda)
    throw ConfigError(
        "run.collectives is nccl, which works between GPUs, but models compute on the CPU; choose "
        "memory.device cuda, or gloo");
  if (nccl_form.load() == nullptr)
    throw ConfigError(
        "run.collectives is nccl, but this program was built without NCCL; include "
        "dvla/placement/nccl_group.hpp where there is an nccl.h, or choose gloo");
}

}  // namespace dvla
