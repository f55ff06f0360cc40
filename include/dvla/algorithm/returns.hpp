// Which steps of a rollout count, and what the first episode earned: loss mask and episode return.
// RLinf's definitions: an episode's steps count up to and including the one
// that ended it, terminated or truncated; what comes after belongs
// to the next episode (or to nobody) and carries neither loss nor reward. Does not bootstrap, discount or
// look at values. All functions write every element of their output, allocate nothing, and are safe to call
// from any thread on distinct outputs.
//
// Legend, time-major and contiguous: T decisions, B episodes (environments), C control steps per decision
// (the action chunk). A step is (t, c); the step after (t, C-1) is (t+1, 0). Flags are uint8, 0 or not 0.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dvla/algorithm/extents.hpp"

namespace dvla {

/// mask = 1 on the steps up to and including the episode's end. At chunk level a decision counts while
/// no earlier decision saw the end, so the chunk in which the episode ends counts as a whole. terminated_TBC,
/// truncated_TBC: [T, B, C]. mask: [T, B, C] or [T, B], by level.
inline void loss_mask(const RolloutExtents& extents, RewardLevel level,
                      std::span<const std::uint8_t> terminated_TBC,
                      std::span<const std::uint8_t> truncated_TBC, std::span<std::uint8_t> mask) {
  const auto [decisions, episodes, chunk] = extents;
  detail::expect_size("loss_mask: terminated", terminated_TBC.size(), extents.steps());
  detail::expect_size("loss_mask: truncated", truncated_TBC.size(), extents.steps());
  detail::expect_size("loss_mask: mask", mask.size(), extents.rows() * extents.per_row(level));
  for (std::size_t b = 0; b < episodes; ++b) {
    bool running = true;
    for (std::size_t t = 0; t < decisions; ++t) {
      const std::size_t row = t * episodes + b;
      if (level == RewardLevel::chunk) {
        mask[row] = running;
        std::uint8_t ended = 0;
        for (std::size_t c = 0; c < chunk; ++c)
          ended = static_cast<std::uint8_t>(ended | terminated_TBC[row * chunk + c] |
                                            truncated_TBC[row * chunk + c]);
        running = running && ended == 0;
      } else {
        for (std::size_t c = 0; c < chunk; ++c) {
          mask[row * chunk + c] = running;
          running = running && (terminated_TBC[row * chunk + c] | truncated_TBC[row * chunk + c]) == 0;
        }
      }
    }
  }
}

/// The first episode's return: the sum of its rewards up to and including the step that ended it. It is the
/// same at both reward levels, because a chunk's reward is the sum of the steps in it that count (see
/// chunk_rewards).
inline void episode_returns(const RolloutExtents& extents, std::span<const float> reward_TBC,
                            std::span<const std::uint8_t> terminated_TBC,
                            std::span<const std::uint8_t> truncated_TBC, std::span<float> return_B) {
  const auto [decisions, episodes, chunk] = extents;
  detail::expect_size("episode_returns: reward", reward_TBC.size(), extents.steps());
  detail::expect_size("episode_returns: terminated", terminated_TBC.size(), extents.steps());
  detail::expect_size("episode_returns: truncated", truncated_TBC.size(), extents.steps());
  detail::expect_size("episode_returns: return", return_B.size(), episodes);
  for (std::size_t b = 0; b < episodes; ++b) {
    double sum = 0;
    bool running = true;
    for (std::size_t t = 0; t < decisions && running; ++t)
      for (std::size_t c = 0; c < chunk && running; ++c) {
        const std::size_t step = (t * episodes + b) * chunk + c;
        sum += reward_TBC[step];
        running = (terminated_TBC[step] | truncated_TBC[step]) == 0;
      }
    return_B[b] = static_cast<float>(sum);
  }
}

/// DAPO's soft punishment of overlong episodes (arXiv 2503.14476, equation 13): `penalty` times how far into the last
/// `buffer` control steps of a pass an episode lasts, from 0 to 1, is taken off its return.
inline void punish_overlong(const RolloutExtents& extents, std::span<const std::uint8_t> terminated_TBC,
                            std::span<const std::uint8_t> truncated_TBC, std::size_t buffer, double penalty,
                            std::span<float> return_B) {
  const auto [decisions, episodes, chunk] = extents;
  detail::expect_size("punish_overlong: terminated", terminated_TBC.size(), extents.steps());
  detail::expect_size("punish_overlong: truncated", truncated_TBC.size(), extents.steps());
  detail::expect_size("punish_overlong: return", return_B.size(), episodes);
  const std::size_t whole = decisions * chunk;
  for (std::size_t b = 0; b < episodes; ++b) {
    std::size_t length = 0;
    for (bool running = true; length < whole && running; ++length) {
      const std::size_t step = (length / chunk * episodes + b) * chunk + length % chunk;
      running = (terminated_TBC[step] | truncated_TBC[step]) == 0;
    }
    const double into = static_cast<double>(length + buffer) - static_cast<double>(whole);
    return_B[b] -= static_cast<float>(penalty * std::clamp(into / static_cast<double>(buffer), 0.0, 1.0));
  }
}

/// Rewards at chunk level: the sum over each chunk of the steps that count. mask_TBC: loss_mask at action
/// level. (RLinf sums whole chunks. The two agree where an environment pays nothing after an end, as it
/// should.)
inline void chunk_rewards(const RolloutExtents& extents, std::span<const float> reward_TBC,
                          std::span<const std::uint8_t> mask_TBC, std::span<float> reward_TB) {
  detail::expect_size("chunk_rewards: reward", reward_TBC.size(), extents.steps());
  detail::expect_size("chunk_rewards: mask", mask_TBC.size(), extents.steps());
  detail::expect_size("chunk_rewards: output", reward_TB.size(), extents.rows());
  for (std::size_t row = 0; row < extents.rows(); ++row) {
    double sum = 0;
    for (std::size_t step = row * extents.chunk; step < (row + 1) * extents.chunk; ++step)
      if (mask_TBC[step] != 0) sum += reward_TBC[step];
    reward_TB[row] = static_cast<float>(sum);
  }
}

}  // namespace dvla
