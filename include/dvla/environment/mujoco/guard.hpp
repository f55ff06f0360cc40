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
#include <mutex>

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
    std::call_once(once, [] { previous_ = mju_setLogHandler(&MujocoGuard::handle); });
  }

  /// The last error that a guarded call on this thread met; one line.
  static const char* error() { return text_; }

 private:
  static void handle(const mjLogMessage* message) {
    if (return_to_ == nullptr && compiling_ != nullptr && message->level == mjLOG_WARNING) {
      std::fprintf(stderr, "dvla: MuJoCo warns about %s: %s\n", compiling_, message->subject);
      return;
    }
    if (return_to_ == nullptr) {
      if (previous_ != nullptr) previous_(message);
      return;
    }
    if (message->level != mjLOG_ERROR) return;
    std::size_t length = 0;
    for (const char* c = message->subject; *c != '\0' && *c != '\n' && length + 1 < sizeof text_; ++c)
      text_[length++] = *c;
    text_[length] = '\0';
    std::longjmp(*return_to_, 1);
  }

  static inline mjfLogHandler previous_ = nullptr;
  static inline thread_local std::jmp_buf* return_to_ = nullptr;
  static inline thread_local const char* compiling_ = nullptr;
  static inline thread_local char text_[256] = {};
};

}  // namespace dvla::detail
