// The start-up self-test of a training: with unchanged weights, the log-probabilities that the trainer
// recomputes must be those that the sampler stored, so the policy ratio is 1. It catches differing kernels,
// knobs, casts or weights between the two sides before they pass for learning. Torch-free; works on any
// model.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/model/calls.hpp"
#include "dvla/model/concept.hpp"

namespace dvla {

/// How far exp(new - old) is from 1 over all elements of some rows. Not a number counts as worst.
struct RatioError {
  double error = 0;          ///< the worst
  std::int64_t row = 0;      ///< of the batch, where that was
  std::int64_t element = 0;  ///< c * A + a
  double mean = 0;           ///< of |new - old|
  double percentile_99 = 0;  ///< of the same

  /// Within the limits: 1e-5 in float32; where weights and activations have 16 bits, whose roundings differ
  /// with the shapes of matrix products, a mean of 0.01 and a 99th percentile of 0.05.
  bool fits(bool in_16_bits) const {
    return in_16_bits ? mean <= 0.01 && percentile_99 <= 0.05 : error <= 1e-5;
  }
};

/// Runs a forward of `rows` of `observation` [N] and `decision` [N]; gradients are not touched.
template <ModelMachinery Model>
RatioError ratio_error(Model& model, const Observation& observation, const typename Model::Decision& decision,
                       std::span<const std::int64_t> rows) {
  const auto elements = static_cast<std::size_t>(decision.log_prob.extents().tail().count());
  std::vector<float> log_prob(rows.size() * elements), entropy(rows.size() * elements);
  in_model<Model>("forward", rows.size(), observation,
                  [&] { model.forward(observation, decision, rows, log_prob, entropy); });
  RatioError found;
  std::vector<double> distances;
  for (std::size_t i = 0; i < log_prob.size(); ++i) {
    const std::int64_t row = rows[i / elements];
    const double old = decision.log_prob.at(row).span()[i % elements];
    const double distance = static_cast<double>(log_prob[i]) - old, error = std::abs(std::expm1(distance));
    distances.push_back(std::isnan(distance) ? std::numeric_limits<double>::infinity() : std::abs(distance));
    found.mean += distances.back() / static_cast<double>(log_prob.size());
    if (!(error <= found.error) && !std::isnan(found.error)) {
      found.error = error;
      found.row = row;
      found.element = static_cast<std::int64_t>(i % elements);
    }
  }
  if (!distances.empty()) {
    const auto at = distances.begin() + static_cast<std::ptrdiff_t>((distances.size() - 1) * 99 / 100);
    std::nth_element(distances.begin(), at, distances.end());
    found.percentile_99 = *at;
  }
  return found;
}

/// Throws Error, naming row and element, where that does not fit.
template <ModelMachinery Model>
RatioError check_ratio(Model& model, const Observation& observation, const typename Model::Decision& decision,
                       std::span<const std::int64_t> rows) {
  const RatioError found = ratio_error(model, observation, decision, rows);
  const bool half = computes_in_16_bits(model);
  if (!found.fits(half)) {
    const auto number = [](double value) { return printed("%.3g", value); };
    throw Error("ratio self-test: the trainer's and the sampler's probability of row " +
                std::to_string(found.row) + ", element " + std::to_string(found.element) + " differ by " +
                number(found.error) + " (relative), and log-probabilities by " + number(found.mean) +
                " on average and " + number(found.percentile_99) + " at the 99th percentile, above " +
                (half ? "0.01 and 0.05, the limits in 16 bits" : "1e-5") +
                ", with the same weights; the two sides compute different policies");
  }
  return found;
}

}  // namespace dvla
