// dvla-test: tsan
// Whole pipelines as jobs of several ranks, threads standing for processes: every placement trains, with the
// figures of one process where the arithmetic is the same; refusals and stops reach every rank.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <utility>

#include "dvla/pipeline/checkpoint.hpp"
#include "test/io/temporary_folder.hpp"
#include "toy_job.hpp"

namespace {
using namespace dvla_test;

using Sampling = dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>;
template <class... More>
using Training = dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, More...>;
using Late = dvla::Schedule<dvla::Swimlane<3>>;
using Replicas = dvla::Pipeline<Sampling, Training<>, dvla::Placement<dvla::CoLocated>, Late>;
using Apart = dvla::Pipeline<Sampling, Training<dvla::FSDP>, dvla::Placement<dvla::Separated<>>, Late>;
using Mixed = dvla::Pipeline<Sampling, Training<dvla::FSDP>, dvla::Placement<dvla::Hybrid>, Late>;

template <class P>
dvla::Config<P> config_of(int iterations, int staleness = 1) {
  auto config = small_config<P>(iterations);
  if constexpr (requires { config.schedule.staleness; }) config.schedule.staleness = staleness;
  return config;
}

void all_in_peace(const JobResult& result) {
  for (const std::string& error : result.errors) CHECK_MESSAGE(error.empty(), error);
}

/// Every episode that was sampled is accounted for.
void counts_add_up(const dvla::RunReport& report, std::int64_t episodes, bool whole = true) {
  const dvla::RankReport all = dvla::total(report.ranks);
  CHECK(all.sent == all.trained + all.dropped + all.in_flight + all.unacknowledged);
  CHECK(all.in_flight == 0);
  CHECK(all.unacknowledged == 0);
  CHECK(all.lost == 0);
  if (whole) {
    CHECK(all.sent == episodes);
    CHECK(all.dropped == 0);
  }
}

double learned(const JobResult& result) {
  const auto& history = result.history;
  double last = 0;
  for (std::size_t i = history.size() - 10; i < history.size(); ++i) last += history[i].update.success_rate;
  return last / 10 - history.front().update.success_rate;
}

TEST_CASE("replicas take the same steps, and learn") {
  for (const int world : {1, 2, 3}) {
    CAPTURE(world);
    auto result = train_job(world, config_of<Replicas>(120));
    all_in_peace(result);
    for (const auto& weights : result.weights) CHECK(same_bits(weights, result.weights[0]));
    REQUIRE(result.history.size() == 120);
    CHECK(result.history[0].update.episodes == 64);
    CHECK(learned(result) > 0.3);
    if (world > 1) {
      CHECK(result.report().ranks.size() == static_cast<std::size_t>(world));
      counts_add_up(result.report(), 120 * 64);
      CHECK(result.report().env_steps == result.history.back().counts.env_steps);
    }
  }
}

TEST_CASE("synchronous replicas repeat bit for bit") {
  using Serial = dvla::Pipeline<Sampling, Training<>, dvla::Schedule<dvla::Synchronous>>;
  const auto one = train_job(2, config_of<Serial>(20)), two = train_job(2, config_of<Serial>(20));
  all_in_peace(one);
  all_in_peace(two);
  CHECK(same_bits(one.weights[0], two.weights[0]));
  CHECK(same_bits(one.weights[0], one.weights[1]));
}

TEST_CASE("FSDP in turn: every rank samples from the trainer's own model, gathered whole once a batch") {
  using Serial = dvla::Pipeline<Sampling, Training<dvla::FSDP>, dvla::Schedule<dvla::Synchronous>,
                                dvla::Placement<dvla::CoLocated>>;
  auto config = config_of<Serial>(20);
  config.environment.actions = 2;
  config.model.frozen_units = 1;
  config.sharding.release = dvla::UnitRelease::never;
  const auto kept = train_job(2, config);
  all_in_peace(kept);
  config.sharding = {.release = dvla::UnitRelease::after_use, .shard_frozen = true};
  const auto released = train_job(2, config);
  all_in_peace(released);
  REQUIRE(released.history.size() == 20);
  CHECK(same_bits(released.weights[0], released.weights[1]));
  CHECK(released.history[0].update.success_rate == kept.history[0].update.success_rate);
  REQUIRE(released.weights[0].size() == kept.weights[0].size());
  double apart = 0;
  for (std::size_t i = 0; i < kept.weights[0].size(); ++i)
    apart = std::max(apart, std::abs(static_cast<double>(kept.weights[0][i]) -
                                     static_cast<double>(released.weights[0][i])));
  CHECK(apart < 1e-2);  // a sum in another order now and then changes an action
}

TEST_CASE("bfloat16: masters that were loaded are those that training goes on with, on every actor") {
  const auto begin = [](auto config) {
    config.model.dtype = dvla::Dtype::bf16;
    using P = typename decltype(config)::pipeline;
    for (const std::string& error : run_ranks(2, [&](int, dvla::Cluster& cluster) {
           dvla::Run<P> run(config, cluster);
           std::vector<float> loaded, now;
           for (const dvla::ShardPiece& piece : run.weights().pieces())
             for (float& weight : piece.weight) loaded.push_back(weight = weight * 1.001F + 1e-5F);
           run.weights().refresh();
           run.continue_from(config.run.iterations, std::vector<dvla::Iteration>(2));  // none is left
           run.train();
           for (const dvla::ShardPiece& piece : run.weights().pieces())
             now.insert(now.end(), piece.weight.begin(), piece.weight.end());
           CHECK(now == loaded);
         }))
      CHECK_MESSAGE(error.empty(), error);
  };
  begin(config_of<Replicas>(2));
  begin(config_of<dvla::Pipeline<Sampling, Training<dvla::FSDP>, Late>>(2));
}

/// How many models and environments were made.
struct CountedModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "CountedModel";
  template <class... Arguments>
  explicit CountedModel(Arguments&&... arguments)
      : dvla::testing::LinearModel(std::forward<Arguments>(arguments)...) {
    ++made;
  }
  static inline std::atomic<int> made = 0;
};
struct CountedToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "CountedToy";
};
struct CountedEnvironment : dvla::ToyEnvironment {
  template <class... Arguments>
  explicit CountedEnvironment(Arguments&&... arguments)
      : dvla::ToyEnvironment(std::forward<Arguments>(arguments)...) {
    ++made;
  }
  static inline std::atomic<int> made = 0;
};

}  // namespace

template <class Around>
struct dvla::machinery<CountedToy, Around> {
  using type = CountedEnvironment;
};

namespace {

TEST_CASE("a wrong value is refused on every rank before any has made a model") {
  using Counted = dvla::Sampler<CountedToy, CountedModel>;
  const auto refused = [](int world, auto config, const std::string& why) {
    CountedModel::made = CountedEnvironment::made = 0;
    const auto result = train_job(world, config);
    for (const std::string& error : result.errors) CHECK_MESSAGE(error.find(why) != error.npos, error);
    CHECK(CountedModel::made == 0);
    return CountedEnvironment::made == 0;
  };
  // Ranks that train also sample beside it: seen from roles alone.
  using Both = dvla::Pipeline<Counted, Training<dvla::FSDP>, dvla::Placement<dvla::Hybrid>, Late>;
  auto both = config_of<Both>(2);
  both.placement.actors = 2;
  both.sharding.shard_frozen = true;
  CHECK(refused(3, both, "sharding.shard_frozen is true, but ranks that train also sample"));
  both.sharding.release = dvla::UnitRelease::never;
  both.schedule.staleness = 4;
  CHECK(refused(3, both, "schedule.staleness"));

  // Of the environment the numbers of rows are known.
  using Two = dvla::Pipeline<Counted, Training<dvla::FSDP>, dvla::Placement<dvla::Separated<>>, Late>;
  auto apart = config_of<Two>(2);
  apart.placement = {1, 2};
  apart.sharding.shard_frozen = true;
  apart.sharding.release = dvla::UnitRelease::never;
  refused(3, apart, "sharding.shard_frozen is true and sharding.release is never");
  apart = config_of<Two>(2);
  apart.placement = {1, 1};
  apart.algorithm.global_batch = 192;
  refused(4, apart, "global_batch is 192");
  apart.algorithm.global_batch = 0;
  apart.run.evaluation_cases = "998-1001";
  refused(2, apart, "run.evaluation_cases is '998-1001'");
  apart.run.evaluation_cases = "";
  apart.environment.environments = 8;  // one group, and two actors
  apart.placement = {1, 2};
  refused(3, apart, "1 groups a batch for 2 actors");
  apart.placement = {1, 1};
  CountedModel::made = 0;
  all_in_peace(train_job(2, apart));
  CHECK(CountedModel::made > 0);
}

TEST_CASE("rollouts and actors apart train as the ratio says") {
  struct Shape {
    int world, rollouts, actors;
  };
  for (const auto [world, rollouts, actors] :
       {Shape{2, 1, 1}, Shape{4, 3, 1}, Shape{4, 1, 1}, Shape{3, 1, 2}})
    for (const int staleness : {0, 1, 3}) {
      CAPTURE(world);
      CAPTURE(rollouts);
      CAPTURE(staleness);
      auto config = config_of<Apart>(staleness == 1 ? 120 : 30, staleness);
      config.placement.rollouts = rollouts;
      config.placement.actors = actors;
      auto result = train_job(world, config);
      all_in_peace(result);
      REQUIRE(result.history.size() == static_cast<std::size_t>(config.run.iterations));
      CHECK(result.report().batches == config.run.iterations);
      CHECK(result.report().max_staleness <= staleness);
      if (staleness == 1) CHECK(learned(result) > 0.3);
      counts_add_up(result.report(), config.run.iterations * 64);
      const dvla::RankReport all = dvla::total(result.report().ranks);
      CHECK(all.data_bytes_sent > 0);
      CHECK(all.data_bytes_sent == all.data_bytes_received);
      CHECK(all.weight_bytes_sent > 0);
      CHECK(all.weight_bytes_sent == all.weight_bytes_received);
      CHECK((all.gradient_bytes_sent > 0) == (world / (rollouts + actors) * actors > 1));
      const std::vector<float>* first = nullptr;
      for (const auto& weights : result.weights) {
        if (weights.empty()) continue;
        if (first) CHECK(same_bits(weights, *first));
        first = &weights;
      }
      CHECK(result.report().timing.iterations == config.run.iterations);
      CHECK(result.report().timing.rollout_time_s > 0);
      CHECK(result.report().timing.actor_time_s > 0);
    }
}

TEST_CASE("of a model that is partly frozen nothing but what trains is sent, and it samples the same") {
  auto config = config_of<Apart>(20, 0);
  config.placement = {1, 1};
  config.environment.actions = 2;
  const auto bytes = [](JobResult& result) { return dvla::total(result.report().ranks).weight_bytes_sent; };
  auto whole = train_job(2, config);
  all_in_peace(whole);
  config.model.frozen_units = 1;
  auto part = train_job(2, config);
  all_in_peace(part);
  const std::size_t all = whole.weights[0].empty() ? whole.weights[1].size() : whole.weights[0].size();
  const std::size_t trained = part.weights[0].empty() ? part.weights[1].size() : part.weights[0].size();
  CHECK(trained * 2 == all);
  CHECK(bytes(whole) == 21 * static_cast<std::int64_t>(all * sizeof(float)));
  CHECK(bytes(part) == 21 * static_cast<std::int64_t>(trained * sizeof(float)));
  CHECK(part.report().batches == 20);
}

TEST_CASE("all ranks roll out and some train") {
  for (const int actors : {1, 2, 3}) {
    CAPTURE(actors);
    auto config = config_of<Mixed>(60);
    config.placement.actors = actors;
    auto result = train_job(3, config);
    all_in_peace(result);
    REQUIRE(result.history.size() == 60);
    counts_add_up(result.report(), 60 * 64);
  }
}

TEST_CASE("the same batches as one process makes, whoever samples them") {
  // K = 0: every batch is sampled by the newest weights. The first batch's episodes are the same whatever the
  // shares, for seeds follow from places in the whole; so are its first observations and rewards' extents.
  auto alone = train_job(1, config_of<Replicas>(1, 0));
  auto config = config_of<Apart>(1, 0);
  config.placement = {1, 1};
  auto apart = train_job(2, config);
  all_in_peace(alone);
  all_in_peace(apart);
  CHECK(same_bits(alone.weights[0], apart.weights[static_cast<std::size_t>(apart.leader)]));
}

TEST_CASE("what one rank refuses, all refuse, in one sentence") {
  auto config = config_of<Apart>(10);
  config.placement = {2, 1};
  auto result = train_job(2, config);
  for (const std::string& error : result.errors)
    CHECK(error ==
          "placement.rollouts:actors is 2:1 and the job has 2 ranks; both shares must be at least 1, and the "
          "ranks a multiple of their sum, 3");
  // 8 groups for 9 rollouts
  config.placement = {9, 1};
  result = train_job(10, config);
  for (const std::string& error : result.errors)
    CHECK(error.find("the job has 9 rollouts and 8 groups of environments") != error.npos);
  // Only the actors know that the mini-batch cannot be cut.
  config.placement = {1, 1};
  config.algorithm.global_batch = 192;
  result = train_job(4, config);
  for (const std::string& error : result.errors) CHECK(error.find("global_batch") != error.npos);
  // Both do, and one of them is told of.
  CHECK_MESSAGE((result.errors[3].find("rank 0 (actor 0) refuses: ") == 0 ||
                 result.errors[3].find("rank 1 (actor 1) refuses: ") == 0),
                result.errors[3]);
}

TEST_CASE("a stop that one actor is asked for ends all at one batch") {
  for (const bool apart : {false, true}) {
    CAPTURE(apart);
    dvla::stop_flag stop;
    const auto stop_of = [&](int rank) { return rank == 0 ? &stop : nullptr; };
    const auto after = [&](int rank, std::int64_t batch) {
      if (rank == 0 && batch == 7) stop.request_stop(15);
    };
    JobResult result;
    if (apart) {
      auto config = config_of<Apart>(100000, 3);
      config.placement = {1, 1};
      result = train_job(4, config, stop_of, after);
    } else {
      result = train_job(3, config_of<Replicas>(100000, 3), stop_of, after);
    }
    all_in_peace(result);
    CHECK(result.report().batches == 8);
    CHECK(result.report().stopped);
    CHECK(result.report().signal == 15);
    CHECK(result.history.size() == 8);
    counts_add_up(result.report(), 0, false);
    CHECK(dvla::total(result.report().ranks).trained == 8 * 64);
  }
}

TEST_CASE("a rollout that is asked to stop alone leaves, and training goes on without it") {
  auto config = config_of<Apart>(60, 0);
  config.placement = {2, 1};
  dvla::stop_flag stop;
  auto result = train_job(
      3, config, [&](int rank) { return rank == 2 ? &stop : nullptr; },
      [&](int, std::int64_t batch) {
        if (batch == 7) stop.request_stop();
      });
  all_in_peace(result);
  REQUIRE(result.history.size() == 60);
  CHECK(result.history.front().update.episodes == 64);
  CHECK(result.history.back().update.episodes == 32);
  CHECK(result.report().batches == 60);
  const dvla::RankReport all = dvla::total(result.report().ranks);
  CHECK(all.sent == all.trained);
  CHECK(all.lost > 0);
}

}  // namespace

TEST_CASE("a job goes on from a whole checkpoint only where its frozen weights are those of the settings") {
  const TemporaryFolder folder;
  auto config = config_of<Replicas>(2);
  config.environment.actions = 2;
  config.model.frozen_units = 1;
  config.run.checkpoint_weights = dvla::CheckpointWeights::whole;
  dvla::Run<Replicas> alone(config);
  alone.train();
  const dvla::io::SafetensorsFile file(
      dvla::save_checkpoint(alone, dvla::io::CheckpointFolder(folder.path())));
  for (const bool other : {false, true}) {
    const auto errors = run_ranks(2, [&](int, dvla::Cluster& cluster) {
      dvla::Run<Replicas> run(config, cluster);
      if (other) *run.model().parameters()[0].data ^= std::byte{1};
      dvla::load_checkpoint(run, file);
      CHECK(run.next_batch() == 2);
    });
    for (const std::string& error : errors)
      CHECK((other ? contains(error, "has other frozen weights than the settings make") : error.empty()));
  }
}
