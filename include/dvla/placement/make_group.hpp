// The actors' groups, by what run.collectives says: the job's own, or NCCL's, seen from code without CUDA.
#pragma once

#include "dvla/placement/cluster.hpp"
#include "dvla/placement/collectives.hpp"

namespace dvla {

/// As cluster.group(name, members, limit). One member needs nobody.
inline std::unique_ptr<Group> make_group(Collectives collectives, Cluster& cluster, const std::string& name,
                                         const std::vector<int>& members, std::chrono::nanoseconds limit) {
  if (collectives == Collectives::gloo || members.size() == 1) return cluster.group(name, members, limit);
  check_collectives(collectives, Device::cuda);
  return make_nccl_group.load()(cluster, name, members, limit);
}

}  // namespace dvla
