// dvla-test: tsan
// The synchronous schedule keeps the swimlane's contract in one thread.
#include <doctest/doctest.h>

#include "dvla/handoff/signals.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/testing/schedule.hpp"

using dvla::SynchronousRunner;
using dvla::testing::WatchedStages;

TEST_CASE("SynchronousRunner keeps what a schedule promises") {
  for (const std::string& violation : dvla::testing::check_schedule<SynchronousRunner>(0))
    FAIL_CHECK(violation);
}

TEST_CASE("each batch passes all stages before the next one starts, in one thread that enters once") {
  WatchedStages stages(0, 0, 20);
  dvla::run_options how;
  how.batches = 20;
  int calls = 0;
  bool in_turn = true;
  stages.on_call = [&](int lane, std::int64_t batch) { in_turn = in_turn && calls++ == batch * 5 + lane; };
  SynchronousRunner::run(stages, how);
  CHECK(in_turn);
  CHECK(calls == 100);
  CHECK(stages.entered == 0x100000);  // once, as `every`
}

TEST_CASE("a signal ends the run after the running batch") {
  dvla::stop_flag stop;
  dvla::signal_guard guard(stop);
  WatchedStages stages(0, 0, 100);
  stages.on_call = [&](int lane, std::int64_t batch) {
    if (lane == 1 && batch == 3) ::raise(SIGTERM);
  };
  dvla::run_options how;
  how.batches = 100;
  how.stop = &stop;
  const auto result = SynchronousRunner::run(stages, how);
  CHECK(result.batches == 4);
  CHECK(result.stopped);
  CHECK(result.signal == SIGTERM);
}

TEST_CASE("a staleness other than 0 is refused") {
  WatchedStages stages(1, 0, 1);
  dvla::run_options how;
  how.staleness = 1;
  CHECK_THROWS_WITH_AS(SynchronousRunner::run(stages, how), "run_options.staleness is 1, choose 0",
                       dvla::ConfigError);
}
