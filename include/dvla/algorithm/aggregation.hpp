// From elements to one loss: who weighs how much, and by what the sum is divided.
//   loss = sum over elements of weight * loss_element / denominator
//   masked_mean:       weight = mask;               denominator = number of valid elements
//   trajectory_equal:  weight = mask * S / valid;   denominator = number of all elements, masked ones
//   included
// (S = mask elements of a whole trajectory, valid = those of this trajectory that count), which is RLinf's
// mean(L / (valid_len / max_steps) * mask). Over a whole batch that is the mean over trajectories of the mean
// over their steps, so a long episode weighs no more than a short one. The denominator belongs to the global
// batch of an optimiser step: a micro-batch divides by the same number, and accumulated gradients equal those
// of the whole batch exactly.
//
// Legend: T decisions, B episodes, R mask elements in a row (C at action level, 1 at chunk level).
// Where this differs from RLinf, on purpose: lengths are counted in the mask's own elements at both levels
// (RLinf counts control steps at chunk level too, so trajectories don't weigh quite the same there); every
// element of a masked mean is counted (RLinf's token level divides A times as many terms by the number of
// control steps); and RLinf normalises each micro-batch by itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "dvla/algorithm/extents.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// weight[t, b, :] from the loss mask. Both [T, B, R], R = per_row. An episode without a valid step gets
/// weight 0.
inline void loss_weights(Aggregation aggregation, std::size_t episodes, std::size_t per_row,
                         std::span<const std::uint8_t> mask, std::span<float> weight) {
  detail::expect_size("loss_weights: weight", weight.size(), mask.size());
  const std::size_t stride = episodes * per_row;
  if (stride == 0 || mask.size() % stride != 0)
    throw Error("loss_weights: a mask of " + std::to_string(mask.size()) + " elements is not [T, " +
                std::to_string(episodes) + ", " + std::to_string(per_row) + "].");
  if (aggregation == Aggregation::masked_mean) {
    for (std::size_t i = 0; i < mask.size(); ++i) weight[i] = mask[i] != 0 ? 1.0F : 0.0F;
    return;
  }
  const auto whole = static_cast<double>(mask.size() / episodes);
  for (std::size_t b = 0; b < episodes; ++b) {
    std::size_t valid = 0;
    for (std::size_t first = b * per_row; first < mask.size(); first += stride)
      for (std::size_t c = 0; c < per_row; ++c) valid += mask[first + c] != 0;
    const auto value = static_cast<float>(whole / static_cast<double>(std::max<std::size_t>(valid, 1)));
    for (std::size_t first = b * per_row; first < mask.size(); first += stride)
      for (std::size_t c = 0; c < per_row; ++c) weight[first + c] = mask[first + c] != 0 ? value : 0.0F;
  }
}

/// The part of these rows in a global batch's elements: what trainers that share it add up.
inline double loss_elements(Aggregation aggregation, std::size_t per_row, std::span<const float> weight,
                            std::span<const std::uint32_t> rows) {
  if (aggregation != Aggregation::masked_mean) return static_cast<double>(rows.size() * per_row);
  double elements = 0;
  for (const std::uint32_t row : rows)
    for (std::size_t c = 0; c < per_row; ++c) elements += weight[row * per_row + c];
  return elements;
}

/// What the loss of a global batch (the rows of one optimiser step) is divided by.
///   elements     loss_elements of all its rows, summed over the trainers
///   loss_units   elements of the loss behind one weight: LossShape::units_per_weight
///   all_rows     T*B, of all trainers; drawn_rows: how many of them are drawn at all. Mini-batches usually
///                leave wholly masked rows out; the mean of trajectory_equal still counts them, so each drawn
///                row stands for all_rows / drawn_rows rows.
inline double loss_denominator(Aggregation aggregation, double elements, std::size_t loss_units,
                               double all_rows, double drawn_rows) {
  if (aggregation != Aggregation::masked_mean) elements = elements * all_rows / drawn_rows;
  return elements * static_cast<double>(loss_units);
}

/// The same for one trainer, from the weights of its whole rollout, [T*B, R], and the row numbers of the
/// global batch.
inline double loss_denominator(Aggregation aggregation, std::size_t per_row, std::size_t loss_units,
                               std::span<const float> weight, std::span<const std::uint32_t> rows,
                               std::size_t drawn_rows) {
  const std::size_t all_rows = per_row == 0 ? 0 : weight.size() / per_row;
  if (drawn_rows == 0 || drawn_rows > all_rows || rows.size() > drawn_rows)
    throw Error("loss_denominator: " + std::to_string(rows.size()) + " rows out of " +
                std::to_string(drawn_rows) + " drawn out of " + std::to_string(all_rows) +
                " is not a batch.");
  return loss_denominator(aggregation, loss_elements(aggregation, per_row, weight, rows), loss_units,
                          static_cast<double>(all_rows), static_cast<double>(drawn_rows));
}

}  // namespace dvla
