// A thread that does numbered jobs in the order in which they were posted: how collectives run beside the
// training lane, in the same order on every actor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace dvla::detail {

/// One thread posts and waits. Once a job has thrown, later ones are not run and whoever waits for them gets
/// its exception. Waits have no deadline of their own: a job must have one.
class JobThread {
 public:
  explicit JobThread(std::function<void(std::int64_t)> run)
      : run_(std::move(run)), thread_([this] { work(); }) {}
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  /// Does what was posted, then ends.
  ~JobThread() {
    {
      const std::scoped_lock lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  /// Returns how many were posted up to here, this one included: what wait() takes.
  std::int64_t post(std::int64_t job) {
    {
      const std::scoped_lock lock(mutex_);
      jobs_.push_back(job);
    }
    changed_.notify_all();
    return ++posted_;
  }
  /// Until that many are done.
  void wait(std::int64_t count) {
    if (done_.load(std::memory_order_acquire) >= count) return;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_.load(std::memory_order_relaxed) >= count || error_; });
    if (done_.load(std::memory_order_relaxed) < count) std::rethrow_exception(error_);
  }
  void wait_all() { wait(posted_); }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ends_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const std::int64_t job = jobs_.front();
      jobs_.pop_front();
      if (error_) continue;
      lock.unlock();
      std::exception_ptr error;
      try {
        run_(job);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error)
        error_ = error;
      else
        done_.fetch_add(1, std::memory_order_release);
      changed_.notify_all();
    }
  }

  std::function<void(std::int64_t)> run_;
  std::int64_t posted_ = 0;  ///< by the thread that posts
  std::atomic<std::int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::int64_t> jobs_;
  std::exception_ptr error_;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace dvla::detail
