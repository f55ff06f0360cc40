// Calls into MuJoCo that must neither end the process nor write MUJOCO_LOG.TXT.
//
// By default mju_error prints, appends to a log file and calls exit(); its handler must not return, because
// the code behind it goes on with a bad pointer. An exception must not cross C frames. What the C language
// and MuJoCo's own documentation leave is longjmp, and MuJoCo's model compiler does the same. It is well
// defined here because only C frames of libmujoco (and this file's, which own nothing) lie between setjmp and
// longjmp: `guarded` takes a plain function and a pointer, and the callee must have nothing to destroy while
// it is inside a MuJoCo call. An mjData in which an error was raised may be reset (mj_resetData) or deleted.
//
// Warnings (bad positions, full contact buffers) are counted by MuJoCo in mjData::warning; inside a guarded
// call they are not printed. Outside of one, errors and warnings go to the handler that was there before.
#pragma once

#include <mujoco/mujoco.h>

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

namespace dvla::detail {

class MujocoGuard {
 public:
  /// Runs call(argument). True if it came back, false if MuJoCo raised an error: then error() says which.
  static bool guarded(void (*call)(void*), void* argument) {
    install();
    std::jmp_buf here;
    std::jmp_buf* const before = return_to_;
    return_to_ = &here;
    if (setjmp(here) != 0) {
      return_to_ = before;
      return false;
    }
    call(argument);
    return_to_ = before;
    return true;
  }

  /// The same for anything callable; it must not throw.
  template <class Call>
  static bool run(Call& call) {
    return guarded([](void* argument) { (*static_cast<Call*>(argument))(); }, &call);
  }

  /// While it lives, warnings of this thread's unguarded calls (the model compiler's) are one line on stderr.
  class Naming {
   public:
    explicit Naming(const char* what) {
      install();
      compiling_ = what;
    }
    ~Naming() { compiling_ = nullptr; }
    Naming(const Naming&) = delete;
    Naming& operator=(const Naming&) = delete;
  };

  /// Sets the handler once per process. Thread-safe; called by the rest.
  static void install() {
    static std::once_flag once;
#if mjVERSION_HEADER >= 4000000
    std::call_once(once, [] { previous_ = mju_setLogHandler(&MujocoGuard::handle); });
#else
    std::call_once(once, [] {
      previous_error_ = std::exchange(mju_user_error, &MujocoGuard::handle_error);
      previous_warning_ = std::exchange(mju_user_warning, &MujocoGuard::handle_warning);
    });
#endif
  }

  /// The last error that a guarded call on this thread met; one line.
  static const char* error() { return text_; }

 private:
  /// Keeps the first line of an error and leaves the guarded call.
  [[noreturn]] static void leave(const char* error) {
    std::size_t length = 0;
    for (const char* c = error; *c != '\0' && *c != '\n' && length + 1 < sizeof text_; ++c)
      text_[length++] = *c;
    text_[length] = '\0';
    std::longjmp(*return_to_, 1);
  }
  static void warn(const char* warning) {
    std::fprintf(stderr, "dvla: MuJoCo warns about %s: %s\n", compiling_, warning);
  }

#if mjVERSION_HEADER >= 4000000
  static void handle(const mjLogMessage* message) {
    if (return_to_ != nullptr) {
      if (message->level == mjLOG_ERROR) leave(message->subject);
    } else if (compiling_ != nullptr && message->level == mjLOG_WARNING) {
      warn(message->subject);
    } else if (previous_ != nullptr) {
      previous_(message);
    }
  }

  static inline mjfLogHandler previous_ = nullptr;
#else
  static void handle_error(const char* error) {
    if (return_to_ != nullptr) leave(error);
    if (previous_error_ != nullptr) return previous_error_(error);
    std::fprintf(stderr, "ERROR: %s\n", error);  // what MuJoCo does without a handler
    std::exit(EXIT_FAILURE);
  }
  static void handle_warning(const char* warning) {
    if (return_to_ != nullptr) return;
    if (compiling_ != nullptr) return warn(warning);
    if (previous_warning_ != nullptr) return previous_warning_(warning);
    std::fprintf(stderr, "WARNING: %s\n", warning);
  }

  static inline void (*previous_error_)(const char*) = nullptr;
  static inline void (*previous_warning_)(const char*) = nullptr;
#endif
  static inline thread_local std::jmp_buf* return_to_ = nullptr;
  static inline thread_local const char* compiling_ = nullptr;
  static inline thread_local char text_[256] = {};
};

}  // namespace dvla::detail
