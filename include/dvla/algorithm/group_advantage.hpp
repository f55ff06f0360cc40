// GRPO's advantage (Shao et al., arXiv 2402.03300; D-VLA's actor side): how much better an episode did than
// the other episodes of its group, in units of the group's spread. No critic, no discount.
//   advantage = (return - mean) / (std + 1e-6), std unbiased, both over the valid members of the group only.
// Groups are G consecutive episodes that began in the same reset state. Definitions as in RLinf.
// Nothing here allocates; all functions are safe to call from any thread on distinct outputs.
//
// Legend: T decisions, B episodes, G episodes in a group (B is a multiple of G), R mask elements in a row: C
// at action level, 1 at chunk level (RolloutExtents::per_row). Flags are uint8, 0 or not 0.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "dvla/algorithm/extents.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

struct GroupSummary {
  std::size_t groups = 0;
  std::size_t informative = 0;  ///< groups with a non-zero advantage, or, for filter_rewards, groups kept
};

namespace detail {
inline void expect_groups(std::size_t group_size, std::size_t episodes) {
  if (group_size == 0 || episodes % group_size != 0)
    throw ConfigError("group_size is " + std::to_string(group_size) + " and there are " +
                      std::to_string(episodes) +
                      " episodes: choose a group_size of at least 1 that divides the number of episodes.");
}

inline bool is_valid(std::span<const std::uint8_t> valid_B, std::size_t b) {
  return valid_B.empty() || valid_B[b] != 0;
}

/// Of the group's valid members; `mean` is of the returns less `origin`.
struct GroupMean {
  std::size_t members = 0;
  double origin = 0, mean = 0;
};
/// Sums are of differences to the first valid member: equal returns then give exact zeros, and large returns with a
/// small spread lose no digits.
inline GroupMean group_mean(std::span<const float> return_B, std::span<const std::uint8_t> valid_B,
                            std::size_t begin, std::size_t group_size) {
  GroupMean group;
  double sum = 0;
  for (std::size_t b = begin; b < begin + group_size; ++b) {
    if (!is_valid(valid_B, b)) continue;
    if (!std::isfinite(return_B[b]))
      throw Error("the return of episode " + std::to_string(b) +
                  " is not finite: mark the episode as not valid or repair its rewards.");
    if (group.members++ == 0) group.origin = return_B[b];
    sum += return_B[b] - group.origin;
  }
  if (group.members > 0) group.mean = sum / static_cast<double>(group.members);
  return group;
}
}  // namespace detail

/// (return - mean of the group) / divisor(members, sum of their squared distances from that mean). valid_B: [B], or
/// empty where every episode is valid. Invalid members neither shift the baseline nor get an advantage. A group with
/// fewer than two valid members, or whose members all earned the same, gets exactly 0.
template <class Divisor>
GroupSummary advantage_in_groups(std::size_t group_size, std::span<const float> return_B,
                                 std::span<const std::uint8_t> valid_B, std::span<float> advantage_B,
                                 Divisor divisor) {
  const std::size_t episodes = return_B.size();
  detail::expect_groups(group_size, episodes);
  detail::expect_size("group_advantage: advantage", advantage_B.size(), episodes);
  if (!valid_B.empty()) detail::expect_size("group_advantage: valid", valid_B.size(), episodes);

  GroupSummary summary;
  for (std::size_t begin = 0; begin < episodes; begin += group_size) {
    const auto [members, origin, mean] = detail::group_mean(return_B, valid_B, begin, group_size);
    double squares = 0;
    for (std::size_t b = begin; b < begin + group_size; ++b)
      if (detail::is_valid(valid_B, b))
        squares += (return_B[b] - origin - mean) * (return_B[b] - origin - mean);
    const bool informative = members >= 2 && squares > 0;
    for (std::size_t b = begin; b < begin + group_size; ++b)
      advantage_B[b] = informative && detail::is_valid(valid_B, b)
                           ? static_cast<float>((return_B[b] - origin - mean) /
                                                divisor(static_cast<double>(members), squares))
                           : 0.0F;
    ++summary.groups;
    summary.informative += informative;
  }
  return summary;
}
/// GRPO's: by the unbiased deviation + 1e-6.
inline GroupSummary group_advantage(std::size_t group_size, std::span<const float> return_B,
                                    std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
  return advantage_in_groups(group_size, return_B, valid_B, advantage_B, [](double members, double squares) {
    return std::sqrt(squares / (members - 1)) + 1e-6;
  });
}
/// return - mean of the group.
inline GroupSummary centred_advantage(std::size_t group_size, std::span<const float> return_B,
                                      std::span<const std::uint8_t> valid_B, std::span<float> advantage_B) {
  return advantage_in_groups(group_size, return_B, valid_B, advantage_B, [](double, double) { return 1.0; });
}
/// RLOO's: return - mean of the others of the group.
inline GroupSummary leave_one_out_advantage(std::size_t group_size, std::span<const float> return_B,
                                            std::span<const std::uint8_t> valid_B,
                                            std::span<float> advantage_B) {
  return advantage_in_groups(group_size, return_B, valid_B, advantage_B,
                             [](double members, double) { return (members - 1) / members; });
}

/// filter_rewards: keep_B = 1 for the valid members of groups whose mean return lies in [lower, upper],
/// borders included; 0 for all others. Groups that always or never succeed teach nothing and can be left out
/// so.
inline GroupSummary filter_rewards(std::size_t group_size, double lower, double upper,
                                   std::span<const float> return_B, std::span<const std::uint8_t> valid_B,
                                   std::span<std::uint8_t> keep_B) {
  const std::size_t episodes = return_B.size();
  detail::expect_groups(group_size, episodes);
  detail::expect_size("filter_rewards: keep", keep_B.size(), episodes);
  if (!valid_B.empty()) detail::expect_size("filter_rewards: valid", valid_B.size(), episodes);
  if (!(lower <= upper))
    throw ConfigError("filter_rewards needs lower <= upper, but they are " + std::to_string(lower) + " and " +
                      std::to_string(upper) + ".");

  GroupSummary summary;
  for (std::size_t begin = 0; begin < episodes; begin += group_size) {
    double sum = 0;
    std::size_t members = 0;
    for (std::size_t b = begin; b < begin + group_size; ++b)
      if (detail::is_valid(valid_B, b)) sum += return_B[b], ++members;
    const double mean = members == 0 ? 0 : sum / static_cast<double>(members);
    const bool keep = members > 0 && lower <= mean && mean <= upper;
    for (std::size_t b = begin; b < begin + group_size; ++b) keep_B[b] = keep && detail::is_valid(valid_B, b);
    ++summary.groups;
    summary.informative += keep;
  }
  return summary;
}

/// Takes the episodes whose keep flag is 0 out of the loss mask: mask[t, b, :] = 0. mask: [T, B, R].
inline void mask_episodes(std::span<const std::uint8_t> keep_B, std::size_t per_row,
                          std::span<std::uint8_t> mask) {
  if (keep_B.empty() || per_row == 0 || mask.size() % (keep_B.size() * per_row) != 0)
    throw Error("mask_episodes: a mask of " + std::to_string(mask.size()) + " elements is not [T, " +
                std::to_string(keep_B.size()) + ", " + std::to_string(per_row) + "].");
  for (std::size_t i = 0; i < mask.size(); ++i)
    if (keep_B[i / per_row % keep_B.size()] == 0) mask[i] = 0;
}

/// advantage[t, b, :] = advantage_B[b] where the mask is set, else 0. mask and advantage: [T, B, R].
inline void broadcast_advantage(std::span<const float> advantage_B, std::size_t per_row,
                                std::span<const std::uint8_t> mask, std::span<float> advantage) {
  detail::expect_size("broadcast_advantage: advantage", advantage.size(), mask.size());
  if (advantage_B.empty() || per_row == 0 || mask.size() % (advantage_B.size() * per_row) != 0)
    throw Error("broadcast_advantage: a mask of " + std::to_string(mask.size()) + " elements is not [T, " +
                std::to_string(advantage_B.size()) + ", " + std::to_string(per_row) + "].");
  std::size_t i = 0;
  while (i < mask.size())
    for (const float value : advantage_B)
      for (std::size_t c = 0; c < per_row; ++c, ++i) advantage[i] = mask[i] != 0 ? value : 0.0F;
}

}  // namespace dvla
