// Algorithms that a pipeline can name. Descriptors only, no torch. Paper: GRPO with a clipped policy
// gradient; staleness correction is a policy of its own inside this slot (algorithm/staleness.hpp).
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/grpo_knobs.hpp"
#include "dvla/algorithm/staleness.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"

namespace dvla {

namespace detail {
/// A correction's own knobs, or GrpoKnobs where it has none.
template <class Correction>
struct grpo_knobs {
  static constexpr bool joins = true;
  using type = GrpoKnobs;
};
template <class Correction>
requires requires { typename Correction::knobs; }
struct grpo_knobs<Correction> {
  static constexpr bool joins = std::is_base_of_v<GrpoKnobs, typename Correction::knobs>;
  using type = std::conditional_t<joins, typename Correction::knobs, GrpoKnobs>;
};
}  // namespace detail

/// Group-relative policy optimisation. What it allows of staleness is its correction's.
template <class Correction = DecoupledClip>
struct BasicGRPO {
  using slot = algorithm_slot;
  using knobs = GrpoKnobs;
  static constexpr std::string_view name = "GRPO";
  static constexpr int max_staleness = 1024;
  static consteval bool is_sound() {
    static_assert(detail::never<Correction>,
                  "dvla: BasicGRPO<Correction> needs a staleness correction, and this is none: Uncorrected, "
                  "DecoupledClip, or your own as algorithm/staleness.hpp says");
    return false;
  }
};
template <StalenessPolicy Correction>
struct BasicGRPO<Correction> {
  using slot = algorithm_slot;
  using knobs = typename detail::grpo_knobs<Correction>::type;
  static constexpr Spelling spelling{"GRPO<", Correction::name, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr int max_staleness = Correction::max_staleness;
  static constexpr bool needs_values = false;
  static consteval bool is_sound() {
    static_assert(
        detail::grpo_knobs<Correction>::joins,
        "dvla: this staleness correction's knobs must derive from dvla::GrpoKnobs, whose knobs they join: "
        "struct MyKnobs : dvla::GrpoKnobs { ... }; (algorithm/grpo_knobs.hpp)");
    return detail::grpo_knobs<Correction>::joins;
  }
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: GRPO is named but its machinery is not included: add #include "
                  "<dvla/algorithm/grpo.hpp>");
  };
};
using GRPO = BasicGRPO<>;

/// Proximal policy optimisation with a value head and GAE. Declared, not built in this version.
struct PPO {
  using slot = algorithm_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "PPO";
  static constexpr bool built = false;
  static constexpr int max_staleness = 1;
  static constexpr bool needs_values = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: PPO is declared but not built in this version; use GRPO, or write your own "
                  "algorithm (docs/extending.md)");
  };
};

}  // namespace dvla
