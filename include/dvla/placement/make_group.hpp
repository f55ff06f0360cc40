// The actors' groups, by what run.collectives says: the job's own, or NCCL's, seen from code without CUDA; and the
// sentences that refuse NCCL where it cannot be: without it in the program, or without GPUs.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/placement/collectives.hpp"

namespace dvla {

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

/// As cluster.group(name, members, limit). One member needs nobody.
inline std::unique_ptr<Group> make_group(Collectives collectives, Cluster& cluster, const std::string& name,
                                         const std::vector<int>& members, std::chrono::nanoseconds limit) {
  if (collectives == Collectives::gloo || members.size() == 1) return cluster.group(name, members, limit);
  check_collectives(collectives, Device::cuda);
  return make_nccl_group.load()(cluster, name, members, limit);
}

}  // namespace dvla
