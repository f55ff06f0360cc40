// dvla-test: tsan
// signal_guard: SIGINT and SIGTERM set the flag while it lives, and only then.
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dvla/handoff/signals.hpp"

using dvla::signal_guard;
using dvla::stop_flag;

namespace {
volatile sig_atomic_t outer_calls = 0;
void outer_handler(int) { outer_calls = outer_calls + 1; }
}  // namespace

TEST_CASE("a signal sets the flag and remembers its number") {
  for (int signal : {SIGINT, SIGTERM}) {
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
