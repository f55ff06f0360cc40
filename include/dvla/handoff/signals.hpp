// The signals by which a process is asked to end become a clean stop while a signal_guard lives, so that a
// checkpoint can be written: SIGINT, SIGTERM, and what schedulers and terminals send before they kill, SIGHUP,
// SIGUSR1 and SIGUSR2. The handler sets one atomic and touches nothing else. A third Ctrl-C ends the process as
// it would without a guard (launchers deliver the first one twice).
#pragma once

#include <signal.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/handoff/stop.hpp"

namespace dvla {

/// "SIGUSR1".
inline std::string signal_name(int signal) {
  const char* const known = ::sigabbrev_np(signal);
  return "SIG" + (known ? std::string(known) : std::to_string(signal));
}

/// Scoped; guards nest (the innermost one's flag is set) and must be destroyed in reverse order. Process-wide
/// state: make and destroy guards in one thread. The signal may arrive in any thread. A signal that is ignored
/// when the guard is made (SIGHUP under nohup) stays ignored. Throws Error if a handler is refused.
class signal_guard {
 public:
  explicit signal_guard(stop_flag& stop)
      : outer_(target_.exchange(&stop)), outer_interrupts_(interrupts_.exchange(0)) {
    for (; installed_ < signals.size(); ++installed_) {
      struct sigaction action {};
      struct sigaction& old = old_[installed_];
      action.sa_handler = &signal_guard::on_signal;
      action.sa_flags = SA_RESTART;
      ::sigemptyset(&action.sa_mask);
      const int signal = signals[installed_];
      if (::sigaction(signal, nullptr, &old) == 0 &&
          (old.sa_handler == SIG_IGN || ::sigaction(signal, &action, nullptr) == 0))
        continue;
      const int why = errno;
      restore();
      throw Error("signal_guard: cannot install a handler for ", signal_name(signal), ": ",
                  std::strerror(why));
    }
  }
  ~signal_guard() { restore(); }
  signal_guard(const signal_guard&) = delete;
  signal_guard& operator=(const signal_guard&) = delete;

  static constexpr std::array signals{SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

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
  void restore() noexcept {
    while (installed_ > 0) {
      --installed_;
      ::sigaction(signals[installed_], &old_[installed_], nullptr);
    }
    interrupts_.store(outer_interrupts_);
    target_.store(outer_);
  }

  inline static std::atomic<stop_flag*> target_{nullptr};
  inline static std::atomic<int> interrupts_{0};
  static_assert(std::atomic<stop_flag*>::is_always_lock_free, "the handler reads it");
  stop_flag* outer_;
  int outer_interrupts_;
  std::size_t installed_ = 0;
  std::array<struct sigaction, signals.size()> old_{};
};

}  // namespace dvla
