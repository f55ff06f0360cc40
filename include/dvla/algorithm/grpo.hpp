// GRPO's machinery (Shao et al., arXiv 2402.03300), and RLOO's: the clipped policy-gradient update of
// policy_gradient.hpp with advantages from groups. Paper: the actor side ("GRPO advantages, clipped policy gradient,
// micro-batches"). No critic.
#pragma once

#include "dvla/algorithm/group_relative.hpp"
#include "dvla/algorithm/policy_gradient.hpp"

namespace dvla {

template <class Model, class Weights, class Correction>
using GrpoTrainer = PolicyGradientTrainer<Model, Weights, Correction, GroupRelative<GroupNormalised>>;
template <class Model, class Weights, class Correction>
using RlooTrainer = PolicyGradientTrainer<Model, Weights, Correction, GroupRelative<LeaveOneOut>>;

template <class Correction, class Pipeline>
struct machinery<BasicGRPO<Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = GrpoTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction>;
};
template <class Correction, class Pipeline>
struct machinery<BasicRLOO<Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = RlooTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction>;
};

}  // namespace dvla
