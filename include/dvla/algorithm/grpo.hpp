// GRPO's machinery (Shao et al., arXiv 2402.03300) and its relatives': the clipped policy-gradient update of
// policy_gradient.hpp with advantages from groups (group_relative.hpp). Paper: the actor side ("GRPO advantages, clipped
// policy gradient, micro-batches"). No critic.
#pragma once

#include "dvla/algorithm/group_relative.hpp"
#include "dvla/algorithm/policy_gradient.hpp"

namespace dvla {

template <class Model, class Weights, class Correction>
using GrpoTrainer = PolicyGradientTrainer<Model, Weights, Correction, GroupRelative<GroupNormalised>>;

template <class Kind, class Correction, class Pipeline>
requires requires { typename Kind::baseline; }
struct machinery<PolicyGradient<Kind, Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = PolicyGradientTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction,
                                     GroupRelative<typename Kind::baseline>>;
};

}  // namespace dvla
