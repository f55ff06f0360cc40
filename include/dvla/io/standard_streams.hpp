// A program whose standard streams are closed, whose reader is gone or whose disk is full goes on: what it
// prints is lost, and nothing else is.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>

namespace dvla::io {

/// Make one first in main(), before a file is opened or a thread is started. Descriptors 0 to 2 that are closed
/// are opened on /dev/null, for good: else the next files would get their numbers, and what is printed. While it
/// lives a write that cannot be done fails instead of ending the process: SIGPIPE and SIGXFSZ are ignored, unless
/// somebody handles them.
class SafeStreams {
 public:
  SafeStreams() {
    for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
      if (::fcntl(descriptor, F_GETFD) < 0)  // open(2) takes the lowest number that is free
        (void)::open("/dev/null", descriptor == STDIN_FILENO ? O_RDONLY : O_WRONLY);
    for (std::size_t i = 0; i < signals.size(); ++i) {
      ::sigaction(signals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler == SIG_DFL) ::signal(signals[i], SIG_IGN);
    }
  }
  ~SafeStreams() {
    for (std::size_t i = 0; i < signals.size(); ++i) ::sigaction(signals[i], &before_[i], nullptr);
  }
  SafeStreams(const SafeStreams&) = delete;
  SafeStreams& operator=(const SafeStreams&) = delete;

 private:
  static constexpr std::array signals{SIGPIPE, SIGXFSZ};
  std::array<struct sigaction, 2> before_{};
};

}  // namespace dvla::io
