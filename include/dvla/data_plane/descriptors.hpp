// How trajectories travel from rollouts to actors. Descriptors only, no torch. Paper: high-frequency data
// plane, point to point, dynamic groups or all-to-all by the ratio of resources; zero copy when co-located.
#pragma once

#include <string_view>

#include "dvla/core/in_process.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"

namespace dvla {

/// The token is the message: the trainer reads the trajectory where the sampler wrote it. Spelt
/// DataPlane<InProcess>.
struct InProcessData {
  using slot = data_plane_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "InProcess";
  static constexpr bool zero_copy = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: DataPlane<InProcess> is named but its machinery is not included: add #include "
                  "<dvla/data_plane/in_process.hpp>");
  };
};
template <>
struct InProcess::in<data_plane_slot> {
  using type = InProcessData;
};

/// Between processes, point to point by a routing plan: Torch's process groups (Gloo on CPUs), or whatever
/// the job's Cluster is.
struct C10d {
  using slot = data_plane_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "C10d";
  static constexpr bool spans_processes = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: C10d is the data plane but its machinery is not included: add #include "
                  "<dvla/data_plane/routed.hpp>");
  };
};

}  // namespace dvla
