// What a user tunes in PPO besides (Schulman et al., arXiv 1707.06347); names and defaults follow RLinf's shipped
// settings where those have one. Includes no arithmetic.
#pragma once

#include "dvla/algorithm/policy_gradient_knobs.hpp"

namespace dvla {

/// From what values learn: gae, advantage + value of the sampling weights; v_trace, corrected for the age of the data,
/// with values of the weights that are trained.
enum class ValueTargets : std::uint8_t { gae, v_trace };

template <>
inline constexpr auto enum_names<ValueTargets> = std::to_array<std::string_view>({"gae", "v_trace"});

struct PpoKnobs : PolicyGradientKnobs {
  /// Advantages have mean 0 over decisions. Were every trajectory to weigh the same, the few decisions of those that
  /// succeed early would weigh more, the mean be positive, and whatever the policy does be reinforced.
  PpoKnobs() { aggregation = Aggregation::masked_mean; }
  double gamma = 0.99;   ///< discount of a decision (chunk level), or of a control step (action level)
  double lambda = 0.95;  ///< of GAE
  /// What is cut off is worth the value of its last observation; false: nothing, as where the task is to succeed
  /// within the horizon (Pardo et al., arXiv 1712.00378).
  bool bootstrap = true;
  bool normalize_advantages = true;  ///< to mean 0 and deviation 1 over the batch
  double value_coefficient = 1;      ///< of the value loss
  double value_clip = 0.2;           ///< how far a value may move from the recorded one; 0 = off
  double huber_delta = 10;           ///< errors of values beyond it count linearly
  int critic_warmup = 0;             ///< first batches in which only the value loss counts
  ValueTargets value_targets = ValueTargets::gae;
};

template <>
inline constexpr auto knob_docs<PpoKnobs> =
    joined_docs(knob_docs<PolicyGradientKnobs>,
                std::to_array<KnobDoc>({
                    {"gamma", "discount from one reward to the next", 0, 1},
                    {"lambda", "of generalised advantage estimation; 1 = no bootstrap but at cuts", 0, 1},
                    {"bootstrap",
                     "an episode that is cut off is worth the value of its last observation; false: "
                     "nothing, as where the task is to succeed within the horizon"},
                    {"normalize_advantages", "to mean 0 and deviation 1 over the batch"},
                    {"value_coefficient", "weight of the value loss", 0, 1e6},
                    {"value_clip", "how far a value may move from the recorded one; 0 = off", 0, 1e9},
                    {"huber_delta", "errors of values beyond it count linearly", 1e-9, 1e9},
                    {"critic_warmup", "first batches in which only the value loss counts", 0, 1e9},
                    {"value_targets", "from what values learn"},
                }));

}  // namespace dvla

template <std::same_as<dvla::PpoKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::more_members<dvla::PolicyGradientKnobs, &K::gamma, &K::lambda, &K::bootstrap,
                         &K::normalize_advantages, &K::value_coefficient, &K::value_clip, &K::huber_delta,
                         &K::critic_warmup, &K::value_targets> {};
