// Which rank is a rollout, an actor, or both. Descriptors only. Paper: co-located, separated and hybrid
// placement; ratios 3:1 and 1:1.
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/pipeline/mistake.hpp"

namespace dvla {

/// Every rank is both: four lanes in one process. Needs no machinery.
struct CoLocated {
  using slot = placement_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "CoLocated";
  static constexpr bool separates_roles = false;
};

/// Some ranks roll out, the others train. A ratio of 0:0 is read at run time. Declared, not built in this
/// version.
template <int Rollouts = 0, int Actors = 0>
struct Separated {
  using slot = placement_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = type_name<Separated>;
  static constexpr bool built = false;
  static constexpr bool separates_roles = true;
  using mistake = std::conditional_t<(Rollouts >= 0 && Actors >= 0), dvla::mistake::none,
                                     dvla::mistake::shares_are_negative<Rollouts, Actors>>;
  static constexpr bool has_rollouts = Rollouts > 0 || Actors == 0;
  static constexpr bool has_actors = Actors > 0 || Rollouts == 0;
  template <bool Never>
  struct missing {
    static_assert(Never, "dvla: Separated is declared but not built in this version; use CoLocated");
  };
};

/// Some ranks are both, some roll out only. Declared, not built in this version.
struct Hybrid {
  using slot = placement_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Hybrid";
  static constexpr bool built = false;
  static constexpr bool separates_roles = true;
  template <bool Never>
  struct missing {
    static_assert(Never, "dvla: Hybrid is declared but not built in this version; use CoLocated");
  };
};

/// Shares move until rollout and actor times meet. Declared, not built in this version.
struct Adaptive {
  using slot = placement_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Adaptive";
  static constexpr bool built = false;
  static constexpr bool separates_roles = true;
  template <bool Never>
  struct missing {
    static_assert(Never, "dvla: Adaptive is declared but not built in this version; use CoLocated");
  };
};

}  // namespace dvla
