// The batches that a run has trained, one row each, and which comes next. Training appends to it, an observer
// that lags behind copies out of it. Memory grows with the run: about 450 bytes a batch. Writes no files: see
// checkpoint.hpp. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "dvla/algorithm/update_stats.hpp"
#include "dvla/pipeline/rollout_worker.hpp"

namespace dvla {

/// One batch's way through the lanes, as the observer sees it. In a job: over all actors.
struct Iteration {
  std::int64_t batch = 0;
  UpdateStats update;
  std::int64_t staleness = 0;  ///< versions between the weights trained and the oldest that sampled
  RolloutCounts counts;        ///< totals of all batches trained up to this one
  double elapsed_s = 0;        ///< since train() began, when this batch had been trained
};

/// add() and at() may be called in two threads at once; all else while no lane runs, or by the one that adds.
class History {
 public:
  /// Batches that begin() makes room for; more room comes as it is needed.
  static constexpr std::int64_t room = std::int64_t{1} << 17;

  /// All batches trained since the start of the run. On an actor that was none before: of which the earlier
  /// ones are empty.
  const std::vector<Iteration>& iterations() const { return iterations_; }
  /// Number of the next batch = version of the trainer's weights.
  std::int64_t next_batch() const { return next_; }
  /// Totals of the batches trained.
  const RolloutCounts& trained() const { return trained_; }

  /// A resumed run's.
  void continue_from(std::int64_t batch, std::vector<Iteration> iterations) {
    next_ = batch;
    iterations_ = std::move(iterations);
  }
  /// On a rank that does not train, and so adds nothing.
  void skip_to(std::int64_t batch) { next_ = batch; }
  /// Before `batches` more are trained.
  void begin(std::int64_t batches) {
    iterations_.resize(static_cast<std::size_t>(next_));
    iterations_.reserve(static_cast<std::size_t>(next_ + std::min(batches, room)));
    trained_ = iterations_.empty() ? RolloutCounts{} : iterations_.back().counts;
  }
  /// In the midst of training, on a rank that may train from now on: what those who trained so far have
  /// counted.
  void take_over(const RolloutCounts& trained) {
    iterations_.resize(static_cast<std::size_t>(next_));
    trained_ = trained;
  }

  /// The next batch is trained, from so many steps; fills in the totals.
  void add(Iteration iteration, const RolloutCounts& steps) {
    trained_ += steps;
    iteration.counts = trained_;
    next_ = iteration.batch + 1;
    const std::scoped_lock lock(mutex_);
    iterations_.push_back(iteration);
  }
  /// Batches that at() has.
  std::size_t size() const {
    const std::scoped_lock lock(mutex_);
    return iterations_.size();
  }
  Iteration at(std::int64_t batch) const {
    const std::scoped_lock lock(mutex_);
    return iterations_[static_cast<std::size_t>(batch)];
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Iteration> iterations_;
  RolloutCounts trained_;
  std::int64_t next_ = 0;
};

}  // namespace dvla
