// StepWatch: finds a call to an environment that does not come back. A thread cannot be stopped from outside, so
// it cannot be ended here either: whoever is told has to end the process past it. Design: "Rows that fail".
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

#include "dvla/environment/rows.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

/// One thread; it looks ten times a deadline, at least once a second.
class StepWatch {
 public:
  using Clock = std::chrono::steady_clock;

  /// `on_hang` is called once, from the watch's thread, with a sentence that names the rows; the call that hangs
  /// goes on hanging. `failures` must outlive this.
  StepWatch(const RowFailures& failures, std::int64_t rows, std::chrono::nanoseconds deadline,
            std::function<void(const std::string&)> on_hang)
      : failures_(failures),
        rows_(rows),
        deadline_(deadline),
        on_hang_(std::move(on_hang)),
        thread_([this](std::stop_token stop) { watch(stop); }) {}

  /// While it lives, a call is under way, begun now. One at a time; `watch` may be null.
  class Call {
   public:
    explicit Call(StepWatch* watch) : watch_(watch) {
      if (watch_ != nullptr)
        watch_->began_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    }
    ~Call() {
      if (watch_ != nullptr) watch_->began_.store(0, std::memory_order_relaxed);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    StepWatch* watch_;
  };

 private:
  void watch(std::stop_token stop) {
    const auto pause = std::min<std::chrono::nanoseconds>(deadline_ / 10, std::chrono::seconds(1));
    std::unique_lock lock(mutex_);
    while (!waiting_.wait_for(lock, stop, pause, [] { return false; }) && !stop.stop_requested()) {
      const Clock::rep began = began_.load(std::memory_order_relaxed);
      if (began == 0 || Clock::now().time_since_epoch() - Clock::duration(began) < deadline_) continue;
      std::string rows;
      for (std::int64_t row = 0; row < rows_; ++row)
        if (failures_.at_work(row)) rows += (rows.empty() ? "environment " : ", ") + std::to_string(row);
      on_hang_((rows.empty() ? "the environment" : rows) + " did not come back from a step or reset within " +
               detail::seconds_text(deadline_));
      return;
    }
  }

  const RowFailures& failures_;
  const std::int64_t rows_;
  const std::chrono::nanoseconds deadline_;
  const std::function<void(const std::string&)> on_hang_;
  std::atomic<Clock::rep> began_{0};
  std::mutex mutex_;
  std::condition_variable_any waiting_;
  std::jthread thread_;  // last: it uses the above
};

}  // namespace dvla
