// dvla-test: tsan
// The synchronous schedule keeps the swimlane's contract in one thread.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "dvla/handoff/signals.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "simulated.hpp"

using dvla::SynchronousRunner;

TEST_CASE("each batch passes all stages before the next one starts, with lag 0") {
  simulated stages(0);
  dvla::run_options how;
  how.batches = 20;
  int turn = 0;
  bool in_turn = true;
  stages.on_call = [&](int lane, std::int64_t batch) { in_turn = in_turn && turn++ == batch * 5 + lane; };
  const auto result = SynchronousRunner::run(stages, how);
  CHECK(in_turn);
  CHECK(result.batches == 20);
  CHECK(result.max_staleness == 0);
  CHECK(result.staleness == std::vector<std::int64_t>{20});
  CHECK(stages.observed_order == counted(0, 20));
  CHECK(stages.entered == 0x100000);  // once, as `every`
}

TEST_CASE("a stage's exception is a LaneError with lane and batch") {
  constexpr const char* lane_name[] = {"sampling", "training", "distribution", "reception", "observer"};
  for (int lane = 0; lane < 5; ++lane) {
    simulated stages(0);
    stages.on_call = [&](int in, std::int64_t batch) {
      if (in == lane && batch == 2) throw std::domain_error("dropped");
    };
    dvla::run_options how;
    how.batches = 5;
    try {
      SynchronousRunner::run(stages, how);
      FAIL("did not throw");
    } catch (const dvla::LaneError& error) {
      CHECK(error.lane() == lane_name[lane]);
      CHECK(error.step() == 2);
      CHECK_THROWS_AS(std::rethrow_if_nested(error), std::domain_error);
    }
  }
}

TEST_CASE("a signal ends the run after the running batch") {
  dvla::stop_flag stop;
  dvla::signal_guard guard(stop);
  simulated stages(0);
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
  simulated stages(0);
  dvla::run_options how;
  how.staleness = 1;
  CHECK_THROWS_WITH_AS(SynchronousRunner::run(stages, how), "run_options.staleness is 1, choose 0",
                       dvla::ConfigError);
}
