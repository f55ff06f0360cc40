// dvla-test: tsan
// Whatever fails in a run, wherever: one LaneError that names lane and batch, every thread joined, nothing
// hangs.
#include <doctest/doctest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <thread>

#include "dvla/handoff/signals.hpp"
#include "dvla/pipeline/experiment.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

using dvla_test::contains;
using dvla_test::small_config;

enum Site { reset, step, act, forward, backward, optimise, publish, receive, sites };
constexpr const char* names[sites] = {"reset",    "step",     "act",     "forward",
                                      "backward", "optimise", "publish", "receive"};

/// Throws at one call of one site.
struct Fault {
  std::atomic<std::int64_t> calls{0};
  Site site = sites;
  std::int64_t at = -1;
  void pass(Site here) {
    if (here != site || calls.fetch_add(1) != at) return;
    // Long enough for the other lanes to come to a wait that only this one could end.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    throw std::runtime_error(std::string("fault in ") + names[here]);
  }
  void arm(Site where, std::int64_t when) {
    calls = 0;
    site = where;
    at = when;
  }
} fault;

struct FaultyToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "FaultyToy";
};
struct FaultyEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    fault.pass(::reset);
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    fault.pass(::step);
    return ToyEnvironment::step(rows, action, outcome);
  }
};
struct FaultyModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "FaultyModel";
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    fault.pass(::act);
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    fault.pass(::forward);
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }
  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy) {
    fault.pass(::backward);
    LinearModel::backward(d_log_prob, d_entropy);
  }
};
struct FaultySharding {
  using slot = dvla::sharding_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "FaultySharding";
};
template <class Model>
struct FaultyWeights : dvla::UnshardedWeights<Model> {
  using Base = dvla::UnshardedWeights<Model>;
  using Base::Base;
  double step(const dvla::AdamWKnobs& knobs) {
    fault.pass(optimise);
    return Base::step(knobs);
  }
};
struct FaultyControl {
  using slot = dvla::control_plane_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "FaultyControl";
};
struct FaultyPlane : dvla::InProcessWeightPlane {
  using InProcessWeightPlane::InProcessWeightPlane;
  void publish(std::int64_t version) {
    fault.pass(::publish);
    InProcessWeightPlane::publish(version);
  }
  std::int64_t receive(const std::vector<dvla::WeightUnit>& into, std::int64_t version,
                       std::chrono::nanoseconds limit) {
    fault.pass(::receive);
    return InProcessWeightPlane::receive(into, version, limit);
  }
};

template <class Schedule>
using Faulty = dvla::Pipeline<dvla::Sampler<FaultyToy, FaultyModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>, FaultySharding>,
                              dvla::ControlPlane<FaultyControl>, dvla::Schedule<Schedule>>;

template <class P>
dvla::Config<P> faulty_config(int staleness) {
  auto config = small_config<P>(12);
  config.environment.environments = 16;
  config.environment.horizon = 2;
  config.algorithm.epochs = 1;
  config.algorithm.micro_batch = 32;  // one forward pass a batch
  config.run.failed_share = 0.2;
  if constexpr (requires { config.schedule.staleness; }) config.schedule.staleness = staleness;
  return config;
}

template <class P>
void check_fails(int staleness, Site site, std::int64_t at, const std::string& lane, std::int64_t batch) {
  CAPTURE(P::schedule::name);
  CAPTURE(staleness);
  CAPTURE(std::string(names[site]));
  CAPTURE(at);
  dvla::Run<P, dvla::trace::Off> run(faulty_config<P>(staleness));
  const auto before = run.memory().report();
  fault.arm(sites, -1);
  run.self_test();  // which train() would begin with
  fault.arm(site, at);
  bool thrown = false;
  try {
    run.train();
  } catch (const dvla::LaneError& error) {
    thrown = true;
    CAPTURE(std::string(error.what()));
    CHECK(error.lane() == lane);
    CHECK(error.step() == batch);
    CHECK(std::string(error.what()).find("fault in ") != std::string::npos);
    CHECK_THROWS_AS(std::rethrow_if_nested(error), std::runtime_error);
  }
  CHECK(thrown);
  fault.arm(sites, -1);
  const auto after = run.memory().report();
  for (std::size_t pool = 0; pool < before.size(); ++pool) CHECK(after[pool].in_use == before[pool].in_use);
  const double success = run.evaluate(16);  // environments and weights are still in order
  CHECK((success >= 0 && success <= 1));
}

}  // namespace

template <class Around>
struct dvla::machinery<FaultyToy, Around> {
  using type = FaultyEnvironment;
};
template <class Around>
struct dvla::machinery<FaultySharding, Around> {
  using type = FaultyWeights<dvla::machinery_t<typename Around::model, Around>>;
};
template <class Around>
struct dvla::machinery<FaultyControl, Around> {
  using type = FaultyPlane;
};

TEST_CASE("An exception at any place of any lane ends the run in a LaneError that names lane and batch") {
  const std::map<Site, std::pair<std::string, int>> lanes{
      {reset, {"sampling", 1}},       {step, {"sampling", 2}},     {act, {"sampling", 2}},
      {forward, {"training", 1}},     {backward, {"training", 1}}, {optimise, {"training", 1}},
      {publish, {"distribution", 1}}, {receive, {"reception", 1}}};
  for (const auto& [site, where] : lanes) {
    const auto& [lane, calls] = where;
    for (const std::int64_t batch : {0, 1, 5}) {
      const std::int64_t at = batch * calls + calls - 1;
      check_fails<Faulty<dvla::Synchronous>>(0, site, at, lane, batch);
      check_fails<Faulty<dvla::Swimlane<1>>>(0, site, at, lane, batch);
      check_fails<Faulty<dvla::Swimlane<1>>>(1, site, at, lane, batch);
    }
  }
}

TEST_CASE("An observer or a checkpoint that throws ends the run too") {
  using P = Faulty<dvla::Swimlane<1>>;
  auto lane_of = [](auto on_iteration, auto after_update) {
    dvla::Run<P> run(faulty_config<P>(1));
    try {
      run.train(on_iteration, after_update);
    } catch (const dvla::LaneError& error) {
      return error.lane() + " " + std::to_string(error.step());
    }
    return std::string("nothing was thrown");
  };
  fault.arm(sites, -1);
  CHECK(lane_of(
            [](const dvla::Iteration& i) {
              if (i.batch == 3) throw dvla::Error("disk full");
            },
            [](std::int64_t) {}) == "observer 3");
  CHECK(lane_of([](const dvla::Iteration&) {},
                [](std::int64_t batch) {
                  if (batch == 4) throw dvla::Error("disk full");
                }) == "training 4");
}

/// Of an experiment of 100 batches, in each of which the optimiser takes two steps, whose fault comes at the n-th
/// call of a site: its error, and the newest checkpoint's step.
template <class Schedule>
std::pair<std::string, std::int64_t> broken_off(Site site, std::int64_t at, int checkpoint_every) {
  const dvla_test::TemporaryFolder folder;
  auto config = faulty_config<Faulty<Schedule>>(0);
  config.run.iterations = 100;
  config.algorithm.micro_batch = 16;
  config.algorithm.global_batch = 16;
  config.algorithm.filter_lower = config.algorithm.filter_upper = 0;
  config.run.folder = folder.path().string();
  config.run.name = "broken";
  config.run.quiet = true;
  config.run.animation = false;
  config.run.evaluation_episodes = 0;
  config.run.checkpoint_every = checkpoint_every;
  fault.arm(site, at);
  std::string error;
  try {
    dvla::run_experiment<Faulty<Schedule>>(config);
  } catch (const dvla::Error& thrown) {
    error = thrown.what();
    bool nested = false;
    try {
      std::rethrow_if_nested(thrown);
    } catch (const dvla::LaneError&) {
      nested = true;
    }
    CHECK(nested);
  }
  fault.arm(sites, -1);
  const auto newest = dvla::io::CheckpointFolder(folder / "broken" / "checkpoint").latest();
  REQUIRE(newest.checkpoint);
  CHECK_MESSAGE(contains(error, "'" + newest.checkpoint->file.path().string() + "'"), error);
  dvla::Run<Faulty<Schedule>> again(config);  // which can be gone on from
  dvla::load_checkpoint(again, dvla::io::open_checkpoint((folder / "broken").string()));
  CHECK(again.next_batch() == newest.checkpoint->step);
  return {error, newest.checkpoint->step};
}

TEST_CASE_TEMPLATE("Whatever ends training, what was trained is saved, and the error names the file",
                   Schedule, dvla::Synchronous, dvla::Swimlane<1>) {
  CAPTURE(Schedule::name);
  for (const Site site : {reset, step, act, publish, receive}) {
    CAPTURE(std::string(names[site]));
    const auto [error, saved] = broken_off<Schedule>(site, 16, 100);
    CAPTURE(error);
    CHECK(contains(error, std::string("fault in ") + names[site]));
    CHECK(contains(error, "; saved '"));
    CHECK(saved >= 5);
  }
  // In an update: before its first step, or between the two. What is there already of that batch stays.
  int before = 0, between = 0;
  for (const Site site : {forward, backward, optimise})
    for (std::int64_t at = 8; at < 14; ++at) {
      CAPTURE(std::string(names[site]));
      CAPTURE(at);
      const auto [error, saved] = broken_off<Schedule>(site, at, 100);
      CAPTURE(error);
      CHECK(contains(error, "; saved '"));
      CHECK(saved >= 2);
      const bool torn = error.ends_with("', in the midst of an update");
      ++(torn ? between : before);
      const auto [again, kept] = broken_off<Schedule>(site, at, 1);
      CAPTURE(again);
      CHECK(contains(again, "; the newest checkpoint is '"));
      CHECK(kept == saved);
    }
  CHECK(before == 9);
  CHECK(between == 9);
}

TEST_CASE("A lane that takes longer than the deadline is named, and so is the one that waited") {
  using P = dvla_test::ToyPipeline<>;
  auto config = small_config<P>(3);
  config.environment.step_cost_ns = 10000000;  // more than 0.6 s a rollout
  config.environment.environments = 64;
  config.environment.horizon = 1;
  config.schedule.deadline_s = 0.05;
  dvla::Run<P> run(config);
  std::string message;
  try {
    run.train();
  } catch (const dvla::Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.find("waited 0.05 s for") != std::string::npos);
  CHECK(message.find("still at work: lane 'sampling' on batch 0") != std::string::npos);
}

TEST_CASE("SIGTERM stops a run cleanly, and it can go on") {
  using P = dvla_test::ToyPipeline<>;
  dvla::Run<P> run(small_config<P>(40));
  dvla::stop_flag stop;
  const dvla::signal_guard guard(stop);
  const auto report = run.train(
      [](const dvla::Iteration& iteration) {
        if (iteration.batch == 4) ::raise(SIGTERM);
      },
      {}, &stop);
  CHECK(report.stopped);
  CHECK(report.signal == SIGTERM);
  CHECK(report.batches >= 5);
  CHECK(report.batches < 40);
  CHECK(run.data().report().trained == report.batches);
  stop.reset();
  CHECK(run.train({}, {}, &stop).batches == 40 - report.batches);
}
