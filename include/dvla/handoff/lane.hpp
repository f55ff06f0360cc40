// A lane: a named thread with a mailbox, because its work blocks. A lane_group: lanes that live and die
// together. Design: "A lane's exception carries lane name and step, stops the others, drains, and is rethrown
// by wait()". What a lane does is the runner's business (schedule/); how tokens get from lane to lane is the
// wiring's.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/handoff/mailbox.hpp"
#include "dvla/handoff/token.hpp"

namespace dvla {

namespace detail {
/// Runs one stage of one batch. What it throws leaves as a LaneError with the original nested in it, but for
/// the LaneError of another stage that ran inside it.
template <class Work>
void run_stage(const std::string& lane, std::int64_t batch, Work&& work) {
  try {
    work();
  } catch (const LaneError&) {
    throw;
  } catch (...) {
    std::throw_with_nested(LaneError(lane, batch, error_text(std::current_exception())));
  }
}
}  // namespace detail

/// One thread, its name and its mailbox. Made by lane_group::add.
class lane {
 public:
  /// What a failure elsewhere does to tokens that wait in the mailbox.
  enum class on_failure { drop, finish };

  lane(std::string name, std::size_t capacity, on_failure then)
      : name_(std::move(name)), then_(then), inbox_(capacity > 0 ? new mailbox<Token>(capacity) : nullptr) {}

  const std::string& name() const noexcept { return name_; }
  /// Only for lanes with a capacity.
  mailbox<Token>& inbox() noexcept { return *inbox_; }
  /// Says which batch is in work, for the message of a wait that runs out.
  void busy_with(std::int64_t batch) noexcept { batch_.store(batch, std::memory_order_relaxed); }
  void idle() noexcept { batch_.store(-1, std::memory_order_relaxed); }
  std::int64_t batch() const noexcept { return batch_.load(std::memory_order_relaxed); }

 private:
  friend class lane_group;
  void end() noexcept {
    if (inbox_) then_ == on_failure::drop ? inbox_->cancel() : inbox_->close();
  }

  const std::string name_;
  const on_failure then_;
  std::unique_ptr<mailbox<Token>> inbox_;
  std::atomic<std::int64_t> batch_{-1};
  std::thread thread_;
};

/// Owns lanes. The first exception that leaves a lane's body ends all mailboxes and runs the on_failure
/// hooks, so that every wait returns. add, hook, start, wait: from one thread, in this order.
class lane_group {
 public:
  /// Stops what still runs and joins it.
  ~lane_group() {
    if (running_ > 0) end_all();
    join();
  }

  /// capacity: tokens that the mailbox holds; 0: a lane without one.
  lane& add(std::string name, std::size_t capacity, lane::on_failure then = lane::on_failure::drop) {
    return *lanes_.emplace_back(std::make_unique<lane>(std::move(name), capacity, then));
  }
  /// Run once, by the failing thread; must not throw nor wait for a lane: `[&] { credit.cancel(); }`.
  void on_failure(std::function<void()> hook) { hooks_.push_back(std::move(hook)); }

  /// Starts `body(lane&)` in the lane's thread.
  template <class Body>
  void start(lane& self, Body body) {
    self.thread_ = std::thread([this, &self, body = std::move(body)]() mutable {
      ::pthread_setname_np(::pthread_self(), self.name_.substr(0, 15).c_str());
      try {
        body(self);
      } catch (...) {
        fail(std::current_exception());
      }
      self.idle();
      finished_.release();
    });
    ++running_;
  }

  /// Ends loops early, and publishes nothing: what failed is read under a lock, or when the lanes have been joined.
  bool failed() const noexcept { return failed_.load(std::memory_order_relaxed); }

  /// Runs `wait` and adds to a DeadlineError which lanes were at work when it ran out.
  template <class Wait>
  decltype(auto) naming_the_busy(Wait&& wait) {
    try {
      return wait();
    } catch (const DeadlineError& late) {
      const std::string who = busy();
      throw DeadlineError(
          late.what(), who,
          who.empty() ? "" : "; if its stage takes so long, raise the deadline (schedule.deadline_s)");
    }
  }

  /// Waits until every lane is done, then rethrows the first exception. As a thread cannot be stopped from
  /// outside, a lane that is still in its stage `grace` after another one failed is named, to `told` and on
  /// stderr, and ends the process (std::abort): a job that hangs in silence is worse.
  void wait(std::chrono::nanoseconds grace, const std::function<void(const std::string&)>& told = {}) {
    while (running_ > 0) {
      const bool had_failed = failed();
      if (finished_.acquire_for(grace) == wait_result::acquired)
        --running_;
      else if (had_failed)
        give_up(grace, told);
    }
    join();
    if (first_) std::rethrow_exception(first_);
  }

 private:
  void fail(std::exception_ptr error) noexcept {
    {
      const std::lock_guard lock(failing_);
      if (first_) return;
      first_ = std::move(error);
    }
    failed_.store(true, std::memory_order_relaxed);
    end_all();
  }

  void end_all() noexcept {
    for (auto& each : lanes_) each->end();
    for (auto& hook : hooks_) hook();
  }

  void join() noexcept {
    for (auto& each : lanes_)
      if (each->thread_.joinable()) each->thread_.join();
  }

  std::string busy() const {
    std::string text;
    for (const auto& each : lanes_)
      if (const std::int64_t batch = each->batch(); batch >= 0)
        text += (text.empty() ? "; still at work: lane '" : ", lane '") + each->name_ + "' on batch " +
                std::to_string(batch);
    return text;
  }

  [[noreturn]] void give_up(std::chrono::nanoseconds grace,
                            const std::function<void(const std::string&)>& told) noexcept {
    std::unique_lock lock(failing_);
    const std::string text = detail::seconds_text(grace) +
                             " after a failure lanes have not come back, so the process ends" + busy() +
                             ". The failure: " + detail::error_text(first_);
    lock.unlock();
    if (told) told(text);
    std::fprintf(stderr, "dvla: %s\n", text.c_str());
    std::abort();
  }

  std::vector<std::unique_ptr<lane>> lanes_;
  std::vector<std::function<void()>> hooks_;
  timed_semaphore finished_;
  std::size_t running_ = 0;
  std::mutex failing_;
  std::exception_ptr first_;
  std::atomic<bool> failed_{false};
};

}  // namespace dvla
