// Admission: how many batches may be live at once, which is what bounds the staleness of a batch.
// Design: "Staleness is admission". A rollout takes a permit when it STARTS and gets it back when the weights
// made from it are INSTALLED; with K + 1 permits no batch is trained more than K versions late.
#pragma once

#include <cstdint>
#include <string>

#include "dvla/handoff/semaphore.hpp"

namespace dvla {

/// K + 1 permits, for a run-time K of 0 to `Max`. All members may be called from any thread.
template <int Max>
class credit {
  static_assert(Max >= 0, "credit<Max>: the largest staleness is at least 0");

 public:
  /// Throws ConfigError unless 0 <= staleness <= Max.
  explicit credit(int staleness)
      : permits_(checked(staleness) + 1), free_(static_cast<std::uint32_t>(permits_)) {}

  int permits() const noexcept { return permits_; }

  bool try_acquire() noexcept { return free_.try_acquire(); }
  /// False: cancelled. Throws DeadlineError, worded by `reason`, when no permit comes back within `limit`.
  bool acquire(std::chrono::nanoseconds limit, const wait_reason& reason) {
    return free_.acquire(limit, reason);
  }

  /// False, and nothing changed, if no permit is out.
  bool try_release() noexcept { return free_.try_release(static_cast<std::uint32_t>(permits_)); }
  /// Throws Error if more permits come back than went out.
  void release() {
    if (!try_release())
      throw Error(
          "credit: a permit came back that was never taken; release exactly once per acquired permit");
  }

  /// Ends it: everyone who waits gets false.
  void cancel() noexcept { free_.cancel(); }

 private:
  static int checked(int staleness) {
    if (staleness < 0 || staleness > Max)
      throw ConfigError("staleness is ", staleness, ", choose 0 to ", Max);
    return staleness;
  }

  const int permits_;
  timed_semaphore free_;
};

}  // namespace dvla
