// PPO's advantages and value targets: generalised advantage estimation over the episodes that a batch's table names
// (gae.hpp), several a row where rows are reset within a pass. Values, those of the observations that cut episodes off
// included, are the sampling weights', as recorded; under V-trace all of them are the trained weights' instead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dvla/algorithm/gae.hpp"
#include "dvla/algorithm/normalise.hpp"
#include "dvla/algorithm/policy_gradient.hpp"
#include "dvla/algorithm/ppo_knobs.hpp"

namespace dvla {

/// An AdvantageEstimator.
class GaeEstimator {
 public:
  using Knobs = PpoKnobs;
  static constexpr bool needs_values = true;

  GaeEstimator(const PpoKnobs& knobs, RolloutExtents extents, std::size_t episodes_per_row)
      : knobs_(knobs),
        at_{extents.episodes, extents.per_row(knobs.reward_level)},
        chunk_(extents.chunk),
        reward_(extents.rows() * at_.per_row) {
    spans_.reserve(extents.episodes * episodes_per_row);
  }

  bool recomputes() const { return knobs_.value_targets == ValueTargets::v_trace; }
  ValueLossKnobs value_loss() const {
    return {.coefficient = knobs_.value_coefficient,
            .clip = knobs_.value_clip,
            .huber_delta = knobs_.huber_delta};
  }
  /// Whether only the values are trained in that batch.
  bool warms_up(std::int64_t batch) const { return batch < knobs_.critic_warmup; }

  void mask(const EstimatorBatch& batch) {
    const EpisodeTable& table = batch.transition.episode;
    const auto B = static_cast<std::int64_t>(at_.rows), S = table.size();
    spans_.clear();
    std::ranges::fill(batch.mask, std::uint8_t{0});
    for (std::int64_t b = 0; b < B; ++b) {
      if (batch.present_B[static_cast<std::size_t>(b)] == 0) continue;
      std::size_t begin = 0;
      for (std::int64_t s = 0; s < S && table.end.at(s)[b] != 0; ++s) {
        const auto decision = static_cast<std::size_t>(table.decision.at(s)[b]);
        const std::size_t last = at_.per_row == 1 ? 0 : static_cast<std::size_t>(table.step.at(s)[b]);
        const EpisodeSpan& episode = spans_.emplace_back(
            EpisodeSpan{.row = static_cast<std::size_t>(b),
                        .begin = begin,
                        .end = decision * at_.per_row + last + 1,
                        .truncated = table.end.at(s)[b] == static_cast<std::uint8_t>(EpisodeEnd::truncated)});
        for (std::size_t k = episode.begin; k < episode.end; ++k) batch.mask[at_(episode.row, k)] = 1;
        begin = (decision + 1) * at_.per_row;
      }
    }
  }

  template <class Sum>
  std::size_t estimate(const EstimatorBatch& batch, Sum sum) {
    // Rewards are 0 after an episode's end, so that a chunk's sum is that of its steps which count.
    const std::span<const float> reward = batch.transition.reward.span();
    const std::size_t steps = chunk_ / at_.per_row;
    for (std::size_t i = 0; i < reward_.size(); ++i) {
      double total = 0;
      for (std::size_t k = i * steps; k < (i + 1) * steps; ++k) total += reward[k];
      reward_[i] = static_cast<float>(total);
    }
    std::size_t row = at_.rows, s = 0;
    for (EpisodeSpan& episode : spans_) {
      s = episode.row == row ? s + 1 : 0;
      row = episode.row;
      episode.final_value = knobs_.bootstrap ? batch.final_value[s * at_.rows + row] : 0;
    }
    std::ranges::fill(batch.advantage, 0.0F);
    std::ranges::fill(batch.target, 0.0F);
    gae(at_, spans_, reward_, batch.value, knobs_.gamma, knobs_.lambda, batch.advantage, batch.target);
    if (recomputes())
      v_trace(at_, spans_, reward_, batch.value, batch.log_ratio, knobs_.gamma, knobs_.lambda, batch.target);
    std::size_t informative = 0;
    for (const EpisodeSpan& episode : spans_) {
      bool any = false;
      for (std::size_t k = episode.begin; k < episode.end; ++k)
        any |= batch.advantage[at_(episode.row, k)] != 0;
      informative += any;
    }
    if (knobs_.normalize_advantages) normalise(batch.mask, batch.advantage, Spread::unbiased, sum);
    return informative;
  }

 private:
  PpoKnobs knobs_;
  ElementLayout at_;
  std::size_t chunk_;
  std::vector<EpisodeSpan> spans_;  ///< of rows in order, the episodes of a row in order
  std::vector<float> reward_;       ///< [T, B, R]
};

}  // namespace dvla
