// ManiSkill: its tasks (SAPIEN, PhysX) in Python (environment/python/batch.hpp: worker processes, or embedded), one environment a
// row; or with PhysX on a GPU all rows in one (sim_backend), whose observations cross the host. `scripts/setup maniskill`
// makes an interpreter that has it, and a Vulkan driver, which it wants even for states. Paper: the simulator of all figures.
#pragma once

#include <memory_resource>

#include "dvla/environment/descriptors.hpp"
#include "dvla/environment/python/batch.hpp"

namespace dvla {

/// Thread-safety and errors as PythonBatch says. Unless ManiSkillKnobs::fast_reset, an episode depends on its seed
/// alone: each reset builds the scene anew, since contacts survive ManiSkill's plain one.
class ManiSkillEnvironment : public PythonBatch {
 public:
  /// `pool` must outlive this.
  ManiSkillEnvironment(const ManiSkillKnobs& knobs, std::pmr::memory_resource& pool)
      : PythonBatch("maniskill", knobs, pool) {}
};

template <class Pipeline>
struct machinery<ManiSkill, Pipeline> {
  using type = ManiSkillEnvironment;
};

}  // namespace dvla
