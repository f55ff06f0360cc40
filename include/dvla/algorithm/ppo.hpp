// PPO's machinery (Schulman et al., arXiv 1707.06347): the clipped policy-gradient update of policy_gradient.hpp with
// generalised advantage estimation and a value loss. Needs a model with values (WithValue, model/with_value.hpp).
#pragma once

#include "dvla/algorithm/gae_estimator.hpp"
#include "dvla/algorithm/policy_gradient.hpp"

namespace dvla {

template <class Model, class Weights, class Correction>
using PpoTrainer = PolicyGradientTrainer<Model, Weights, Correction, GaeEstimator>;

template <class Correction, class Pipeline>
struct machinery<BasicPPO<Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = PpoTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction>;
};

}  // namespace dvla
