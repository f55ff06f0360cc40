// What a type needs to fill the placement slot. Checked when a pipeline is composed.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// Optional: `separates_roles` (some rank has one role only); `has_rollouts`, `has_actors` = false where a
/// role is left out; `adapts` (roles are those of the start, and move: knobs as AdaptiveKnobs).
template <class Type>
concept PlacementPolicy = NamedPolicyFor<Type, placement_slot>;

/// What a job needs of it: who does what, the same on every rank, from the topology alone. Throws ConfigError
/// where the job has no such roles.
template <class Type, class Knobs>
concept PlacementMachinery = requires(const Knobs& knobs, const Topology& topology) {
  { Type::roles(knobs, topology) } -> std::same_as<Roles>;
};

}  // namespace dvla
