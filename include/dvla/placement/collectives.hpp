// What carries the actors' collectives, which sum gradients and gather parameters: the job's own groups
// (Gloo, between processes) or NCCL, from GPU to GPU. Design: "The two planes". Only the choice, and the
// sentences that refuse it: placement/nccl_group.hpp is what a program includes to have NCCL. No torch, no
// CUDA.
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
#include "dvla/core/knobs.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

enum class Collectives : std::uint8_t { gloo, nccl };
template <>
inline constexpr auto enum_names<Collectives> = std::to_array<std::string_view>({"gloo", "nccl"});

/// A group as Cluster::group makes it, on NCCL; of several members.
using NcclForm = std::unique_ptr<Group> (*)(Cluster&, const std::string& name,
                                            const std::vector<int>& members, std::chrono::nanoseconds limit);
/// nullptr: the program was built without NCCL.
inline std::atomic<NcclForm> nccl_form{nullptr};

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

/// As cluster.group(name, members, limit). One member needs nobody.
inline std::unique_ptr<Group> make_group(Collectives collectives, Cluster& cluster, const std::string& name,
                                         const std::vector<int>& members, std::chrono::nanoseconds limit) {
  if (collectives == Collectives::gloo || members.size() == 1) return cluster.group(name, members, limit);
  check_collectives(collectives, Device::cuda);
  return nccl_form.load()(cluster, name, members, limit);
}

}  // namespace dvla
