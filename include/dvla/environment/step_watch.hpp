// StepWatch: finds a call to an environment, or to the model that acts in it, that does not come back. A thread cannot be stopped from outside, so
// it cannot be ended here either: whoever is told has to end the process past it. Design: "Rows that fail".
#pragma once

#include <algorithm>
#include <array>
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

  /// `on_hang` is called once, from the watch's thread, with a sentence that names the rows, or the model; the call
  /// that hangs goes on hanging. `failures` must outlive this.
  StepWatch(const RowFailures& failures, std::int64_t rows, std::chrono::nanoseconds deadline,
            std::function<void(const std::string&)> on_hang)
      : failures_(failures),
        rows_(rows),
        deadline_(deadline),
        on_hang_(std::move(on_hang)),
        thread_([this](std::stop_token stop) { watch(stop); }) {}

  enum Callee : std::uint8_t { environment, model };
  /// While it lives, a call is under way, begun now. One at a time of each; `watch` may be null.
  class Call {
   public:
    Call(StepWatch* watch, Callee callee) : began_(watch != nullptr ? &watch->began_[callee] : nullptr) {
      if (began_ != nullptr)
        began_->store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    }
    ~Call() {
      if (began_ != nullptr) began_->store(0, std::memory_order_relaxed);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    std::atomic<Clock::rep>* began_;
  };

 private:
  void watch(std::stop_token stop) {
    const auto pause = std::min<std::chrono::nanoseconds>(deadline_ / 10, std::chrono::seconds(1));
    std::unique_lock lock(mutex_);
    while (!waiting_.wait_for(lock, stop, pause, [] { return false; }) && !stop.stop_requested()) {
      const bool in_environment = is_late(environment);
      if (!in_environment && !is_late(model)) continue;
      std::string who;
      for (std::int64_t row = 0; in_environment && row < rows_; ++row)
        if (failures_.at_work(row)) who += (who.empty() ? "environment " : ", ") + std::to_string(row);
      if (who.empty()) who = in_environment ? "the environment" : "the model";
      on_hang_(who + " did not come back from " + (in_environment ? "a step or reset" : "acting") +
               " within " + detail::seconds_text(deadline_));
      return;
    }
  }
  bool is_late(Callee callee) const {
    const Clock::rep began = began_[callee].load(std::memory_order_relaxed);
    return began != 0 && Clock::now().time_since_epoch() - Clock::duration(began) >= deadline_;
  }

  const RowFailures& failures_;
  const std::int64_t rows_;
  const std::chrono::nanoseconds deadline_;
  const std::function<void(const std::string&)> on_hang_;
  std::array<std::atomic<Clock::rep>, 2> began_{};  ///< by callee; 0: none is under way
  std::mutex mutex_;
  std::condition_variable_any waiting_;
  std::jthread thread_;  // last: it uses the above
};

}  // namespace dvla
