// What carries the actors' collectives, which sum gradients and gather parameters: the job's own groups
// (Gloo, between processes) or NCCL, from GPU to GPU. Design: "The two planes". The choice, and the sentences
// that refuse NCCL where it cannot be: without it in the program, or without GPUs. No torch, no CUDA; cheap to
// include.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

enum class Collectives : std::uint8_t { gloo, nccl };
template <>
inline constexpr auto enum_names<Collectives> = std::to_array<std::string_view>({"gloo", "nccl"});

class Cluster;
class Group;
/// Makes a group of several members as Cluster::group does. nullptr: the program was built without NCCL
/// (placement/nccl_group.hpp).
using GroupMaker = std::unique_ptr<Group> (*)(Cluster& cluster, const std::string& name,
                                              const std::vector<int>& members,
                                              std::chrono::nanoseconds limit);
inline std::atomic<GroupMaker> make_nccl_group{nullptr};

/// Throws ConfigError unless this program can do that for models on `device`.
inline void check_collectives(Collectives collectives, Device device) {
  if (collectives == Collectives::gloo) return;
  if (device != Device::cuda)
    throw ConfigError(
        "run.collectives is nccl, which works between GPUs, but models compute on the CPU; choose "
        "memory.device cuda, or gloo");
  if (make_nccl_group.load() == nullptr)
    throw ConfigError(
        "run.collectives is nccl, but this program was built without NCCL; include "
        "dvla/placement/nccl_group.hpp where there is an nccl.h, or choose gloo");
}

}  // namespace dvla
