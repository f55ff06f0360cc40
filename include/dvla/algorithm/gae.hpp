// Generalised advantage estimation (Schulman et al., arXiv 1506.02438), and V-trace's targets (Espeholt et al.,
// arXiv 1802.01561), over rows that may hold several episodes one after the other.
//   delta_k  = r_k + gamma V_{k+1} - V_k             advantage_k = delta_k + gamma lambda advantage_{k+1}
//   target_k = advantage_k + V_k
// At the last element of an episode V_{k+1} is 0 where it was terminated, and the value of the observation that
// ended it, before any reset, where it was truncated; the recursion begins anew there either way. Definitions are
// RLinf's, which adds gamma V(final) to the last reward instead: the same number. All functions write what their
// episodes cover and nothing else, allocate nothing, and are safe to call from any thread on distinct outputs.
//
// Legend: T decisions, B rows, R elements of a decision (C control steps at action level, 1 at chunk level). Element
// k of a row is (t, r) = (k / R, k % R), and lies at (t * B + b) * R + r.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dvla/algorithm/extents.hpp"

namespace dvla {

/// One episode: elements [begin, end) of row b.
struct EpisodeSpan {
  std::size_t row = 0, begin = 0, end = 0;
  bool truncated = false;  ///< else terminated: nothing follows
  double final_value = 0;  ///< of the observation that ended it; counts where it is truncated
};

/// Where the elements of a row lie.
struct ElementLayout {
  std::size_t rows = 0;     ///< B
  std::size_t per_row = 1;  ///< R
  std::size_t operator()(std::size_t row, std::size_t element) const {
    return (element / per_row * rows + row) * per_row + element % per_row;
  }
};

/// advantage, target [T, B, R] of the episodes' elements, from reward and value [T, B, R].
inline void gae(const ElementLayout& at, std::span<const EpisodeSpan> episodes, std::span<const float> reward,
                std::span<const float> value, double gamma, double lambda, std::span<float> advantage,
                std::span<float> target) {
  detail::expect_size("gae: value", value.size(), reward.size());
  detail::expect_size("gae: advantage", advantage.size(), reward.size());
  detail::expect_size("gae: target", target.size(), reward.size());
  for (const EpisodeSpan& episode : episodes) {
    double next = episode.truncated ? episode.final_value : 0, sum = 0;
    for (std::size_t k = episode.end; k-- > episode.begin;) {
      const std::size_t i = at(episode.row, k);
      const double here = value[i];
      sum = reward[i] + gamma * next - here + gamma * lambda * sum;
      advantage[i] = static_cast<float>(sum);
      target[i] = static_cast<float>(sum + here);
      next = here;
    }
  }
}

/// V-trace: target [T, B, R] from log ratios log(pi / mu) [T, B, R] of the weights that are trained against those that
/// acted; `value` and the episodes' final values are those weights' own. Truncation of the ratios at 1, and
/// c = lambda min(1, ratio).
inline void v_trace(const ElementLayout& at, std::span<const EpisodeSpan> episodes,
                    std::span<const float> reward, std::span<const float> value,
                    std::span<const float> log_ratio, double gamma, double lambda, std::span<float> target) {
  detail::expect_size("v_trace: value", value.size(), reward.size());
  detail::expect_size("v_trace: log_ratio", log_ratio.size(), reward.size());
  detail::expect_size("v_trace: target", target.size(), reward.size());
  for (const EpisodeSpan& episode : episodes) {
    double next = episode.truncated ? episode.final_value : 0,
           sum = 0;  // sum: target - value of the next element
    for (std::size_t k = episode.end; k-- > episode.begin;) {
      const std::size_t i = at(episode.row, k);
      const double here = value[i], ratio = std::min(1.0, std::exp(static_cast<double>(log_ratio[i])));
      sum = ratio * (reward[i] + gamma * next - here + gamma * lambda * sum);
      target[i] = static_cast<float>(sum + here);
      next = here;
    }
  }
}

}  // namespace dvla
