// Advantages to mean 0 and deviation 1 over the elements that count, of all trainers that share a batch. RLinf's two
// forms: PPO's divides by the unbiased deviation + 1e-5, REINFORCE++'s by the root of the variance, at least 1e-8.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dvla/algorithm/extents.hpp"

namespace dvla {

enum class Spread : std::uint8_t { unbiased, population };

/// The elements whose mask is set; the others become 0. `sum(span of doubles)` adds up over all trainers, which all call
/// it. With fewer than two elements, all 0. Allocates nothing.
template <class Sum>
void normalise(std::span<const std::uint8_t> mask, std::span<float> values, Spread spread, Sum sum) {
  detail::expect_size("normalise: values", values.size(), mask.size());
  double first[2] = {0, 0};
  for (std::size_t i = 0; i < mask.size(); ++i)
    if (mask[i] != 0) first[0] += static_cast<double>(values[i]), first[1] += 1;
  sum(std::span<double>(first));
  const double count = first[1], mean = first[0] / std::max(count, 1.0);
  double squares[1] = {0};
  for (std::size_t i = 0; i < mask.size(); ++i)
    if (mask[i] != 0)
      squares[0] += (static_cast<double>(values[i]) - mean) * (static_cast<double>(values[i]) - mean);
  sum(std::span<double>(squares));
  double scale = 0;
  if (count >= 2)
    scale = spread == Spread::unbiased ? 1 / (std::sqrt(squares[0] / (count - 1)) + 1e-5)
                                       : 1 / std::sqrt(std::max(squares[0] / count, 1e-8));
  for (std::size_t i = 0; i < mask.size(); ++i)
    values[i] = mask[i] == 0 ? 0.0F : static_cast<float>((static_cast<double>(values[i]) - mean) * scale);
}

}  // namespace dvla
