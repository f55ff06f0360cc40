// The start-up self-test of a training: with unchanged weights, the log-probabilities that the trainer
// recomputes must be those that the sampler stored, so the policy ratio is 1. It catches differing kernels,
// knobs, casts or weights between the two sides before they pass for learning. Torch-free; works on any
// model.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/model/concept.hpp"

namespace dvla {

/// The worst |exp(new - old) - 1| over all elements of some rows, and where it was. Not a number counts as
/// worst.
struct RatioError {
  double error = 0;
  std::int64_t row = 0;      ///< of the batch
  std::int64_t element = 0;  ///< c * A + a
};

/// Runs a forward of `rows` of `observation` [N] and `decision` [N]; gradients are not touched.
template <ModelMachinery Model>
RatioError ratio_error(Model& model, const Observation& observation, const typename Model::Decision& decision,
                       std::span<const std::int64_t> rows) {
  const auto elements = static_cast<std::size_t>(decision.log_prob.extents().tail().count());
  std::vector<float> log_prob(rows.size() * elements), entropy(rows.size() * elements);
  model.forward(observation, decision, rows, log_prob, entropy);
  RatioError worst;
  for (std::size_t i = 0; i < log_prob.size(); ++i) {
    const std::int64_t row = rows[i / elements];
    const auto element = static_cast<std::int64_t>(i % elements);
    const double old = decision.log_prob.at(row).span()[i % elements];
    const double error = std::abs(std::expm1(static_cast<double>(log_prob[i]) - old));
    if (!(error <= worst.error)) {
      worst = {error, row, element};
      if (std::isnan(error)) return worst;
    }
  }
  return worst;
}

/// Throws Error, naming row and element, if a ratio is further from 1 than `tolerance`. Returns the worst
/// error.
template <ModelMachinery Model>
double check_ratio(Model& model, const Observation& observation, const typename Model::Decision& decision,
                   std::span<const std::int64_t> rows, double tolerance = 1e-5) {
  const RatioError worst = ratio_error(model, observation, decision, rows);
  if (!(worst.error <= tolerance)) {
    throw Error("ratio self-test: the trainer's and the sampler's probability of row " +
                std::to_string(worst.row) + ", element " + std::to_string(worst.element) + " differ by " +
                std::to_string(worst.error) + " (relative), above " + std::to_string(tolerance) +
                ", with the same weights; the two sides compute different policies");
  }
  return worst.error;
}

}  // namespace dvla
