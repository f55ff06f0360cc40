// Algorithms that a pipeline can name. Descriptors only, no torch. Paper: GRPO with a clipped policy
// gradient, PPO as a preset; staleness correction is a policy of its own inside this slot (algorithm/staleness.hpp).
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/grpo_knobs.hpp"
#include "dvla/algorithm/ppo_knobs.hpp"
#include "dvla/algorithm/staleness.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"

namespace dvla {

struct GroupNormalised;
struct LeaveOneOut;
struct Whitened;
struct GroupWhitened;

namespace detail {
/// An algorithm's knobs with those of a correction that has some.
template <class Correction, class Algorithm>
struct joined_knobs {
  static constexpr bool joins = !requires { typename Correction::knobs; };  // that is no template
  using type = Algorithm;
};
template <class Correction, class Algorithm>
requires requires { typename Correction::template knobs<Algorithm>; }
struct joined_knobs<Correction, Algorithm> {
  static constexpr bool joins = std::is_base_of_v<Algorithm, typename Correction::template knobs<Algorithm>>;
  using type = std::conditional_t<joins, typename Correction::template knobs<Algorithm>, Algorithm>;
};

// What the policy gradients differ in, to a pipeline. `baseline`: of algorithm/group_relative.hpp.
struct Grouped {
  using knobs = GrpoKnobs;
  static constexpr bool needs_values = false, takes_several_episodes = false;
};
struct Grpo : Grouped {
  using baseline = GroupNormalised;
  static constexpr std::string_view name = "GRPO";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: GRPO is named but its machinery is not included: add #include "
                  "<dvla/algorithm/grpo.hpp>");
  };
};
struct Rloo : Grouped {
  using baseline = LeaveOneOut;
  static constexpr std::string_view name = "RLOO";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: RLOO is named but its machinery is not included: add #include "
                  "<dvla/algorithm/grpo.hpp>");
  };
};
struct Reinforce : Grouped {
  using baseline = Whitened;
  static constexpr std::string_view name = "REINFORCE++";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: REINFORCE++ is named but its machinery is not included: add #include "
                  "<dvla/algorithm/grpo.hpp>");
  };
};
struct ReinforceBaseline : Grouped {
  using baseline = GroupWhitened;
  static constexpr std::string_view name = "REINFORCE++baseline";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: REINFORCE++baseline is named but its machinery is not included: add #include "
                  "<dvla/algorithm/grpo.hpp>");
  };
};
struct Ppo {
  using knobs = PpoKnobs;
  static constexpr std::string_view name = "PPO";
  static constexpr bool needs_values = true, takes_several_episodes = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: PPO is named but its machinery is not included: add #include "
                  "<dvla/algorithm/ppo.hpp>");
  };
};
}  // namespace detail

/// A clipped policy gradient (algorithm/policy_gradient.hpp). What it allows of staleness is its correction's.
template <class Kind, class Correction>
struct PolicyGradient {
  using slot = algorithm_slot;
  using knobs = typename Kind::knobs;
  static constexpr std::string_view name = Kind::name;
  static constexpr int max_staleness = 1024;
  static consteval bool is_sound() {
    static_assert(detail::never<Correction>,
                  "dvla: BasicGRPO<Correction> needs a staleness correction, and this is none: Uncorrected, "
                  "DecoupledClip, or your own as algorithm/staleness.hpp says");
    return false;
  }
};
template <class Kind, StalenessPolicy Correction>
struct PolicyGradient<Kind, Correction> {
  using joined = detail::joined_knobs<Correction, typename Kind::knobs>;
  using slot = algorithm_slot;
  using knobs = typename joined::type;
  static constexpr Spelling spelling{Kind::name, "<", Correction::name, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr int max_staleness = Correction::max_staleness;
  static constexpr bool needs_values = Kind::needs_values;
  static constexpr bool takes_several_episodes = Kind::takes_several_episodes;
  static consteval bool is_sound() {
    static_assert(
        joined::joins,
        "dvla: this staleness correction's knobs must derive from the algorithm's, whose knobs they join: "
        "template <class Algorithm> struct knobs : Algorithm { ... }; (algorithm/staleness.hpp)");
    return joined::joins;
  }
  template <bool Never>
  using missing = typename Kind::template missing<Never>;
};

/// Group-relative policy optimisation.
template <class Correction = DecoupledClip>
using BasicGRPO = PolicyGradient<detail::Grpo, Correction>;
using GRPO = BasicGRPO<>;
/// REINFORCE with a leave-one-out baseline.
template <class Correction = DecoupledClip>
using BasicRLOO = PolicyGradient<detail::Rloo, Correction>;
using RLOO = BasicRLOO<>;
/// REINFORCE++, and its form whose baseline is the group's mean.
template <class Correction = DecoupledClip>
using BasicReinforcePlusPlus = PolicyGradient<detail::Reinforce, Correction>;
using ReinforcePlusPlus = BasicReinforcePlusPlus<>;
template <class Correction = DecoupledClip>
using BasicReinforcePlusPlusBaseline = PolicyGradient<detail::ReinforceBaseline, Correction>;
using ReinforcePlusPlusBaseline = BasicReinforcePlusPlusBaseline<>;
/// Proximal policy optimisation with values and GAE.
template <class Correction = DecoupledClip>
using BasicPPO = PolicyGradient<detail::Ppo, Correction>;
using PPO = BasicPPO<>;

}  // namespace dvla
