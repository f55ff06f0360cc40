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
#include "dvla/pipeline/mistake.hpp"

namespace dvla {

namespace detail {
/// A correction's own knobs, or GrpoKnobs where it has none.
template <class Correction>
struct grpo_knobs {
  using type = GrpoKnobs;
  using mistake = dvla::mistake::none;
};
template <class Correction>
requires requires { typename Correction::knobs; }
struct grpo_knobs<Correction> {
  static constexpr bool joins = std::is_base_of_v<GrpoKnobs, typename Correction::knobs>;
  using type = std::conditional_t<joins, typename Correction::knobs, GrpoKnobs>;
  using mistake = std::conditional_t<
      joins, dvla::mistake::none,
      dvla::mistake::correction_does_not_join_the_knobs<Correction, typename Correction::knobs>>;
};
}  // namespace detail

/// Group-relative policy optimisation. What it allows of staleness is its correction's.
template <class Correction = DecoupledClip>
struct BasicGRPO {
  using mistake = dvla::mistake::not_a_correction<Correction>;
  using slot = algorithm_slot;
  using knobs = GrpoKnobs;
  static constexpr std::string_view name = "GRPO";
  static constexpr int max_staleness = 1024;
};
template <StalenessPolicy Correction>
struct BasicGRPO<Correction> {
  using mistake = typename detail::grpo_knobs<Correction>::mistake;
  using slot = algorithm_slot;
  using knobs = typename detail::grpo_knobs<Correction>::type;
  static constexpr Spelling spelling{"GRPO<", Correction::name, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr int max_staleness = Correction::max_staleness;
  static constexpr bool needs_values = false;
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
