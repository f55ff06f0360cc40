// What an algorithm's arithmetic counts as one: names that knobs of algorithms and models share with the
// arithmetic, so that knobs need not include it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// What has a ratio of its own: every token; a control step (log-probs summed over A); a decision (over C and
/// A); a decision whose log-probs are averaged instead (GSPO, Zheng et al., arXiv 2507.18071).
enum class LogProbLevel : std::uint8_t { token, action, chunk, sequence };

/// Are rewards, masks and advantages kept per control step, [T, B, C], or per decision, [T, B]?
enum class RewardLevel : std::uint8_t { action, chunk };

/// Does every valid element weigh the same, or every trajectory (aggregation.hpp)?
enum class Aggregation : std::uint8_t { masked_mean, trajectory_equal };

template <>
inline constexpr auto enum_names<LogProbLevel> = std::to_array<std::string_view>({"token", "action", "chunk",
                                                                                  "sequence"});
template <>
inline constexpr auto enum_names<RewardLevel> = std::to_array<std::string_view>({"action", "chunk"});
template <>
inline constexpr auto enum_names<Aggregation> = std::to_array<std::string_view>({"masked_mean",
                                                                                 "trajectory_equal"});

}  // namespace dvla
