// What a model thinks of the observations that truncated episodes ended with, for bootstrapping: the rollout asks
// the weights that sampled, the trainer its own. In calls of a bounded number of rows. Torch-free.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dvla/core/observation.hpp"

namespace dvla {

/// Episodes of one batch, by their entries of [S, B]. Keeps its room. One thread at a time.
class FinalValues {
 public:
  void clear() {
    entries_.clear();
    rows_.clear();
  }
  /// The episode of entry `i`, if it was truncated.
  void add(const EpisodeTable& table, std::int64_t i) {
    if (table.end[i] != static_cast<std::uint8_t>(EpisodeEnd::truncated)) return;
    entries_.push_back(i);
    rows_.push_back(final_row(table, i));
  }
  std::size_t size() const { return entries_.size(); }
  /// At most `count` episodes from number `first` on, if there are any: `call(rows, values)` asks the model for
  /// `width` values of each of these rows of final_observations, of which the first counts; then `write(entry,
  /// value)` each.
  template <class Call, class Write>
  void ask(std::size_t first, std::size_t count, std::size_t width, Call call, Write write) {
    first = std::min(first, rows_.size());
    const auto rows =
        std::span<const std::int64_t>(rows_).subspan(first, std::min(count, rows_.size() - first));
    if (rows.empty()) return;
    values_.resize(std::max(values_.size(), count * width));
    call(rows, std::span(values_).first(rows.size() * width));
    for (std::size_t i = 0; i < rows.size(); ++i) write(entries_[first + i], values_[i * width]);
  }

 private:
  std::vector<std::int64_t> entries_, rows_;
  std::vector<float> values_;
};

}  // namespace dvla
