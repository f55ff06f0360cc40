// dvla-test: tsan
// A ring that is cut in two: one runner with a rollout's lanes, one with an actor's, and two queues between
// them in place of the planes.
#include <doctest/doctest.h>

#include <thread>

#include "dvla/handoff/mailbox.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"

using namespace std::chrono_literals;
using dvla::lane_share;
using dvla::Token;

namespace {

/// Both planes of a pair: batches one way, weight versions the other; bounded.
struct pair_of_processes {
  dvla::mailbox<Token> batches{8}, weights{8};
};

struct rollout_stages {
  pair_of_processes& between;
  std::int64_t fails_at = -1;
  void sample(Token& token) {
    if (token.batch == fails_at) throw std::runtime_error("the simulator fell over");
    if (!between.batches.try_push(token)) throw std::runtime_error("more live batches than admitted");
  }
  void train(Token&) { throw std::runtime_error("a rollout does not train"); }
  void distribute(Token&) { throw std::runtime_error("a rollout does not distribute"); }
  void receive(Token& token) {
    const auto weights = between.weights.pop(20s, {"reception", "weights", "actor", token.batch});
    if (!weights || weights->version != token.batch + 1) throw std::runtime_error("weights out of order");
  }
};

struct actor_stages {
  pair_of_processes& between;
  std::int64_t ends_at = -1;
  bool slow = false;
  std::vector<std::int64_t> trained{};
  void sample(Token&) { throw std::runtime_error("an actor does not sample"); }
  bool arrive(Token& token) {
    if (token.batch == ends_at) return false;
    const auto batch = between.batches.pop(20s, {"training", "a batch", "rollout", token.batch});
    if (!batch || batch->batch != token.batch) throw std::runtime_error("batches out of order");
    token.version = batch->version;
    return true;
  }
  void train(Token& token) {
    if (slow) std::this_thread::sleep_for(200us);
    trained.push_back(token.batch);
  }
  void distribute(Token& token) {
    if (!between.weights.try_push(token))
      throw std::runtime_error("more versions under way than live batches");
  }
  void receive(Token&) { throw std::runtime_error("an actor does not receive"); }
};

template <class Runner, class Stages>
dvla::run_result run(Stages& stages, lane_share share, int staleness, std::int64_t batches) {
  dvla::run_options options;
  options.share = share;
  options.staleness = staleness;
  options.batches = batches;
  options.deadline = 20s;
  return Runner::run(stages, options);
}

}  // namespace

TEST_CASE("a rollout and an actor pass every batch, and the lag stays within K") {
  for (int k = 0; k <= 3; ++k) {
    CAPTURE(k);
    pair_of_processes between;
    rollout_stages rollout{between};
    actor_stages actor{between, -1, true};
    dvla::run_result sampled;
    std::thread other([&] { sampled = run<dvla::SwimlaneRunner<3>>(rollout, lane_share::rollout, k, 200); });
    const auto trained = run<dvla::SwimlaneRunner<3>>(actor, lane_share::actor, k, 200);
    other.join();
    CHECK(sampled.batches == 200);
    CHECK(trained.batches == 200);
    CHECK(trained.max_staleness == k);
    REQUIRE(actor.trained.size() == 200);
    for (std::size_t i = 0; i < actor.trained.size(); ++i) CHECK(actor.trained[i] == static_cast<int>(i));
  }
}

TEST_CASE("two synchronous processes take turns") {
  pair_of_processes between;
  rollout_stages rollout{between};
  actor_stages actor{between};
  std::thread other([&] { run<dvla::SynchronousRunner>(rollout, lane_share::rollout, 0, 100); });
  const auto trained = run<dvla::SynchronousRunner>(actor, lane_share::actor, 0, 100);
  other.join();
  CHECK(trained.batches == 100);
  CHECK(trained.max_staleness == 0);
}

TEST_CASE("an actor whose batches end is done, and says how many it had") {
  pair_of_processes between;
  rollout_stages rollout{between};
  actor_stages actor{between, 30};
  std::thread other([&] { run<dvla::SwimlaneRunner<1>>(rollout, lane_share::rollout, 1, 30); });
  const auto trained = run<dvla::SwimlaneRunner<1>>(actor, lane_share::actor, 1, 100);
  other.join();
  CHECK(trained.batches == 30);
}

TEST_CASE("a rollout that fails names its lane and batch") {
  pair_of_processes between;
  rollout_stages rollout{between, 0};
  try {
    run<dvla::SwimlaneRunner<1>>(rollout, lane_share::rollout, 1, 5);
    FAIL("it must throw");
  } catch (const dvla::LaneError& error) {
    CHECK(std::string(error.what()).find("sampling") != std::string::npos);
    CHECK(std::string(error.what()).find("simulator fell over") != std::string::npos);
  }
}

TEST_CASE("an actor whose stages bring no batches is refused") {
  struct no_arrival {
    void sample(Token&) {}
    void train(Token&) {}
    void distribute(Token&) {}
    void receive(Token&) {}
  } stages;
  CHECK_THROWS_AS(run<dvla::SwimlaneRunner<1>>(stages, lane_share::actor, 1, 1), dvla::Error);
}
