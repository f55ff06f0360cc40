// Which rank is a rollout, an actor, or both. Paper: co-located, separated and hybrid placement; ratios 3:1
// and 1:1, adapted. Each is its own machinery: a pure function from the job's topology to its roles. Starts
// no process.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/placement/deal.hpp"
#include "dvla/placement/placement_knobs.hpp"

namespace dvla {

/// Every rank is both: four lanes in one process.
struct CoLocated {
  using slot = placement_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "CoLocated";
  static constexpr bool separates_roles = false;
  static Roles roles(const NoKnobs&, const Topology& topology) {
    detail::refuse_joined(name, topology);
    return {detail::all_ranks(topology), detail::all_ranks(topology)};
  }
};

/// Some ranks roll out, the others train. Without a ratio, knobs say it at run time.
template <int Rollouts = 0, int Actors = 0>
struct Separated {
  static constexpr bool fixed = Rollouts != 0 || Actors != 0;
  using slot = placement_slot;
  using knobs = std::conditional_t<fixed, NoKnobs, SeparatedKnobs>;
  static constexpr std::string_view name = type_name<Separated>;
  static constexpr bool separates_roles = true;
  static consteval bool is_sound() {
    static_assert(
        Rollouts >= 0 && Actors >= 0,
        "dvla: Separated<Rollouts, Actors> needs shares of at least 0: Separated<3, 1>, or Separated<> "
        "to choose at run time");
    return Rollouts >= 0 && Actors >= 0;
  }
  static constexpr bool has_rollouts = Rollouts > 0 || Actors == 0;
  static constexpr bool has_actors = Actors > 0 || Rollouts == 0;
  static Roles roles(const knobs& shares, const Topology& topology) {
    if constexpr (fixed)
      return detail::separate(Rollouts, Actors, std::string(name), topology);
    else
      return detail::separate(shares.rollouts, shares.actors, "placement.rollouts:actors", topology);
  }
};

/// All roll out, some train too.
struct Hybrid {
  using slot = placement_slot;
  using knobs = HybridKnobs;
  static constexpr std::string_view name = "Hybrid";
  static constexpr bool separates_roles = true;
  static Roles roles(const HybridKnobs& shares, const Topology& topology) {
    if (shares.actors < 1 || shares.actors > topology.world())
      throw ConfigError("placement.actors is ", shares.actors, "; it must be from 1 to the number of ranks, ",
                        topology.world());
    return {detail::all_ranks(topology), detail::spread(shares.actors, topology)};
  }
};

/// As Separated at first; then shares of the work move until rollout and actor times meet
/// (pipeline/adaptation.hpp): in one process cores between the lanes, in a job ranks between the roles and
/// environments between the rollouts.
struct Adaptive {
  using slot = placement_slot;
  using knobs = AdaptiveKnobs;
  static constexpr std::string_view name = "Adaptive";
  static constexpr bool separates_roles = true;
  static constexpr bool adapts = true;
  static Roles roles(const AdaptiveKnobs& shares, const Topology& topology) {
    if (topology.world() == 1) return {};
    detail::refuse_joined(name, topology);
    return detail::separate(shares.rollouts, shares.actors, "placement.rollouts:actors", topology);
  }
};

}  // namespace dvla
