// A thread that does jobs in the order in which they were posted: how collectives run beside the training lane,
// in the same order on every actor.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <thread>
#include <utility>

#include "dvla/handoff/mailbox.hpp"

namespace dvla::detail {

/// One thread posts and waits. Once a job has thrown, later ones are not run and whoever waits for them gets
/// its exception. Waits have no deadline of their own: a job must have one.
class JobThread {
 public:
  using Done = std::shared_future<void>;

  JobThread() : thread_([this] { work(); }) {}
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  /// Does what was posted, then ends.
  ~JobThread() {
    jobs_.close();
    thread_.join();
  }

  Done post(std::function<void()> job) {
    std::packaged_task<void()> task([this, job = std::move(job)] {
      if (error_) std::rethrow_exception(error_);
      try {
        job();
      } catch (...) {
        error_ = std::current_exception();
        throw;
      }
    });
    last_ = task.get_future();
    jobs_.push(std::move(task), forever, {});
    return last_;
  }
  /// Until all that was posted is done.
  void wait_all() const {
    if (last_.valid()) last_.get();
  }

 private:
  static constexpr std::chrono::nanoseconds forever = std::chrono::nanoseconds::max();
  void work() {
    while (auto job = jobs_.pop(forever, {})) (*job)();
  }

  mailbox<std::packaged_task<void()>> jobs_{256};
  Done last_;
  std::exception_ptr error_;  ///< of the jobs' thread
  std::thread thread_;
};

}  // namespace dvla::detail
