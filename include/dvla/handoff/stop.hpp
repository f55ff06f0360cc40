// A request to stop cleanly: one atomic, so that a signal handler may set it (see signals.hpp).
// Asking wakes nobody: no further batch starts, and every batch that has started is finished. What has no
// batches (warm start, evaluation, pictures) ends in Stopped at its next boundary.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <utility>

#include "dvla/core/error.hpp"

namespace dvla {

/// Shared between whoever asks (any thread, or a signal handler) and the schedule that runs.
class stop_flag {
 public:
  stop_flag() = default;
  /// Is asked when one of these is, which must outlive it; null: none.
  stop_flag(const stop_flag* one, const stop_flag* other) : one_(one), other_(other) {}
  /// Is asked when `one` is, or when `asks`, which is called each time and may throw, says so.
  stop_flag(const stop_flag* one, std::function<bool()> asks) : one_(one), asks_(std::move(asks)) {}

  void request_stop() noexcept { ask(asked_by_program); }
  /// As request_stop(), remembering the signal's number. Async-signal-safe.
  void request_stop(int signal) noexcept { ask(signal); }
  bool stop_requested() const {
    return why_.load(std::memory_order_acquire) != 0 || (one_ && one_->stop_requested()) ||
           (other_ && other_->stop_requested()) || (asks_ && asks_());
  }
  /// The signal that asked; 0 if none did.
  int signal() const noexcept {
    const int why = why_.load(std::memory_order_acquire);
    return why > 0 ? why : 0;
  }
  /// Forgets the request, for another run.
  void reset() noexcept { why_.store(0, std::memory_order_relaxed); }

 private:
  static constexpr int asked_by_program = -1;
  void ask(int why) noexcept {
    int none = 0;
    why_.compare_exchange_strong(none, why, std::memory_order_release);  // the first reason stays
  }

  std::atomic<int> why_{0};
  const stop_flag *one_ = nullptr, *other_ = nullptr;
  const std::function<bool()> asks_;
  static_assert(std::atomic<int>::is_always_lock_free, "a signal handler sets it");
};

/// A call ended early because a stop_flag asked; what it was to give is missing, everything else is in order.
class Stopped : public Error {
 public:
  using Error::Error;
};

/// Throws Stopped, naming `what` was stopped, if there is a flag and it asks.
inline void throw_if_stopped(const stop_flag* stop, const char* what) {
  if (stop && stop->stop_requested()) throw Stopped(std::string(what) + " was stopped by request");
}

}  // namespace dvla
