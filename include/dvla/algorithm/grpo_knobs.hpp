// What a user tunes in GRPO besides. Paper: group-relative advantages, clipped policy gradient, micro-batches.
// Includes no arithmetic.
#pragma once

#include "dvla/algorithm/policy_gradient_knobs.hpp"

namespace dvla {

struct GrpoKnobs : PolicyGradientKnobs {
  int group = 8;            ///< consecutive episodes that share a reset state
  double filter_lower = 0;  ///< groups whose mean return is outside [lower, upper] are masked; both 0 = off
  double filter_upper = 0;
  int overlong_buffer = 0;  ///< control steps before a pass's end in which an episode's length costs; 0 = off
  double overlong_penalty = 1;  ///< what the full length costs, of the return
};

template <>
inline constexpr auto knob_docs<GrpoKnobs> =
    joined_docs(knob_docs<PolicyGradientKnobs>,
                std::to_array<KnobDoc>({
                    {"group", "episodes that share a reset state", 2, 4096},
                    {"filter_lower", "groups with a lower mean return are masked; both 0 = off", -1e9, 1e9},
                    {"filter_upper", "groups with a higher mean return are masked; both 0 = off", -1e9, 1e9},
                    {"overlong_buffer", "last steps of a pass in which an episode's length costs; 0 = off", 0,
                     1e6, "control steps"},
                    {"overlong_penalty", "what the full length costs, of the return", 0, 1e9},
                }));

/// Rules between members; found by validate(config).
inline void check(const GrpoKnobs& knobs) {
  check(static_cast<const PolicyGradientKnobs&>(knobs));
  if ((knobs.filter_lower != 0 || knobs.filter_upper != 0) && !(knobs.filter_lower < knobs.filter_upper))
    throw ConfigError("algorithm.filter_lower is " + std::to_string(knobs.filter_lower) +
                      "; it must be below algorithm.filter_upper, which is " +
                      std::to_string(knobs.filter_upper) + ", or both must be 0 for off");
}

}  // namespace dvla

template <std::same_as<dvla::GrpoKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::more_members<dvla::PolicyGradientKnobs, &K::group, &K::filter_lower, &K::filter_upper,
                         &K::overlong_buffer, &K::overlong_penalty> {};
