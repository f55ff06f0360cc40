// dvla-test: tsan
// The swimlane: staleness exactly K, buffers, order, stops, failures, one core, a thousand starts.
#include <doctest/doctest.h>

#include "dvla/handoff/signals.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/testing/schedule.hpp"
#include "test/handoff/one_core.hpp"

using namespace std::chrono_literals;
using dvla::SwimlaneRunner;
using dvla::testing::lane_names;
using dvla::testing::WatchedStages;

namespace {
dvla::run_options options(std::int64_t batches, int staleness) {
  dvla::run_options out;
  out.batches = batches;
  out.staleness = staleness;
  out.deadline = 60s;
  return out;
}

WatchedStages staged(const dvla::run_options& how) { return {how.staleness, how.first_batch, how.batches}; }

dvla::run_result run(WatchedStages& stages, const dvla::run_options& how) {
  const auto result = SwimlaneRunner<3>::run(stages, how);
  for (const std::string& fault : stages.faults()) FAIL_CHECK(fault);
  return result;
}

/// `count` batches with a trainer that is slower than the sampler: the lag is K for all but the first K.
void check_slow_trainer(std::int64_t count, int k) {
  CAPTURE(k);
  const auto how = options(count, k);
  WatchedStages stages = staged(how);
  stages.slow_trainer = true;
  const auto result = run(stages, how);
  CHECK(result.max_staleness == k);
  CHECK(stages.most_lag == k);
  CHECK(stages.least_lag == 0);
  CHECK(result.staleness.back() == count - k);
}
}  // namespace

TEST_CASE("SwimlaneRunner keeps what a schedule promises") {
  for (const std::string& violation : dvla::testing::check_schedule<SwimlaneRunner<3>>(3))
    FAIL_CHECK(violation);
  for (const std::string& violation : dvla::testing::check_schedule<SwimlaneRunner<0>>(0))
    FAIL_CHECK(violation);
}

TEST_CASE("the lag of a batch reaches K when training is slower") {
  for (int k = 0; k <= 3; ++k) check_slow_trainer(50, k);
}

TEST_CASE("each lane enters once") {
  const auto how = options(20, 1);
  WatchedStages stages = staged(how);
  run(stages, how);
  CHECK(stages.entered == 0x011111);  // `every` not at all
}

namespace {
// The ring as it must NOT be wired: the permit comes back when the trainer pops the batch.
std::int64_t lag_with_early_credit(std::int64_t batches, int staleness) {
  dvla::credit<3> admission(staleness);
  dvla::wiring wires;
  std::atomic<std::int64_t> installed{0};
  std::int64_t most_lag = 0;
  dvla::timed_semaphore trained_all;
  dvla::lane_group lanes;
  auto& sampling = lanes.add("sampling", 0);
  auto& training = lanes.add("training", 4);
  auto& reception = lanes.add("reception", static_cast<std::size_t>(batches));
  auto& sampled = wires.add([&](const dvla::Token&) { return admission.try_release(); });
  auto& popped = wires.add([&](const dvla::Token& token) { return training.inbox().try_push(token); });
  auto& trained = wires.add([](const dvla::Token&) { return true; });
  wires.connect(sampled, popped);
  wires.connect(popped, sampled);  // the mistake
  wires.connect(trained,
                wires.add([&](const dvla::Token& token) { return reception.inbox().try_push(token); }));
  lanes.start(sampling, [&](dvla::lane&) {
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      admission.acquire(60s, {});
      wires.send(sampled, {.batch = batch, .version = installed.load()});
    }
    training.inbox().close();
  });
  lanes.start(training, [&](dvla::lane& self) {
    while (auto token = self.inbox().pop(60s, {})) {
      wires.send(popped, *token);
      most_lag = std::max(most_lag, token->batch - token->version);
      wires.send(trained, *token);
    }
    trained_all.release();
    reception.inbox().close();
  });
  lanes.start(reception, [&](dvla::lane& self) {
    trained_all.acquire_for(60s);  // a slow network
    while (auto token = self.inbox().pop(60s, {})) installed.store(token->batch + 1);
  });
  lanes.wait(60s);
  return most_lag;
}
}  // namespace

TEST_CASE("giving the permit back when the trainer merely pops the batch breaks the bound") {
  for (int k = 0; k <= 3; ++k) CHECK(lag_with_early_credit(3000, k) == 2999);
}

TEST_CASE("the ring turns on one core") {
  const OneCore core;
  REQUIRE(core.good());
  for (int k = 0; k <= 3; ++k) check_slow_trainer(200, k);
}

TEST_CASE("a thousand starts and stops") {
  for (int i = 0; i < 1000; ++i) {
    const auto how = options(i % 3, i % 4);
    WatchedStages stages = staged(how);
    REQUIRE(run(stages, how).batches == i % 3);
  }
}

TEST_CASE("all lanes throwing at once is one LaneError") {
  for (int i = 0; i < 50; ++i) {
    const auto how = options(10, 3);
    WatchedStages stages = staged(how);
    stages.on_call = [&](int, std::int64_t batch) {
      if (batch == 3) throw 42;
    };
    CHECK_THROWS_AS(run(stages, how), dvla::LaneError);
  }
}

TEST_CASE("a deadline that runs out names who waited for whom and who is still at work") {
  for (int lane = 0; lane < 4; ++lane) {
    CAPTURE(lane);
    auto how = options(5, 0);
    how.deadline = 100ms;
    WatchedStages stages = staged(how);
    stages.on_call = [&](int in, std::int64_t batch) {
      if (in == lane && batch == 2) stages.wait_for_cancel();
    };
    std::string said;
    try {
      run(stages, how);
    } catch (const dvla::DeadlineError& error) {
      said = error.what();
    }
    CAPTURE(said);
    CHECK(said.find("lane '") == 0);
    CHECK(said.find("' waited 0.1 s for ") != std::string::npos);
    CHECK(said.find(" from lane '") != std::string::npos);
    CHECK(said.find(std::string("; still at work: lane '") + lane_names[static_cast<std::size_t>(lane)] +
                    "' on batch 2") != std::string::npos);
  }
}

TEST_CASE("a slow observer holds the lanes back instead of growing a queue") {
  auto how = options(300, 1);
  WatchedStages stages = staged(how);
  constexpr int backlog = SwimlaneRunner<3>::observer_backlog;
  std::atomic<std::int64_t> observing{0};
  std::atomic<bool> within{true};
  stages.on_call = [&](int lane, std::int64_t batch) {
    if (lane == 4) observing.store(batch + 1);
    if (lane == 4 && batch == 0) dvla::timed_semaphore().acquire_for(50ms);
    if (lane == 3 && batch > observing.load() + backlog) within = false;
  };
  CHECK(run(stages, how).batches == 300);
  CHECK(within);
  how.deadline = 50ms;
  WatchedStages stuck = staged(how);
  stuck.on_call = [&](int lane, std::int64_t batch) {
    if (lane == 4 && batch == 0) stuck.wait_for_cancel();
  };
  CHECK_THROWS_WITH_AS(run(stuck, how), doctest::Contains("lane 'observer' on batch 0"), dvla::DeadlineError);
}

TEST_CASE("SIGINT and SIGTERM end a run as a stop request does, and are told") {
  for (const int signal : {SIGINT, SIGTERM}) {
    dvla::stop_flag stop;
    dvla::signal_guard guard(stop);
    auto how = options(1000000, 1);
    how.stop = &stop;
    WatchedStages stages = staged(how);
    stages.on_call = [&](int lane, std::int64_t batch) {
      if (lane == 1 && batch == 5) ::raise(signal);
    };
    const auto result = run(stages, how);
    CHECK(result.stopped);
    CHECK(result.signal == signal);
    CHECK(stages.done[4] == result.batches);
  }
}

TEST_CASE("options out of range are refused by name and range") {
  WatchedStages stages(3, 0, 1);
  const auto refused = [&](auto change, const char* sentence) {
    auto how = options(1, 0);
    change(how);
    CHECK_THROWS_WITH_AS(run(stages, how), sentence, dvla::ConfigError);
  };
  refused([](auto& how) { how.staleness = 4; }, "run_options.staleness is 4, choose 0 to 3");
  refused([](auto& how) { how.batches = -1; }, "run_options.batches is -1, choose 0 or more");
  refused([](auto& how) { how.deadline = 0s; }, "run_options.deadline is 0 s, choose more than 0 s");
  refused([](auto& how) { how.grace = 0s; }, "run_options.grace is 0 s, choose more than 0 s");
  refused([](auto& how) { how.first_batch = -2; }, "run_options.first_batch is -2, choose 0 or more");
}

namespace {
struct careless {  // no observe, no enter
  void sample(dvla::Token& token) {
    if (what == 0) token.version = -1;
    if (what == 1) ++token.batch;
  }
  void train(dvla::Token&) {}
  void distribute(dvla::Token&) {}
  void receive(dvla::Token&) {}
  int what;
};
}  // namespace

TEST_CASE("stages that break their side of the contract are told what and where") {
  dvla::run_options how = options(3, 1);
  careless old_weights{0}, other_batch{1}, good{2};
  CHECK_THROWS_WITH_AS(SwimlaneRunner<1>::run(old_weights, how),
                       doctest::Contains("reports weight version -1"), dvla::LaneError);
  CHECK_THROWS_WITH_AS(SwimlaneRunner<1>::run(other_batch, how),
                       doctest::Contains("changed the token's batch"), dvla::LaneError);
  CHECK(SwimlaneRunner<1>::run(good, how).batches == 3);
}
