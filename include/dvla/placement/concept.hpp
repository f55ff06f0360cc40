// What a type needs to fill the placement slot. Checked when a pipeline is composed.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"

namespace dvla {

/// Optional: `separates_roles` (some rank has one role only); `has_rollouts`, `has_actors` = false where a
/// role is left out.
template <class Type>
concept PlacementPolicy = NamedPolicyFor<Type, placement_slot>;

}  // namespace dvla
