// dvla-test: tsan
// lane_group: the first failure ends every wait, nothing hangs, and wait() tells what happened where.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dvla/handoff/lane.hpp"

using namespace std::chrono_literals;
using dvla::lane;
using dvla::lane_group;

/// Runs `body` in a child, which must end by SIGABRT, and returns what it said on stderr. The child may not exit
/// instead: ThreadSanitizer would count the lanes that it leaves behind as leaked, and change its exit code.
template <class Body>
std::string said_before_abort(Body body) {
  int pipe_ends[2];
  REQUIRE(::pipe(pipe_ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe_ends[1], STDERR_FILENO);
    ::signal(SIGABRT, SIG_DFL);  // not doctest's, which would report the child's end as a failed test
    body();
    ::_exit(0);
  }
  ::close(pipe_ends[1]);
  std::string said;
  char part[256];
  for (ssize_t got; (got = ::read(pipe_ends[0], part, sizeof part)) > 0;)
    said.append(part, static_cast<std::size_t>(got));
  ::close(pipe_ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT));
  return said;
}

// The cases that fork are the first in this file: there is one thread then.
TEST_CASE("a lane that does not come back after a failure is named, and ends the process") {
  const std::string said = said_before_abort([] {
    lane_group lanes;
    lane& stuck = lanes.add("sampling", 0);
    lane& broken = lanes.add("training", 1);
    dvla::timed_semaphore never, working;
    lanes.start(stuck, [&](lane& self) {
      self.busy_with(7);
      working.release();
      never.acquire_for(1h);
    });
    lanes.start(broken, [&](lane&) {
      working.acquire_for(1h);
      throw dvla::Error("broken");
    });
    lanes.wait(50ms);
  });
  CHECK(said.find("lane 'sampling' on batch 7. The failure: broken") != std::string::npos);
}

TEST_CASE("lanes that do not come back after a failure are told of before the process ends") {
  const std::string said = said_before_abort([] {
    lane_group lanes;
    dvla::timed_semaphore working;
    lanes.start(lanes.add("training", 0), [&](lane& self) {
      self.busy_with(4);
      working.release();
      for (;;) std::this_thread::sleep_for(1h);
    });
    lanes.start(lanes.add("sampling", 0), [&](lane&) {
      working.acquire_for(1h);
      throw dvla::Error("the cube is gone");
    });
    lanes.wait(200ms, [](const std::string& what) { std::fprintf(stderr, "told: %s\n", what.c_str()); });
  });
  const std::string what =
      "0.2 s after a failure lanes have not come back, so the process ends; still at work: lane 'training' "
      "on batch 4. The failure: the cube is gone\n";
  CHECK(said == "told: " + what + "dvla: " + what);
}

TEST_CASE("a failure whose hook does not come back is told all the same") {
  const std::string said = said_before_abort([] {
    lane_group lanes;
    lanes.on_failure([] {
      for (;;) std::this_thread::sleep_for(1h);
    });
    lanes.start(lanes.add("training", 0), [](lane&) { throw dvla::Error("the cube is gone"); });
    lanes.wait(100ms);  // nothing but the failure's own lock is between its lane and this thread
  });
  CHECK(said.find("so the process ends. The failure: the cube is gone") != std::string::npos);
}

TEST_CASE("lanes that return are joined, and wait() returns") {
  lane_group lanes;
  lane& one = lanes.add("one", 4);
  lane& two = lanes.add("two", 4);
  int sum = 0;
  lanes.start(one, [&](lane&) {
    for (int i = 0; i < 100; ++i) two.inbox().push({i, 0, 0}, 60s, {});
    two.inbox().close();
  });
  lanes.start(two, [&](lane& self) {
    while (auto token = self.inbox().pop(60s, {})) sum += static_cast<int>(token->batch);
  });
  lanes.wait(60s);
  CHECK(sum == 4950);
  CHECK_FALSE(lanes.failed());
}

TEST_CASE("the first exception ends all waits, runs the hooks once and is rethrown as it was") {
  lane_group lanes;
  int hooks = 0;
  lanes.on_failure([&] { ++hooks; });
  for (const char* name : {"a", "b", "c"})
    lanes.start(lanes.add(name, 1), [](lane& self) { CHECK_FALSE(self.inbox().pop(1h, {})); });
  lanes.start(lanes.add("d", 1), [](lane&) { throw dvla::FormatError("torn file"); });
  CHECK_THROWS_WITH_AS(lanes.wait(60s), "torn file", dvla::FormatError);
  CHECK(hooks == 1);
  CHECK(lanes.failed());
}

TEST_CASE("a lane that should finish gets what is in its mailbox even after a failure") {
  lane_group lanes;
  lane& reader = lanes.add("reader", 8, lane::on_failure::finish);
  for (int i = 0; i < 5; ++i) reader.inbox().try_push({i, 0, 0});
  int seen = 0;
  dvla::timed_semaphore failed;
  lanes.on_failure([&] { failed.release(); });
  lanes.start(reader, [&](lane& self) {
    failed.acquire_for(60s);
    while (self.inbox().pop(60s, {})) ++seen;
  });
  lanes.start(lanes.add("broken", 0), [](lane&) { throw dvla::Error("x"); });
  CHECK_THROWS_AS(lanes.wait(60s), dvla::Error);
  CHECK(seen == 5);
}

TEST_CASE("a group that is left without wait() stops its lanes and joins them") {
  lane_group lanes;
  for (int i = 0; i < 4; ++i)
    lanes.start(lanes.add("waits", 1), [](lane& self) { self.inbox().pop(1h, {}); });
}

TEST_CASE("a wait that runs out also says who is still at work") {
  lane_group lanes;
  lane& slow = lanes.add("training", 1);
  slow.busy_with(3);
  dvla::mailbox<int> box(1);
  CHECK_THROWS_WITH_AS(lanes.naming_the_busy([&] {
    return box.pop(10ms, {"distribution", "trained weights", "training", 3});
  }),
                       "lane 'distribution' waited 0.01 s for trained weights from lane 'training' (batch "
                       "3); still at work: lane "
                       "'training' on batch 3; if its stage takes so long, raise the deadline "
                       "(schedule.deadline_s)",
                       dvla::DeadlineError);
}

TEST_CASE("what a stage throws becomes a LaneError with the original nested in it, whatever it is") {
  try {
    dvla::detail::run_stage("training", 4, [] { throw std::out_of_range("index 9"); });
    FAIL("did not throw");
  } catch (const dvla::LaneError& error) {
    CHECK(error.lane() == "training");
    CHECK(error.step() == 4);
    CHECK(std::string(error.what()) == "lane 'training' failed at step 4: index 9");
    CHECK_THROWS_AS(std::rethrow_if_nested(error), std::out_of_range);
  }
  CHECK_THROWS_WITH_AS(dvla::detail::run_stage("x", 0, [] { throw 42; }),
                       "lane 'x' failed at step 0: an exception that is not a std::exception",
                       dvla::LaneError);
}
