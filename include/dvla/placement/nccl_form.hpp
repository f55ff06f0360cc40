// The actors' groups, by what run.collectives says: the job's own, or NCCL's, seen from code without CUDA.
// The groups on NCCL themselves: nccl_group.hpp.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dvla/placement/check_collectives.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/placement/collectives.hpp"

namespace dvla {

/// What a program that was built with NCCL can do.
class NcclForm {
 public:
  /// A group of several members as Cluster::group makes it.
  virtual std::unique_ptr<Group> group(Cluster& cluster, const std::string& name,
                                       const std::vector<int>& members, std::chrono::nanoseconds limit) = 0;

 protected:
  ~NcclForm() = default;
};

/// As cluster.group(name, members, limit). One member needs nobody.
inline std::unique_ptr<Group> make_group(Collectives collectives, Cluster& cluster, const std::string& name,
                                         const std::vector<int>& members, std::chrono::nanoseconds limit) {
  if (collectives == Collectives::gloo || members.size() == 1) return cluster.group(name, members, limit);
  check_collectives(collectives, Device::cuda);
  return nccl_form.load()->group(cluster, name, members, limit);
}

}  // namespace dvla
