// Advantages from groups of episodes that began alike, without a critic: GRPO's, and its relatives'. Each episode has
// one number, its return against the group's, which all its elements get. What that number is, is the *baseline*'s:
//   GroupNormalised     (return - mean) / (std + 1e-6)                         GRPO (group_advantage.hpp)
//   LeaveOneOut         return - mean of the others                           RLOO (Ahmadian et al., arXiv 2402.14740)
//   Whitened            return, normalised over all elements of the batch     REINFORCE++ (Hu et al., arXiv 2501.03262)
//   GroupWhitened       return - group mean, normalised likewise              its form with a baseline
// The soft punishment of overlong episodes is DAPO's (Yu et al., arXiv 2503.14476). Rows hold one episode each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/algorithm/grpo_knobs.hpp"
#include "dvla/algorithm/normalise.hpp"
#include "dvla/algorithm/policy_gradient.hpp"
#include "dvla/algorithm/returns.hpp"

namespace dvla {

struct GroupNormalised {
  static constexpr bool whitens = false;
  static GroupSummary advantage(std::size_t group, std::span<const float> return_B,
                                std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
    return group_advantage(group, return_B, valid_B, advantage_B);
  }
};
struct LeaveOneOut {
  static constexpr bool whitens = false;
  static GroupSummary advantage(std::size_t group, std::span<const float> return_B,
                                std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
    return leave_one_out_advantage(group, return_B, valid_B, advantage_B);
  }
};

struct Whitened {
  static constexpr bool whitens = true;
  static GroupSummary advantage(std::size_t group, std::span<const float> return_B,
                                std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
    const GroupSummary summary = centred_advantage(group, return_B, valid_B, advantage_B);
    std::ranges::copy(return_B, advantage_B.begin());
    return summary;
  }
};
struct GroupWhitened {
  static constexpr bool whitens = true;
  static GroupSummary advantage(std::size_t group, std::span<const float> return_B,
                                std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
    return centred_advantage(group, return_B, valid_B, advantage_B);
  }
};

/// An AdvantageEstimator.
template <class Baseline = GroupNormalised>
class GroupRelative {
 public:
  using Knobs = GrpoKnobs;
  static constexpr bool needs_values = false;

  GroupRelative(const GrpoKnobs& knobs, RolloutExtents extents, std::size_t episodes_per_row)
      : knobs_(knobs),
        extents_(extents),
        return_B_(extents.episodes),
        advantage_B_(extents.episodes),
        keep_B_(extents.episodes) {
    if (episodes_per_row != 1)
      throw ConfigError("groups are of episodes that began together: rows cannot hold " +
                        std::to_string(episodes_per_row) + " each; set run.auto_reset to false");
  }

  bool recomputes() const { return false; }

  void mask(const EstimatorBatch& batch) {
    const Transition& transition = batch.transition;
    check_groups(transition.group.span());
    loss_mask(extents_, knobs_.reward_level, transition.terminated.span(), transition.truncated.span(),
              batch.mask);
    std::ranges::copy(batch.return_B, return_B_.begin());
    if (knobs_.overlong_buffer > 0)
      punish_overlong(extents_, transition.terminated.span(), transition.truncated.span(),
                      static_cast<std::size_t>(knobs_.overlong_buffer), knobs_.overlong_penalty, return_B_);
    if (knobs_.filter_lower == 0 && knobs_.filter_upper == 0) return;
    filter_rewards(group(), knobs_.filter_lower, knobs_.filter_upper, return_B_, batch.present_B, keep_B_);
    mask_episodes(keep_B_, per_row(), batch.mask);
  }

  template <class Sum>
  std::size_t estimate(const EstimatorBatch& batch, Sum sum) {
    const GroupSummary summary = Baseline::advantage(group(), return_B_, batch.present_B, advantage_B_);
    broadcast_advantage(advantage_B_, per_row(), batch.mask, batch.advantage);
    if constexpr (Baseline::whitens) normalise(batch.mask, batch.advantage, Spread::population, sum);
    return summary.informative;
  }

 private:
  std::size_t group() const { return static_cast<std::size_t>(knobs_.group); }
  std::size_t per_row() const { return extents_.per_row(knobs_.reward_level); }
  /// Episodes of a group are of one group for whoever sampled them, too.
  void check_groups(std::span<const std::int32_t> sampled) const {
    for (std::size_t b = 0; b < sampled.size(); ++b) {
      const std::int32_t first = sampled[b / group() * group()];
      if (sampled[b] >= 0 && first >= 0 && sampled[b] != first)
        throw Error("the algorithm has groups of " + std::to_string(group()) + ", but episodes " +
                    std::to_string(b / group() * group()) + " and " + std::to_string(b) +
                    " of the batch were sampled as groups " + std::to_string(first) + " and " +
                    std::to_string(sampled[b]) + "; give worker and algorithm the same group");
    }
  }

  GrpoKnobs knobs_;
  RolloutExtents extents_;
  std::vector<float> return_B_, advantage_B_;
  std::vector<std::uint8_t> keep_B_;
};

}  // namespace dvla
