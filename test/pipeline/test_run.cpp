// dvla-test: tsan
// A whole pipeline at work: that it learns, what is the same whatever the schedule and the threads, and how
// old weights may be.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "test/pipeline/toy_pipeline.hpp"

namespace {

using dvla::Config;
using dvla::Run;
using dvla_test::small_config;
using dvla_test::ToyPipeline;

using Lanes = ToyPipeline<>;
using InTurn = ToyPipeline<dvla::Schedule<dvla::Synchronous>>;
template <class Correction, class Schedule, class Memory>
using Whole = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>,
                             dvla::Trainer<dvla::BasicGRPO<Correction>>, dvla::Schedule<Schedule>,
                             dvla::Memory<Memory>>;

template <class P>
void check_learns(int staleness) {
  auto config = small_config<P>(100);
  if constexpr (requires { config.schedule.staleness; }) config.schedule.staleness = staleness;
  CAPTURE(P::describe());
  CAPTURE(staleness);
  Run<P> run(config);
  CHECK(run.self_test().error <= 1e-5);
  const double before = run.evaluate(512, dvla::Decoding::sample);
  const auto report = run.train();
  const double after = run.evaluate(512, dvla::Decoding::sample);
  CHECK(after > before + 0.2);
  CHECK(report.batches == 100);
  CHECK(report.max_staleness <= staleness);
  CHECK(run.history().size() == 100);
}

}  // namespace

TEST_CASE("A pipeline learns from sparse success, whatever the schedule, the correction and the pools") {
  check_learns<Whole<dvla::DecoupledClip, dvla::Synchronous, dvla::DualPool>>(0);
  check_learns<Whole<dvla::Uncorrected, dvla::Synchronous, dvla::SinglePool>>(0);
  check_learns<Whole<dvla::DecoupledClip, dvla::Swimlane<1>, dvla::SinglePool>>(0);
  check_learns<Whole<dvla::DecoupledClip, dvla::Swimlane<1>, dvla::DualPool>>(1);
  check_learns<Whole<dvla::Uncorrected, dvla::Swimlane<1>, dvla::DualPool>>(1);
  check_learns<
      Whole<dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>, dvla::Swimlane<3>, dvla::DualPool>>(
      3);
}

TEST_CASE(
    "The same run twice gives the same bits, and a swimlane with K = 0 those of the synchronous schedule") {
  Run<InTurn> first(small_config<InTurn>(20)), second(small_config<InTurn>(20));
  const auto untrained = dvla_test::values(first.model());
  first.train();
  second.train();
  CHECK(!dvla_test::same_bits(dvla_test::values(first.model()), untrained));
  CHECK(dvla_test::same_state(first, second));

  auto config = small_config<Lanes>(20);
  config.schedule.staleness = 0;
  Run<Lanes> lanes(config);
  lanes.train();
  CHECK(dvla_test::same_bits(dvla_test::values(first.model()), dvla_test::values(lanes.model())));
  for (std::size_t batch = 0; batch < 20; ++batch) {
    CHECK(first.history()[batch].update.success_rate == lanes.history()[batch].update.success_rate);
    CHECK(first.history()[batch].counts.env_steps == lanes.history()[batch].counts.env_steps);
    CHECK(lanes.history()[batch].staleness == 0);
  }

  auto other = small_config<InTurn>(20);
  other.run.seed = 2;
  Run<InTurn> third(other);
  third.train();
  CHECK(!dvla_test::same_bits(dvla_test::values(first.model()), dvla_test::values(third.model())));
}

namespace {

/// What the trainer was given: the versions of every batch.
struct Seen {
  std::int64_t mixed = 0;    ///< trajectories decided by more than one version
  std::int64_t falling = 0;  ///< decisions by older weights than the one before
  std::int64_t too_old = 0;  ///< decisions that lag more than K
  std::int64_t too_new = 0;
  std::int64_t largest_lag = 0;
  int bound = 0;
};
Seen seen;

struct SpyGRPO {
  using slot = dvla::algorithm_slot;
  using knobs = dvla::DecoupledClipKnobs<dvla::GrpoKnobs>;
  static constexpr std::string_view name = "SpyGRPO";
  static constexpr int max_staleness = 8;
};
template <class Base>
struct SpyTrainer : Base {
  using Base::Base;
  template <class Model, class Weights, class Decision, class BeforeStep, class Trace>
  dvla::UpdateStats update(Model& model, Weights& weights, const dvla::Transition& transition,
                           const Decision& decision, std::int64_t batch, BeforeStep before_step,
                           Trace& trace) {
    const std::int64_t T = transition.version.extents()[0], B = transition.version.extents()[1];
    for (std::int64_t b = 0; b < B; ++b) {
      seen.mixed += transition.version.at(0)[b] != transition.version.at(T - 1)[b];
      for (std::int64_t t = 0; t < T; ++t) {
        const std::int64_t version = transition.version.at(t)[b];
        seen.falling += t > 0 && version < transition.version.at(t - 1)[b];
        seen.too_old += batch - version > seen.bound;
        seen.too_new += version > batch;
        seen.largest_lag = std::max(seen.largest_lag, batch - version);
      }
    }
    return Base::update(model, weights, transition, decision, batch, before_step, trace);
  }
};
using Spied = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<SpyGRPO>,
                             dvla::Schedule<dvla::Swimlane<3>>>;

}  // namespace

template <class Around>
struct dvla::machinery<SpyGRPO, Around> {
  using model = dvla::machinery_t<typename Around::model, Around>;
  using type = SpyTrainer<
      dvla::GrpoTrainer<model, dvla::machinery_t<typename Around::sharding, Around>, dvla::DecoupledClip>>;
};

TEST_CASE(
    "Weights that arrive in a rollout take over at a chunk boundary, and no decision lags more than K") {
  for (const int staleness : {0, 1, 2, 3}) {
    for (const int stages : {1, 2}) {
      CAPTURE(staleness);
      CAPTURE(stages);
      auto config = small_config<Spied>(25);
      config.schedule.staleness = staleness;
      config.schedule.sampling_stages = stages;
      config.environment.environments = 16;
      config.environment.horizon = 8;
      config.environment.step_cost_ns = 20000;  // a rollout is far longer than an update
      config.algorithm.micro_batch = 16;
      seen = {.bound = staleness};
      Run<Spied> run(config);
      const auto report = run.train();
      CHECK(seen.too_old == 0);
      CHECK(seen.too_new == 0);
      CHECK(seen.falling == 0);
      if (staleness == 0) CHECK(seen.mixed == 0);
      CHECK(report.max_staleness == seen.largest_lag);
      std::int64_t counted = 0;
      for (const std::int64_t batches : report.staleness) counted += batches;
      CHECK(counted == 25);
      CHECK(report.env_steps == run.history().back().counts.env_steps);
      CHECK(report.chunk_steps == run.worker().counts().chunk_steps);
    }
  }
}

namespace {

/// Makes the weights of version n arrive in the middle of rollout n, whatever the threads do: they are
/// published after its first step, and its fifth waits until they are installed.
struct Meeting {
  static constexpr int batches = 12;
  std::mutex mutex;
  std::condition_variable moved;
  std::int64_t begun = -1;     ///< newest rollout that has made its first step
  std::int64_t installed = 0;  ///< newest version that is installed
  template <class Change>
  void tell(Change change) {
    {
      const std::scoped_lock lock(mutex);
      change();
    }
    moved.notify_all();
  }
  template <class Condition>
  void wait(Condition condition) {
    std::unique_lock lock(mutex);
    if (!moved.wait_for(lock, std::chrono::seconds(20), condition)) throw dvla::Error("nobody came");
  }
} meeting;

struct MeetingToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "MeetingToy";
};
struct MeetingEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    ++batch;
    steps = 0;
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    ++steps;
    if (steps == 1) meeting.tell([&] { meeting.begun = batch; });
    if (steps == 2) meeting.wait([&] { return meeting.installed >= batch; });
    return ToyEnvironment::step(rows, action, outcome);
  }
  std::int64_t batch = -1, steps = 0;
};
struct MeetingControl {
  using slot = dvla::control_plane_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "MeetingControl";
};
struct MeetingPlane : dvla::InProcessWeightPlane {
  using InProcessWeightPlane::InProcessWeightPlane;
  void publish(std::int64_t version) {
    if (version < Meeting::batches) meeting.wait([&] { return meeting.begun >= version; });
    InProcessWeightPlane::publish(version);
  }
};
using Met = dvla::Pipeline<dvla::Sampler<MeetingToy, dvla::testing::LinearModel>, dvla::Trainer<SpyGRPO>,
                           dvla::ControlPlane<MeetingControl>, dvla::Schedule<dvla::Swimlane<1>>>;

}  // namespace

template <class Around>
struct dvla::machinery<MeetingToy, Around> {
  using type = MeetingEnvironment;
};
template <class Around>
struct dvla::machinery<MeetingControl, Around> {
  using type = MeetingPlane;
};

TEST_CASE("Weights that arrive in a rollout take over at the next chunk boundary") {
  auto config = small_config<Met>(Meeting::batches);
  config.environment.environments = 16;
  config.environment.horizon = 8;
  seen = {.bound = 1};
  Run<Met> run(config);
  run.self_test();               // which train() would begin with
  run.environment().batch = -1;  // that was no batch
  meeting.begun = -1;
  const auto report = run.train([](const dvla::Iteration& iteration) {
    meeting.tell([&] { meeting.installed = iteration.batch + 1; });
  });
  CHECK(seen.mixed == 16 * (Meeting::batches - 1));  // every trajectory but those of batch 0
  CHECK(seen.falling == 0);
  CHECK(seen.too_old == 0);
  CHECK(seen.too_new == 0);
  CHECK(report.staleness == std::vector<std::int64_t>{1, Meeting::batches - 1});
}

TEST_CASE("A stop lets what has started finish, and train() goes on from there") {
  for (const int staleness : {0, 1}) {
    auto config = small_config<Lanes>(30);
    config.schedule.staleness = staleness;
    Run<Lanes> run(config);
    dvla::stop_flag stop;
    const auto report = run.train(
        {},
        [&](std::int64_t batch) {  // the observer may lag behind all the others
          if (batch == 5) stop.request_stop();
        },
        &stop);
    CHECK(report.stopped);
    CHECK(report.signal == 0);
    CHECK(report.batches == run.next_batch());
    CHECK(report.batches >= 6);
    CHECK(run.history().size() == static_cast<std::size_t>(report.batches));
    CHECK(run.data().report().in_flight == 0);
    const auto rest = run.train();
    CHECK(!rest.stopped);
    CHECK(rest.batches == 30 - report.batches);
    CHECK(run.history().size() == 30);
    for (std::size_t batch = 0; batch < 30; ++batch)
      CHECK(run.history()[batch].batch == static_cast<std::int64_t>(batch));
    if (staleness == 0) {  // a pause changes nothing
      Run<Lanes> whole(config);
      whole.train();
      CHECK(dvla_test::same_state(run, whole));
    }
    CHECK(run.train().batches == 0);
  }
}

TEST_CASE("What does not fit is found before anything starts, in one sentence") {
  auto message = [](auto change) {
    auto config = small_config<Lanes>(1);
    change(config);
    try {
      Run<Lanes> run(config);
    } catch (const dvla::ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message([](auto& config) { config.environment.environments = 60; }).find("algorithm.group") !=
        std::string::npos);
  CHECK(message([](auto& config) { config.model.chunk = 3; }).empty());  // the last chunk is shorter
  CHECK(message([](auto& config) { config.schedule.staleness = 2; }).find("schedule.staleness") !=
        std::string::npos);
  CHECK(message([](auto& config) { config.algorithm.learning_rate = -1; }).find("learning_rate") !=
        std::string::npos);
  CHECK(message([](auto&) {}).empty());
}

namespace {

/// Gives the first rows' log-probabilities whichever rows are asked for.
struct Rowless : dvla::testing::LinearModel {
  static constexpr std::string_view name = "Rowless";
  using LinearModel::LinearModel;
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    ++calls;
    std::vector<std::int64_t> first(rows.size());
    std::iota(first.begin(), first.end(), 0);
    LinearModel::forward(observation, decision, first, log_prob, entropy);
  }
  static inline int calls = 0;
};

}  // namespace

TEST_CASE("train() begins with a self-test that finds a model which ignores its rows") {
  using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, Rowless>, dvla::Trainer<dvla::GRPO>>;
  Run<P> run(small_config<P>(1));
  const auto untrained = dvla_test::values(run.model());
  std::string said;
  try {
    run.train();
  } catch (const dvla::Error& error) {
    said = error.what();
  }
  CHECK(said.starts_with("ratio self-test: the trainer's and the sampler's probability of row "));
  CHECK(Rowless::calls == 2);  // in their order rows are right
  CHECK(run.next_batch() == 0);
  CHECK(dvla_test::same_bits(dvla_test::values(run.model()), untrained));
}
