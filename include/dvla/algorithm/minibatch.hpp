// Which samples an optimiser step sees: valid rows, shuffled by seed, cut into mini-batches and
// micro-batches.
//   global batch   rows of one optimiser step (a mini-batch)
//   micro batch    rows of one forward and backward pass; gradients accumulate over global / micro of them
// Rule, as in RLinf: global % (micro * world) == 0.
// Rows whose mask is wholly 0 are not drawn: they would cost a forward pass and teach nothing. So the number
// of rows V varies, and V % global is rarely 0. Nothing is padded, repeated or thrown away: V rows make
// ceil(V / global) mini-batches whose sizes differ by at most one. (A last mini-batch with the few rows left
// over would be a full Adam step on almost no data.) Divide each by its own loss_denominator. Deterministic:
// order depends on the seed and the mask only. Allocates when constructed and never after. Not thread-safe.
//
// Legend: T decisions, B episodes, R mask elements in a row; row n = t * B + b.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"

namespace dvla {

struct BatchSizes {
  std::size_t global = 256;  ///< rows of an optimiser step, over all trainers
  std::size_t micro = 64;    ///< rows of a forward pass in one trainer
  std::size_t world = 1;     ///< trainers that share a global batch

  std::size_t local() const { return global / world; }  ///< rows of an optimiser step in one trainer

  void validate() const {
    if (global == 0 || micro == 0 || world == 0 || global % (micro * world) != 0)
      throw ConfigError("global_batch is " + std::to_string(global) + ", micro_batch " +
                        std::to_string(micro) + " and there are " + std::to_string(world) +
                        " trainers: global_batch must be a multiple of micro_batch * trainers = " +
                        std::to_string(micro * world) + ", and none may be 0.");
  }
};

/// One trainer's mini-batches of one epoch over one rollout.
class MiniBatches {
 public:
  using Row = std::uint32_t;

  /// max_rows: T * B of the largest rollout that draw() will see.
  MiniBatches(std::size_t max_rows, const BatchSizes& sizes) : sizes_(sizes) {
    sizes.validate();
    if (max_rows > std::numeric_limits<Row>::max())
      throw ConfigError("A rollout of " + std::to_string(max_rows) +
                        " rows is more than 2^32 - 1: use fewer episodes.");
    rows_.reserve(max_rows);
  }

  /// Starts an epoch: collects the rows with at least one valid element and shuffles them (Fisher-Yates).
  /// mask: [T * B, R]. Seed with mix_seed(run seed, iteration, epoch) for another order each time.
  void draw(std::span<const std::uint8_t> mask, std::size_t per_row, std::uint64_t seed) {
    if (per_row == 0 || mask.size() % per_row != 0 || mask.size() / per_row > rows_.capacity())
      throw Error("MiniBatches: a mask of " + std::to_string(mask.size()) + " elements, " +
                  std::to_string(per_row) + " in a row, does not fit the " +
                  std::to_string(rows_.capacity()) + " rows that were reserved.");
    rows_.clear();
    for (std::size_t first = 0; first < mask.size(); first += per_row)
      if (std::any_of(mask.begin() + static_cast<std::ptrdiff_t>(first),
                      mask.begin() + static_cast<std::ptrdiff_t>(first + per_row),
                      [](auto flag) { return flag != 0; }))
        rows_.push_back(static_cast<Row>(first / per_row));
    size_ = (rows_.size() + sizes_.local() - 1) / sizes_.local();
    SplitMix64 random(seed);
    for (std::size_t i = 1; i < rows_.size(); ++i)
      std::swap(rows_[i], rows_[static_cast<std::size_t>(random.below(i + 1))]);
  }

  /// Cuts the rows that were drawn into `minis` mini-batches instead: the number that all trainers agreed on.
  /// With fewer rows than that, some are empty.
  void cut(std::size_t minis) { size_ = minis; }

  std::size_t rows() const { return rows_.size(); }  ///< V, for loss_denominator's drawn_rows
  /// Number of mini-batches: optimiser steps of this epoch. 0 if nothing is valid.
  std::size_t size() const { return size_; }

  std::span<const Row> mini(std::size_t index) const {
    const std::size_t begin = rows_.size() * index / size(), end = rows_.size() * (index + 1) / size();
    return std::span<const Row>(rows_).subspan(begin, end - begin);
  }

  std::size_t micros(std::size_t index) const {
    return (mini(index).size() + sizes_.micro - 1) / sizes_.micro;
  }

  /// The micro-th part of a mini-batch: `micro` rows, the last one what is left.
  std::span<const Row> micro(std::size_t index, std::size_t part) const {
    const std::span<const Row> all = mini(index);
    const std::size_t begin = part * sizes_.micro;
    return all.subspan(begin, std::min(sizes_.micro, all.size() - begin));
  }

 private:
  BatchSizes sizes_;
  std::size_t size_ = 0;
  std::vector<Row> rows_;
};

/// target[i, :] = source[rows[i], :], per_row elements each.
template <class Value>
void gather_rows(std::span<const Value> source, std::size_t per_row, std::span<const std::uint32_t> rows,
                 std::span<Value> target) {
  if (target.size() != rows.size() * per_row)
    throw Error("gather_rows: the target has " + std::to_string(target.size()) + " elements for " +
                std::to_string(rows.size()) + " rows of " + std::to_string(per_row) + ".");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = source.subspan(rows[i] * per_row, per_row);
    std::copy(row.begin(), row.end(), target.begin() + static_cast<std::ptrdiff_t>(i * per_row));
  }
}

}  // namespace dvla
