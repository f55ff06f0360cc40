// GRPO's machinery (Shao et al., arXiv 2402.03300) and its relatives': the clipped policy-gradient update of
// policy_gradient.hpp with advantages from groups (group_relative.hpp). Paper: the actor side ("GRPO advantages, clipped
// policy gradient, micro-batches"). No critic.
#pragma once

#include "dvla/algorithm/group_relative.hpp"
#include "dvla/algorithm/policy_gradient.hpp"

namespace dvla {

template <class Model, class Weights, class Correction>
using GrpoTrainer = PolicyGradientTrainer<Model, Weights, Correction, GroupRelative<GroupNormalised>>;

namespace detail {
template <class Kind>
struct baseline_of {};
template <>
struct baseline_of<Grpo> {
  using type = GroupNormalised;
};
template <>
struct baseline_of<Rloo> {
  using type = LeaveOneOut;
};
template <>
struct baseline_of<Reinforce> {
  using type = Whitened;
};
template <>
struct baseline_of<ReinforceBaseline> {
  using type = GroupWhitened;
};
}  // namespace detail

template <class Kind, class Correction, class Pipeline>
requires requires { typename detail::baseline_of<Kind>::type; }
struct machinery<PolicyGradient<Kind, Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = PolicyGradientTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction,
                                     GroupRelative<typename detail::baseline_of<Kind>::type>>;
};

}  // namespace dvla
