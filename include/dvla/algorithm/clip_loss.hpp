// The clipped policy-gradient loss of PPO and GRPO (Schulman et al., arXiv 1707.06347), with its gradient.
//   d = current - anchor, clamped if asked     ratio = exp(d)
//   loss = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), with a dual clip: min(that, c |A|)
//   total = sum(weight * (anchor_weight * loss + kl * KL(current || reference) - entropy_bonus * entropy)) / denominator
// The gradient comes in closed form, as d total / d log-prob of each token, so any model is trained by
// backward(that). Torch-free; arithmetic and sums are in double whatever the spans hold, so results are good
// to the rounding of the inputs and don't depend on how a batch is cut into micro-batches: call clip_loss for
// each micro-batch with the *global* batch's denominator (loss_denominator) and accumulate. Does not compute
// log-probs, advantages or a value loss.
//
// Legend: N rows (samples, t * B + b), C control steps in a chunk, A action dimensions, R mask elements in a
// row (C at action level, 1 at chunk level). A *unit* is what has one ratio: a token, an action or a chunk.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "dvla/algorithm/extents.hpp"
#include "dvla/algorithm/staleness.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

struct LossShape {
  std::size_t rows = 0;        ///< N
  std::size_t chunk = 1;       ///< C
  std::size_t action_dim = 1;  ///< A
  LogProbLevel log_prob = LogProbLevel::token;
  RewardLevel reward = RewardLevel::chunk;  ///< of advantage and weight: [N, C] or [N]

  std::size_t tokens() const { return chunk * action_dim; }  ///< in a row
  std::size_t per_row() const { return reward == RewardLevel::action ? chunk : 1; }
  std::size_t tokens_per_unit() const {
    return log_prob == LogProbLevel::token ? 1 : log_prob == LogProbLevel::action ? action_dim : tokens();
  }
  /// What a unit's sum of log-probs is multiplied by.
  double unit_scale() const {
    return log_prob == LogProbLevel::sequence ? 1 / static_cast<double>(tokens()) : 1;
  }
  std::size_t units_per_row() const { return tokens() / tokens_per_unit(); }
  std::size_t units_per_weight() const { return units_per_row() / per_row(); }  ///< for loss_denominator
};

/// All views; Real is float in use and double where a test wants it.
template <std::floating_point Real>
struct LossInputs {
  std::span<const Real> current;          ///< [N, C, A] log-probs under the weights being trained
  std::span<const Real> behaviour;        ///< [N, C, A] log-probs stored by the rollout
  std::span<const Real> proximal;         ///< [N, C, A], or empty where the correction doesn't need it
  std::span<const Real> entropy;          ///< [N, C, A], or empty where entropy_bonus is 0
  std::span<const Real> advantage;        ///< [N, R]
  std::span<const Real> weight;           ///< [N, R] of loss_weights; 0 = masked, whatever else stands there
  std::span<const std::int64_t> version;  ///< [N] that sampled the row, or empty as above
  std::int64_t trained_version = 0;       ///< see staleness.hpp for the two conventions
  std::span<const Real> reference{};      ///< [N, C, A] under the reference policy, or empty where kl is 0
};

struct ClipKnobs {
  double clip_low = 0.2;  ///< ratios below 1 - clip_low give no gradient where that would lower them further
  double clip_high = 0.28;  ///< likewise above 1 + clip_high
  double dual_clip =
      0;  ///< c > 1 bounds the loss of bad actions by c |A| (Ye et al., arXiv 1912.09729); 0: off
  double log_ratio_min =
      -std::numeric_limits<double>::infinity();  ///< clamp of d, before exp; no gradient outside
  double log_ratio_max = std::numeric_limits<double>::infinity();
  double entropy_bonus = 0;
  double kl = 0;  ///< weight of the KL to the reference policy

  void validate() const {
    const auto refuse = [](const std::string& what) { throw ConfigError("clip_loss: " + what); };
    if (!(clip_low >= 0 && clip_low < 1))
      refuse("clip_low is " + std::to_string(clip_low) + "; it must be in [0, 1).");
    if (!(clip_high >= 0)) refuse("clip_high is " + std::to_string(clip_high) + "; it must be at least 0.");
    if (dual_clip != 0 && !(dual_clip > 1))
      refuse("dual_clip is " + std::to_string(dual_clip) + "; it must be above 1, or 0 for off.");
    if (!(log_ratio_min <= 0 && 0 <= log_ratio_max)) refuse("the clamp of the log-ratio must contain 0.");
    if (!std::isfinite(entropy_bonus)) refuse("entropy_bonus must be finite.");
  }
};

namespace detail {
/// Loss of one unit and its derivative by the unit's log-prob; counts into `stats`.
template <bool Clips>
std::pair<double, double> clip_unit(double advantage, const LossElement& element, const Anchor& anchor,
                                    const ClipKnobs& knobs, LossStats& stats) {
  const double log_ratio = element.current - anchor.log_prob;
  const double clamped = std::clamp(log_ratio, knobs.log_ratio_min, knobs.log_ratio_max);
  const double ratio = std::exp(clamped);
  const double drift = element.current - element.behaviour;
  ++stats.units;
  stats.ratio_sum += ratio;
  stats.note_deviation(std::abs(ratio - 1));
  stats.kl_sum += std::expm1(drift) - drift;
  stats.anchor_weight_sum += anchor.weight;
  if (anchor.weight == 0) {
    ++stats.dropped;
    return {0, 0};
  }
  if (advantage == 0) return {0, 0};

  const double limited = Clips ? std::clamp(ratio, 1 - knobs.clip_low, 1 + knobs.clip_high) : ratio;
  double loss = -advantage * ratio;
  double slope = log_ratio < knobs.log_ratio_min || log_ratio > knobs.log_ratio_max ? 0 : loss;
  if (-advantage * limited > loss) {
    loss = -advantage * limited;
    slope = 0;
    ++(ratio > limited ? stats.clipped_high : stats.clipped_low);
  }
  if (const double bound = knobs.dual_clip * std::abs(advantage); knobs.dual_clip > 0 && bound < loss) {
    loss = bound;
    slope = 0;
    ++stats.dual_clipped;
  }
  return {loss * anchor.weight, slope * anchor.weight};
}

/// KL(current || reference) of one unit from a sample, Schulman's k3 = exp(x) - x - 1 with x = reference - current, and
/// its derivative by current. As in RLinf x is clamped to [-20, 20] and the estimate to at most 10; no slope beyond.
inline std::pair<double, double> kl_unit(double current, double reference) {
  const double x = reference - current, clamped = std::clamp(x, -20.0, 20.0);
  const double kl = std::expm1(clamped) - clamped;
  if (kl > 10) return {10, 0};
  return {kl, x == clamped ? -std::expm1(x) : 0};
}
}  // namespace detail

/// Loss, statistics, and gradient of loss() for one (micro-)batch.
///   denominator    loss_denominator of the global batch that this call is a part of; > 0
///   grad_current   [N, C, A], overwritten: d loss / d current; 0 where masked, clipped or dropped
///   grad_entropy   [N, C, A] or empty, overwritten: d loss / d entropy
/// Throws ConfigError for knobs and levels that don't fit, Error for sizes. Allocates nothing; thread-safe.
/// Masked rows may hold anything, NaN included. A NaN in a row that counts shows up in the statistics, and
/// where the advantage is not 0 in loss and gradient.
template <StalenessPolicy Correction = Uncorrected, std::floating_point Real>
LossStats clip_loss(const LossShape& shape, const LossInputs<Real>& inputs, const ClipKnobs& knobs,
                    double denominator, std::span<Real> grad_current, std::span<Real> grad_entropy = {},
                    const Correction& correction = {}) {
  const std::size_t all_tokens = shape.rows * shape.tokens(), weights = shape.rows * shape.per_row();
  knobs.validate();
  if (shape.units_per_row() % shape.per_row() != 0)
    throw ConfigError(
        "clip_loss: one log-prob per chunk cannot carry an advantage per control step; use chunk-level "
        "rewards, or "
        "token- or action-level log-probs.");
  if (!(denominator > 0))
    throw Error("clip_loss: the denominator is not above 0; skip batches without a valid step.");
  detail::expect_size("clip_loss: current", inputs.current.size(), all_tokens);
  detail::expect_size("clip_loss: behaviour", inputs.behaviour.size(), all_tokens);
  detail::expect_size("clip_loss: grad_current", grad_current.size(), all_tokens);
  detail::expect_size("clip_loss: advantage", inputs.advantage.size(), weights);
  detail::expect_size("clip_loss: weight", inputs.weight.size(), weights);
  if constexpr (Correction::needs_proximal)
    detail::expect_size("clip_loss: proximal", inputs.proximal.size(), all_tokens);
  if constexpr (Correction::needs_versions)
    detail::expect_size("clip_loss: version", inputs.version.size(), shape.rows);
  if (knobs.kl != 0) detail::expect_size("clip_loss: reference", inputs.reference.size(), all_tokens);
  if (knobs.entropy_bonus != 0 || !inputs.entropy.empty())
    detail::expect_size("clip_loss: entropy", inputs.entropy.size(), all_tokens);
  if (knobs.entropy_bonus != 0 || !grad_entropy.empty())
    detail::expect_size("clip_loss: grad_entropy", grad_entropy.size(), all_tokens);

  const std::size_t unit_tokens = shape.tokens_per_unit(), weight_units = shape.units_per_weight();
  const double unit_scale = shape.unit_scale();
  const auto unit_sum = [unit_tokens](std::span<const Real> values, std::size_t first) {
    double sum = 0;
    for (std::size_t k = 0; k < unit_tokens; ++k) sum += values[first + k];
    return sum;
  };

  LossStats stats;
  for (std::size_t w = 0; w < weights; ++w) {
    const double scale = inputs.weight[w] / denominator;
    LossElement element;
    if constexpr (Correction::needs_versions) {
      const std::size_t row = w / shape.per_row();
      element.lag = inputs.trained_version - inputs.version[row];
      if (element.lag < 0)
        throw Error("clip_loss: row " + std::to_string(row) + " was sampled by version " +
                    std::to_string(inputs.version[row]) + ", which is newer than the trained version " +
                    std::to_string(inputs.trained_version) + ".");
    }
    for (std::size_t unit = 0; unit < weight_units; ++unit) {
      const std::size_t first = (w * weight_units + unit) * unit_tokens;
      double slope = 0;
      if (inputs.weight[w] != 0) {
        element.current = unit_scale * unit_sum(inputs.current, first);
        element.behaviour = unit_scale * unit_sum(inputs.behaviour, first);
        if constexpr (Correction::needs_proximal)
          element.proximal = unit_scale * unit_sum(inputs.proximal, first);
        const auto [loss, unit_slope] = detail::clip_unit<clips_ratio<Correction>>(
            static_cast<double>(inputs.advantage[w]), element, correction.anchor(element), knobs, stats);
        stats.policy_loss += scale * loss;
        slope = scale * unit_scale * unit_slope;
        if (knobs.kl != 0) {
          const auto [kl, kl_slope] =
              detail::kl_unit(element.current, unit_scale * unit_sum(inputs.reference, first));
          stats.kl_loss += scale * knobs.kl * kl;
          slope += scale * knobs.kl * unit_scale * kl_slope;
        }
        if (!inputs.entropy.empty()) stats.entropy += scale * unit_sum(inputs.entropy, first);
      }
      std::fill_n(grad_current.begin() + static_cast<std::ptrdiff_t>(first), unit_tokens,
                  static_cast<Real>(slope));
    }
    if (!grad_entropy.empty())
      std::fill_n(grad_entropy.begin() + static_cast<std::ptrdiff_t>(w * weight_units * unit_tokens),
                  weight_units * unit_tokens, static_cast<Real>(-knobs.entropy_bonus * scale));
  }
  stats.entropy_loss = -knobs.entropy_bonus * stats.entropy;
  return stats;
}

}  // namespace dvla
