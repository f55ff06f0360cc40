// The clipped value loss of PPO with Huber's error, and its slope; RLinf's definitions.
//   h(e) = e^2 / 2 where |e| < delta, else delta (|e| - delta / 2)
//   loss = max(h(target - v), h(target - v_old - clip(v - v_old, -limit, limit)))
//   total = coefficient * sum(weight * loss) / denominator
// Torch-free; sums in double, so that micro-batches which share a denominator add up to the whole.
//
// Legend: N rows, R values a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "dvla/algorithm/extents.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

struct ValueLossKnobs {
  double coefficient = 1;
  double clip = 0.2;        ///< how far a value may move in an update and still be corrected; 0: off
  double huber_delta = 10;  ///< > 0
};

/// All [N, R]; d_value is overwritten: d total / d value, 0 where the weight is 0. Counts into `stats`. Masked rows
/// may hold anything, NaN included.
inline void value_loss(std::span<const float> value, std::span<const float> old_value,
                       std::span<const float> target, std::span<const float> weight,
                       const ValueLossKnobs& knobs, double denominator, std::span<float> d_value,
                       LossStats& stats) {
  for (const auto& [name, size] : {std::pair{"value_loss: old value", old_value.size()},
                                   {"value_loss: target", target.size()},
                                   {"value_loss: weight", weight.size()},
                                   {"value_loss: slope", d_value.size()}})
    detail::expect_size(name, size, value.size());
  const double delta = knobs.huber_delta;
  const auto huber = [delta](double error) {
    const double size = std::abs(error);
    return size < delta ? 0.5 * error * error : delta * (size - 0.5 * delta);
  };
  for (std::size_t i = 0; i < value.size(); ++i) {
    d_value[i] = 0;
    if (weight[i] == 0) continue;
    const double scale = knobs.coefficient * static_cast<double>(weight[i]) / denominator;
    const double moved = static_cast<double>(value[i]) - static_cast<double>(old_value[i]);
    const double error = static_cast<double>(target[i]) - static_cast<double>(value[i]);
    double loss = huber(error), slope = -std::clamp(error, -delta, delta);
    if (knobs.clip > 0 && std::abs(moved) > knobs.clip) {
      const double limited = huber(static_cast<double>(target[i]) - static_cast<double>(old_value[i]) -
                                   std::clamp(moved, -knobs.clip, knobs.clip));
      if (limited > loss) {
        loss = limited;
        slope = 0;
        ++stats.values_clipped;
      }
    }
    ++stats.values;
    stats.value_loss += scale * loss;
    d_value[i] = static_cast<float>(scale * slope);
  }
}

}  // namespace dvla
