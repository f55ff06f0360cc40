// SIGINT and SIGTERM become a clean stop while a signal_guard lives, so that a checkpoint can be written.
// The handler sets one atomic and touches nothing else. A third Ctrl-C ends the process as it would without a
// guard (launchers deliver the first one twice).
#pragma once

#include <signal.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/handoff/stop.hpp"

namespace dvla {

/// Scoped; guards nest (the innermost one's flag is set) and must be destroyed in reverse order. Process-wide
/// state: make and destroy guards in one thread. The signal may arrive in any thread. Throws Error if a
/// handler is refused.
class signal_guard {
 public:
  explicit signal_guard(stop_flag& stop)
      : outer_(target_.exchange(&stop)), outer_interrupts_(interrupts_.exchange(0)) {
    struct sigaction action {};
    action.sa_handler = &signal_guard::on_signal;
    action.sa_flags = SA_RESTART;
    ::sigemptyset(&action.sa_mask);
    if (::sigaction(SIGINT, &action, &old_interrupt_) != 0) refused(false);
    if (::sigaction(SIGTERM, &action, &old_terminate_) != 0) refused(true);
  }
  ~signal_guard() {
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    interrupts_.store(outer_interrupts_);
    target_.store(outer_);
  }
  signal_guard(const signal_guard&) = delete;
  signal_guard& operator=(const signal_guard&) = delete;

 private:
  static void on_signal(int signal) noexcept {
    if (stop_flag* stop = target_.load()) stop->request_stop(signal);
    if (signal == SIGINT && interrupts_.fetch_add(1) >= 2) {
      const int kept = errno;
      ::signal(SIGINT, SIG_DFL);
      ::raise(SIGINT);  // delivered when this handler returns
      errno = kept;
    }
  }

  [[noreturn]] void refused(bool undo_interrupt) {
    const int why = errno;
    if (undo_interrupt) ::sigaction(SIGINT, &old_interrupt_, nullptr);
    target_.store(outer_);
    throw Error(std::string("signal_guard: cannot install a handler: ") + std::strerror(why));
  }

  inline static std::atomic<stop_flag*> target_{nullptr};
  inline static std::atomic<int> interrupts_{0};
  static_assert(std::atomic<stop_flag*>::is_always_lock_free, "the handler reads it");
  stop_flag* outer_;
  int outer_interrupts_;
  struct sigaction old_interrupt_ {
  }, old_terminate_{};
};

}  // namespace dvla
