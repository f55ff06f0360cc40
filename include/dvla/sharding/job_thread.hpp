// A thread that does jobs in the order in which they were posted: how collectives run beside the training lane,
// in the same order on every actor.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <future>
#include <optional>
#include <thread>
#include <utility>

#include "dvla/handoff/mailbox.hpp"

namespace dvla::detail {

/// One thread posts and waits. Once a job has thrown, later ones are not run and whoever waits for them gets
/// its exception. Waits have no deadline of their own: a job must have one. Who posts waits while 1024 are open.
class JobThread {
 public:
  using Done = std::shared_future<void>;

  JobThread() : thread_([this] { work(); }) {}
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  /// Does what was posted, then ends.
  ~JobThread() {
    tasks_.close();
    thread_.join();
  }

  Done post(std::function<void()> job) {
    Task task([this, job = std::move(job)] {
      if (error_) std::rethrow_exception(error_);
      try {
        job();
      } catch (...) {
        error_ = std::current_exception();
        throw;
      }
    });
    last_ = task.get_future();
    tasks_.push(std::move(task), endless, {});
    return last_;
  }
  /// Until all that was posted is done.
  void wait_all() const {
    if (last_.valid()) last_.get();
  }
  /// The same, whatever became of it.
  void settle() const noexcept {
    if (last_.valid()) last_.wait();
  }

 private:
  using Task = std::packaged_task<void()>;
  static constexpr auto endless = std::chrono::nanoseconds::max();

  void work() {
    while (std::optional<Task> task = tasks_.pop(endless, {})) (*task)();
  }

  mailbox<Task> tasks_{1024};
  Done last_;
  std::exception_ptr error_;  ///< of the jobs' thread
  std::thread thread_;
};

}  // namespace dvla::detail
