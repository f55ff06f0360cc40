// A thread that does jobs in the order in which they were posted: how collectives run beside the training lane,
// in the same order on every actor.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

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
    put({});
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
    put(std::move(task));
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
  using Task = std::packaged_task<void()>;  // an empty one is the last

  void put(Task task) {
    {
      const std::scoped_lock lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }
  Task take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !tasks_.empty(); });
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    return task;
  }
  void work() {
    for (Task task = take(); task.valid(); task = take()) task();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  Done last_;
  std::exception_ptr error_;  ///< of the jobs' thread
  std::thread thread_;
};

}  // namespace dvla::detail
