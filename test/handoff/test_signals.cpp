// dvla-test: tsan
// signal_guard: the signals that ask a process to end set the flag while it lives, and only then.
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "dvla/handoff/signals.hpp"

using dvla::signal_guard;
using dvla::stop_flag;

namespace {
volatile sig_atomic_t outer_calls = 0;
void outer_handler(int) { outer_calls = outer_calls + 1; }
}  // namespace

namespace {
/// What `work` gives in a process of its own, whose signals are as a shell leaves them; -1: it was killed.
template <class Work>
int in_a_process(Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : signal_guard::signals) ::signal(signal, SIG_DFL);
    ::_exit(work());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
}  // namespace

TEST_CASE("a signal that the process was started to ignore stays ignored, as SIGHUP does under nohup") {
  for (const int ignored : {SIGHUP, SIGINT, SIGUSR1}) {
    CAPTURE(ignored);
    CHECK(in_a_process([&] {
            ::signal(ignored, SIG_IGN);
            stop_flag stop;
            {
              signal_guard guard(stop);
              for (int i = 0; i < 4; ++i) ::raise(ignored);
              if (stop.stop_requested()) return 1;
              ::raise(SIGTERM);
              if (stop.signal() != SIGTERM) return 2;
            }
            return ::signal(ignored, SIG_DFL) == SIG_IGN ? 0 : 3;
          }) == 0);
  }
}

TEST_CASE("what a scheduler sends before it kills asks for a stop, and kills without a guard") {
  for (const int signal : {SIGHUP, SIGUSR1, SIGUSR2, SIGTERM}) {
    CAPTURE(signal);
    CHECK(in_a_process([&] {
            stop_flag stop;
            signal_guard guard(stop);
            ::kill(::getpid(), signal);
            ::kill(::getpid(), signal);
            return stop.signal() == signal ? 0 : 1;
          }) == 0);
    CHECK(in_a_process([&] {
            stop_flag stop;
            { signal_guard guard(stop); }
            ::kill(::getpid(), signal);
            return 0;
          }) == -1);
  }
  CHECK(dvla::signal_name(SIGUSR1) == "SIGUSR1");
  CHECK(dvla::signal_name(SIGHUP) == "SIGHUP");
}

TEST_CASE("a signal sets the flag and remembers its number") {
  for (int signal : signal_guard::signals) {
    ::signal(signal, SIG_DFL);  // it may be ignored here
    stop_flag stop;
    signal_guard guard(stop);
    CHECK_FALSE(stop.stop_requested());
    ::raise(signal);
    CHECK(stop.stop_requested());
    CHECK(stop.signal() == signal);
  }
}

TEST_CASE("a request by the program has no signal, and the first reason stays") {
  stop_flag stop;
  signal_guard guard(stop);
  stop.request_stop();
  ::raise(SIGTERM);
  CHECK(stop.stop_requested());
  CHECK(stop.signal() == 0);
  stop.reset();
  CHECK_FALSE(stop.stop_requested());
}

TEST_CASE("old handlers come back, also when guards nest") {
  struct sigaction mine {
  }, old{};
  mine.sa_handler = outer_handler;
  REQUIRE(::sigaction(SIGTERM, &mine, &old) == 0);
  stop_flag outer, inner;
  {
    signal_guard first(outer);
    {
      signal_guard second(inner);
      ::raise(SIGTERM);
      CHECK(inner.stop_requested());
      CHECK_FALSE(outer.stop_requested());
    }
    ::raise(SIGTERM);
    CHECK(outer.stop_requested());
  }
  CHECK(outer_calls == 0);
  ::raise(SIGTERM);
  CHECK(outer_calls == 1);
  ::sigaction(SIGTERM, &old, nullptr);
}

TEST_CASE("the third Ctrl-C ends the process, two do not") {
  const pid_t child = ::fork();
  if (child == 0) {
    stop_flag stop;
    signal_guard guard(stop);
    ::raise(SIGINT);
    ::raise(SIGINT);
    if (!stop.stop_requested()) ::_exit(1);
    ::raise(SIGINT);
    ::_exit(2);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGINT);
}

TEST_CASE("what is written before a stop is asked for is seen by who is told of it, and of the signal") {
  for (int round = 0; round < 50; ++round) {
    stop_flag stop, more;
    int written = 0, again = 0;  // ThreadSanitizer looks on
    std::thread other([&] {
      written = 1;
      stop.request_stop();
      again = 1;
      more.request_stop(SIGTERM);
    });
    while (!stop.stop_requested()) {
    }
    CHECK(written == 1);
    while (more.signal() == 0) {
    }
    CHECK(again == 1);
    other.join();
  }
}
