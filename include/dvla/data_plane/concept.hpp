// What a type needs to fill the data-plane slot. Checked when a pipeline is composed.
#pragma once

#include "dvla/core/machinery.hpp"

namespace dvla {

/// Optional: `spans_processes`; without it both roles must be in one process.
template <class Type>
concept DataPlanePolicy = NamedPolicyFor<Type, data_plane_slot>;

}  // namespace dvla
