// dvla-test: tsan
// The swimlane: staleness exactly K, buffers, order, stops, failures, one core, a thousand starts.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sched.h>

#include <thread>

#include "dvla/handoff/signals.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "simulated.hpp"

using namespace std::chrono_literals;
using dvla::SwimlaneRunner;

namespace {
constexpr const char* lane_name[] = {"sampling", "training", "distribution", "reception", "observer"};

dvla::run_options options(std::int64_t batches, int staleness) {
  dvla::run_options out;
  out.batches = batches;
  out.staleness = staleness;
  out.deadline = 60s;
  return out;
}

dvla::run_result run(simulated& stages, const dvla::run_options& how) {
  stages.start_at(how.first_batch, how.batches);
  return SwimlaneRunner<3>::run(stages, how);
}
}  // namespace

TEST_CASE("the lag of a batch reaches K when training is slower, and never exceeds it") {
  for (int k = 0; k <= 3; ++k) {
    CAPTURE(k);
    simulated stages(k);
    stages.slow_trainer = true;
    const auto result = run(stages, options(50, k));
    CHECK(result.max_staleness == k);
    CHECK(stages.most_lag == k);
    CHECK(stages.least_lag == 0);
    CHECK(result.staleness.size() == static_cast<std::size_t>(k) + 1);
    CHECK(result.staleness.back() == 50 - k);  // all but the first K batches
    CHECK_FALSE(stages.buffer_clash);
  }
}

TEST_CASE("the lag stays within K whatever the timing, and all batches pass all lanes in order") {
  for (int k = 0; k <= 3; ++k) {
    simulated stages(k);
    const auto result = run(stages, options(2000, k));
    CHECK(result.batches == 2000);
    CHECK_FALSE(result.stopped);
    CHECK(stages.most_lag <= k);
    CHECK(result.max_staleness == stages.most_lag);
    CHECK(stages.sampled_order == counted(0, 2000));
    CHECK(stages.received_order == counted(0, 2000));
    CHECK(stages.observed_order == counted(0, 2000));
    CHECK_FALSE(stages.buffer_clash);
    CHECK(stages.entered == 0x011111);  // each lane once, `every` not at all
  }
}

TEST_CASE("a run continues where another one ended") {
  simulated stages(2);
  auto how = options(10, 2);
  run(stages, how);
  how.first_batch = 10;
  const auto result = run(stages, how);
  CHECK(result.batches == 10);
  CHECK(stages.received_order == counted(0, 20));
  CHECK(stages.most_lag <= 2);
}

TEST_CASE("without a batch to run nothing is called") {
  simulated stages(1);
  CHECK(run(stages, options(0, 1)).batches == 0);
  CHECK(stages.sampled_order.empty());
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
      wires.send(sampled, {batch, installed.load(), 0});
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
  cpu_set_t before, one;
  REQUIRE(::sched_getaffinity(0, sizeof before, &before) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
  for (int k = 0; k <= 3; ++k) {
    simulated stages(k);
    stages.slow_trainer = true;
    CHECK(run(stages, options(200, k)).max_staleness == k);
  }
  ::sched_setaffinity(0, sizeof before, &before);
}

TEST_CASE("a thousand starts and stops") {
  for (int i = 0; i < 1000; ++i) {
    simulated stages(i % 4);
    const int batches = i % 3;
    REQUIRE(run(stages, options(batches, i % 4)).batches == batches);
  }
}

TEST_CASE("an exception in any lane at any batch stops the others and names lane and batch") {
  constexpr std::int64_t batches = 9;
  for (int k : {0, 1, 3})
    for (int lane = 0; lane < 5; ++lane)
      for (std::int64_t at : {std::int64_t{0}, batches / 2, batches - 1}) {
        CAPTURE(k);
        CAPTURE(lane);
        CAPTURE(at);
        simulated stages(k);
        stages.on_call = [&](int in, std::int64_t batch) {
          if (in == lane && batch == at) throw std::domain_error("the arm fell off");
        };
        try {
          run(stages, options(batches, k));
          FAIL("did not throw");
        } catch (const dvla::LaneError& error) {
          CHECK(error.lane() == lane_name[lane]);
          CHECK(error.step() == at);
          CHECK(std::string(error.what()).find("the arm fell off") != std::string::npos);
          CHECK_THROWS_AS(std::rethrow_if_nested(error), std::domain_error);
        }
      }
}

TEST_CASE("all lanes throwing at once is one LaneError") {
  for (int i = 0; i < 50; ++i) {
    simulated stages(3);
    stages.on_call = [&](int, std::int64_t batch) {
      if (batch == 3) throw 42;
    };
    CHECK_THROWS_AS(run(stages, options(10, 3)), dvla::LaneError);
  }
}

TEST_CASE("a deadline that runs out names who waited for whom and who is still at work") {
  for (int lane = 0; lane < 4; ++lane) {
    CAPTURE(lane);
    simulated stages(0);
    stages.on_call = [&](int in, std::int64_t batch) {
      if (in == lane && batch == 2) dvla::timed_semaphore().acquire_for(400ms);
    };
    auto how = options(5, 0);
    how.deadline = 100ms;
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
    CHECK(said.find(std::string("; still at work: lane '") + lane_name[lane] + "' on batch 2") !=
          std::string::npos);
  }
}

TEST_CASE("a slow observer holds the lanes back instead of growing a queue") {
  simulated stages(1);
  constexpr int backlog = SwimlaneRunner<3>::observer_backlog;
  std::atomic<std::int64_t> observing{0};
  std::atomic<bool> within{true};
  stages.on_call = [&](int lane, std::int64_t batch) {
    if (lane == 4) observing.store(batch + 1);
    if (lane == 4 && batch == 0) dvla::timed_semaphore().acquire_for(50ms);
    if (lane == 3 && batch > observing.load() + backlog) within = false;
  };
  CHECK(run(stages, options(300, 1)).batches == 300);
  CHECK(within);
  CHECK(stages.observed_order == counted(0, 300));
  auto how = options(300, 1);
  how.deadline = 50ms;
  simulated stuck(1);
  stuck.on_call = [&](int lane, std::int64_t batch) {
    if (lane == 4 && batch == 0) dvla::timed_semaphore().acquire_for(300ms);
  };
  CHECK_THROWS_WITH_AS(run(stuck, how), doctest::Contains("lane 'observer' on batch 0"), dvla::DeadlineError);
}

TEST_CASE("a stop request lets no further batch start and finishes those that have") {
  for (int signal : {0, SIGINT, SIGTERM})
    for (int k : {0, 1, 3}) {
      dvla::stop_flag stop;
      dvla::signal_guard guard(stop);
      simulated stages(k);
      stages.on_call = [&](int lane, std::int64_t batch) {
        if (lane == 1 && batch == 5) signal ? static_cast<void>(::raise(signal)) : stop.request_stop();
      };
      auto how = options(1000000, k);
      how.stop = &stop;
      const auto result = run(stages, how);
      CHECK(result.stopped);
      CHECK(result.signal == signal);
      CHECK(result.batches >= 6);
      CHECK(result.batches <= 6 + k + 1);
      CHECK(stages.trained == result.batches);
      CHECK(stages.installed == result.batches);
      CHECK(stages.sampled_order == counted(0, result.batches));
      CHECK(stages.observed_order == counted(0, result.batches));
    }
}

TEST_CASE("a stop request before the start runs nothing") {
  dvla::stop_flag stop;
  stop.request_stop();
  simulated stages(1);
  auto how = options(5, 1);
  how.stop = &stop;
  const auto result = run(stages, how);
  CHECK(result.batches == 0);
  CHECK(result.stopped);
}

TEST_CASE("options out of range are refused by name and range") {
  simulated stages(0);
  auto how = options(1, 4);
  CHECK_THROWS_WITH_AS(run(stages, how), "run_options.staleness is 4, choose 0 to 3", dvla::ConfigError);
  how = options(-1, 0);
  CHECK_THROWS_WITH_AS(run(stages, how), "run_options.batches is -1, choose 0 or more", dvla::ConfigError);
  how = options(1, 0);
  how.deadline = 0s;
  CHECK_THROWS_WITH_AS(run(stages, how), "run_options.deadline is 0 s, choose more than 0 s",
                       dvla::ConfigError);
  how = options(1, 0);
  how.first_batch = -2;
  CHECK_THROWS_WITH_AS(run(stages, how), "run_options.first_batch is -2, choose 0 or more",
                       dvla::ConfigError);
}

namespace {
struct careless {  // no observe, no enter
  void sample(dvla::Token& token) {
    if (what == 0) token.version = -1;
    if (what == 1) ++token.batch;
  }
  void train(dvla::Token& token) {
    if (what != 2) token.version = token.batch + 1;
  }
  void distribute(dvla::Token&) {}
  void receive(dvla::Token&) {}
  int what;
};
}  // namespace

TEST_CASE("stages that break their side of the contract are told what and where") {
  dvla::run_options how = options(3, 1);
  careless old_weights{0}, other_batch{1}, no_version{2}, good{3};
  CHECK_THROWS_WITH_AS(SwimlaneRunner<1>::run(old_weights, how),
                       doctest::Contains("reports weight version -1"), dvla::LaneError);
  CHECK_THROWS_WITH_AS(SwimlaneRunner<1>::run(other_batch, how),
                       doctest::Contains("changed the token's batch"), dvla::LaneError);
  CHECK_THROWS_WITH_AS(SwimlaneRunner<1>::run(no_version, how),
                       doctest::Contains("token.version = token.batch + 1"), dvla::LaneError);
  CHECK(SwimlaneRunner<1>::run(good, how).batches == 3);
}
