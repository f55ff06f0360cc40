// The figures of a loss and of an update: what an algorithm reports of each batch, and what progress,
// TensorBoard and a run's history read. Plain numbers; an algorithm leaves at 0 what it does not have. The
// arithmetic that fills a LossStats is clip_loss.hpp's.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace dvla {

/// Of one call, or of several added up. Losses add because they share the denominator; the rest are plain
/// means over the units whose weight is not 0.
struct LossStats {
  double policy_loss = 0;
  double entropy_loss = 0;         ///< -entropy_bonus * weighted mean entropy
  double entropy = 0;              ///< weighted mean entropy of a unit
  double kl_loss = 0;              ///< weighted mean KL to the reference policy, times its weight
  double value_loss = 0;           ///< as it counts in loss(): with its coefficient
  std::size_t values = 0;          ///< not masked
  std::size_t values_clipped = 0;  ///< of them, clipped and therefore without a slope
  std::size_t units = 0;           ///< not masked
  std::size_t dropped = 0;         ///< of them, dropped by the staleness correction
  std::size_t clipped_low = 0;     ///< of the others, clipped at 1 - low
  std::size_t clipped_high = 0;    ///< ... at 1 + high
  std::size_t dual_clipped = 0;    ///< ... bounded by the dual clip
  double ratio_sum = 0;            ///< ratio to the anchor
  double max_ratio_deviation =
      0;              ///< max |ratio - 1|: 0 before the first step, or rollout and trainer disagree
  double kl_sum = 0;  ///< see approx_kl
  double anchor_weight_sum = 0;

  double loss() const { return policy_loss + entropy_loss + kl_loss + value_loss; }
  double ratio_mean() const { return mean(ratio_sum); }
  /// KL(behaviour || current) from the behaviour's own samples, Schulman's k3: mean of exp(x) - 1 - x, x =
  /// current - behaviour. Never negative.
  double approx_kl() const { return mean(kl_sum); }
  double anchor_weight_mean() const { return mean(anchor_weight_sum); }
  double clip_fraction_low() const { return mean(static_cast<double>(clipped_low)); }
  double clip_fraction_high() const { return mean(static_cast<double>(clipped_high)); }
  double dual_clip_fraction() const { return mean(static_cast<double>(dual_clipped)); }
  double dropped_fraction() const { return mean(static_cast<double>(dropped)); }

  LossStats& operator+=(const LossStats& other) {
    policy_loss += other.policy_loss;
    entropy_loss += other.entropy_loss;
    entropy += other.entropy;
    kl_loss += other.kl_loss;
    value_loss += other.value_loss;
    values += other.values;
    values_clipped += other.values_clipped;
    units += other.units;
    dropped += other.dropped;
    clipped_low += other.clipped_low;
    clipped_high += other.clipped_high;
    dual_clipped += other.dual_clipped;
    ratio_sum += other.ratio_sum;
    note_deviation(other.max_ratio_deviation);
    kl_sum += other.kl_sum;
    anchor_weight_sum += other.anchor_weight_sum;
    return *this;
  }

  void note_deviation(double deviation) {  // a NaN stays
    if (deviation > max_ratio_deviation || std::isnan(deviation)) max_ratio_deviation = deviation;
  }

 private:
  double mean(double sum) const { return units == 0 ? 0 : sum / static_cast<double>(units); }
};

/// Episodes of one task in a batch.
struct TaskCount {
  double episodes = 0, solved = 0;
};

/// What one update did. Means are over the batch, that of all trainers where several share it.
struct UpdateStats {
  LossStats loss;            ///< summed over every micro-batch of every epoch
  double success_rate = 0;   ///< share of the episodes that were solved
  double mean_return = 0;    ///< first-episode return
  double gradient_norm = 0;  ///< of the last optimiser step, before clipping
  std::int64_t optimiser_steps = 0;
  std::int64_t episodes = 0;           ///< of the batch; absent ones (their rollout died) are left out
  std::int64_t rows = 0;               ///< decisions that were trained on, an epoch
  std::size_t informative_groups = 0;  ///< groups with a non-zero advantage
  /// 1 - Var(target - value) / Var(target) of the values that the batch was sampled with; 0 where there are none.
  double explained_variance = 0;
  /// By the instruction's index, of the first tasks; more are in no curve of their own, and in evaluations all are.
  std::array<TaskCount, 16> tasks{};
};

}  // namespace dvla
