// What a run makes of its configuration, for each rank of a job; and what it refuses.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "dvla/dvla.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/pipeline/run_settings.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/thread_cluster.hpp"
#include "test/complaint.hpp"

namespace {

using namespace dvla;
using namespace std::chrono_literals;
using dvla_test::complaint;

using Separate = Pipeline<Sampler<Toy, testing::LinearModel>, Trainer<GRPO>, Placement<Separated<>>>;
using Moving = Pipeline<Sampler<Toy, testing::LinearModel>, Trainer<BasicGRPO<DecoupledClip>, FSDP>,
                        Placement<Adaptive>>;

template <class P>
Config<P> config_of(int environments, int group) {
  Config<P> config;
  config.environment.environments = environments;
  config.algorithm.group = group;
  return config;
}

/// Calls visit(job) for each rank.
template <class Visit>
void for_each_rank(const Roles& roles, int world, Visit visit) {
  const auto clusters = testing::ThreadCluster::make(world);
  std::vector<std::unique_ptr<Job>> jobs;  // a leader's ends all others' when it is gone
  for (const auto& cluster : clusters) jobs.push_back(std::make_unique<Job>(*cluster, roles, 1s));
  for (const auto& job : jobs) visit(*job);
}

/// An environment and an algorithm without the knobs that the shipped ones have.
struct OneRoom {
  using slot = environment_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "OneRoom";
};
struct NoGroups {
  using slot = algorithm_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "NoGroups";
  static constexpr int max_staleness = 0;
};

}  // namespace

TEST_CASE("one process has all episodes") {
  auto config = config_of<Separate>(32, 4);
  config.algorithm.rollout_epochs = 2;
  const RunSettings<Separate> settings(config);
  LoneCluster cluster;
  const Job job(cluster, Roles{}, 1s);
  settings.check(job);
  CHECK(settings.groups() == 8);
  CHECK(settings.own_groups(job).count == 8);
  CHECK(settings.environment_knobs(job).environments == 32);
  const RolloutOptions options = settings.rollout_options(job, 3);
  CHECK(options.threads == 3);
  CHECK(options.group == 4);
  CHECK(options.rollout_epochs == 2);
  CHECK(options.first_episode == 0);
  CHECK(options.all_episodes == 0);  // all of them are here
}

TEST_CASE("each rollout has its groups, one after the other; who only trains has none") {
  const RunSettings<Separate> settings(config_of<Separate>(32, 4));
  std::vector<int> environments;
  std::vector<std::int64_t> first;
  for_each_rank({{2, 3, 4}, {0, 1}}, 5, [&](const Job& job) {
    environments.push_back(settings.environment_knobs(job).environments);
    const RolloutOptions options = settings.rollout_options(job, 1);
    first.push_back(options.first_episode);
    CHECK(options.all_episodes == (job.rolls_out() ? 32 : 0));
  });
  CHECK(environments == std::vector<int>{0, 0, 8, 12, 12});
  CHECK(first == std::vector<std::int64_t>{0, 0, 0, 8, 20});
}

TEST_CASE("a model's checkpoint brings its statistics, unless others or none are named") {
  using P = Pipeline<Sampler<Toy, Pi05>, Trainer<GRPO>>;
  Config<P> config;
  config.model.random = RandomWeights::tiny;
  config.model.chunk = 4;
  EnvironmentSpec spec;
  spec.action = {.dimensions = 7, .bounds = std::vector<ActionBounds>(7, {-1, 1})};
  CHECK(RunSettings<P>(config).config().run.action_statistics.empty());
  CHECK_FALSE(RunSettings<P>(config).adapter(spec).changes_actions());
  config.model.random = RandomWeights::none;
  config.model.checkpoint = DVLA_TEST_DIR "/golden/environment";  // for its dataset_statistics.json
  const RunSettings<P> settings(config);
  CHECK(settings.config().run.action_statistics == config.model.checkpoint);
  CHECK(P::describe(settings.config().run).ends_with("statistics in " + config.model.checkpoint + "\n"));
  CHECK(complaint([&] { settings.adapter(spec); }).find("it has another, libero_spatial_no_noops") !=
        std::string::npos);
  config.run.action_key = "libero_spatial_no_noops";
  CHECK(RunSettings<P>(config).adapter(spec).name() ==
        "statistics of libero_spatial_no_noops in " + config.model.checkpoint);
  config.run.action_key = "";
  config.run.action_statistics = "bounds";
  const Adapter bounds = RunSettings<P>(config).adapter(spec);
  CHECK(bounds.name() == "bounds");
  CHECK(bounds.changes_actions());  // what lies beyond them is held by them
  config.model.checkpoint = "/nowhere";
  CHECK(complaint([&] { RunSettings<P> refused(config); }) ==
        "model.checkpoint is '/nowhere', which is no folder; give the folder of a published model");
}

TEST_CASE("a policy need not have every knob") {
  using P = Pipeline<OneRoom, testing::LinearModel, NoGroups, Synchronous>;
  const RunSettings<P> settings{Config<P>{}};
  CHECK(settings.group() == 1);
  CHECK(settings.rollout_epochs() == 1);
  CHECK(settings.groups() == 1);
  CHECK(settings.staleness() == 0);
  CHECK(settings.replayed().batches == 0);
  LoneCluster cluster;
  settings.environment_knobs(Job(cluster, Roles{}, 1s));
  // But without them rollouts cannot share the work.
  for_each_rank({{0, 1}, {0}}, 2, [&](const Job& job) {
    const std::string why = complaint([&] { settings.environment_knobs(job); });
    CHECK_MESSAGE(why.find("OneRoom has no knob 'environments'") == 0, why);
  });
}

TEST_CASE("more rollouts than groups are refused, on every rank alike") {
  const RunSettings<Separate> settings(config_of<Separate>(8, 4));
  for_each_rank({{1, 2, 3}, {0}}, 4, [&](const Job& job) {
    const std::string why = complaint([&] { settings.environment_knobs(job); });
    CHECK_MESSAGE(why.find("the job has 3 rollouts and 2 groups of environments") == 0, why);
  });
}

TEST_CASE("a wait inside a stage ends before the wait for that stage") {
  auto config = config_of<Separate>(8, 4);
  config.schedule.deadline_s = 8;
  config.run.heartbeat_s = 0.25;
  const RunSettings<Separate> settings(config);
  CHECK(settings.deadline() == 8s);
  CHECK(settings.inner_deadline() == 6s);
  CHECK(settings.heartbeat() == 250ms);
}

TEST_CASE("a wrong value is refused before anything is made of it") {
  const std::string why = complaint([] { RunSettings<Separate>{config_of<Separate>(30, 4)}; });
  CHECK_MESSAGE(why.find("environment.environments") != why.npos, why);
}

TEST_CASE("a recording is of one process whose shares stand still") {
  auto config = config_of<Separate>(32, 4);
  config.run.record = true;
  for_each_rank({{1}, {0}}, 2, [&](const Job& job) {
    CHECK(complaint([&] { RunSettings<Separate>(config).check(job); }) ==
          "run.record is for a run of one process, and the job has 2");
  });
  auto moving = config_of<Moving>(32, 4);
  moving.run.record = true;
  LoneCluster cluster;
  CHECK(complaint([&] { RunSettings<Moving>(moving).check(Job(cluster, Roles{}, 1s)); }) ==
        "run.record is for a run whose shares stand still, and Adaptive moves them");
}

TEST_CASE("the length of a pass is for rows that are reset within it") {
  auto config = config_of<Separate>(32, 4);
  config.run.pass_steps = 8;
  LoneCluster cluster;
  CHECK(
      complaint([&] { RunSettings<Separate>(config).check(Job(cluster, Roles{}, 1s)); }) ==
      "run.pass_steps is 8, but run.auto_reset is false, and a pass is as long as an episode then; leave it "
      "0");
}

TEST_CASE("Adaptive lets nobody in again") {
  const Roles roles{{1}, {0}};
  const auto clusters = testing::ThreadCluster::make(2);
  Job leader(*clusters[0], roles, 1s);
  leader.begin_together(nullptr);
  const Job late(*clusters[1], roles, 1s);
  RunSettings<Separate>(config_of<Separate>(32, 4)).check(late);
  const std::string why = complaint([&] { RunSettings<Moving>(config_of<Moving>(32, 4)).check(late); });
  CHECK_MESSAGE(why.find("rank 1 (rollout 0) comes again, but Adaptive's ranks change their roles") == 0,
                why);
}

TEST_CASE("Threads that nobody chose are the cores that this process may use, shared by ranks and lanes") {
  const int cores = usable_cores();
  Config<Pipeline<Sampler<Toy, testing::LinearModel>, Trainer<GRPO>>> lanes;
  Config<Pipeline<Sampler<Toy, testing::LinearModel>, Trainer<GRPO>, Synchronous>> in_turn;
  const auto threads = [](const auto& settings) { return settings.config().schedule.sampling_threads; };
  CHECK(threads(RunSettings(lanes)) == std::max(cores / 2, 1));
  CHECK(threads(RunSettings(in_turn)) == cores);
  CHECK(threads(RunSettings(in_turn, 1000)) == 1);
  in_turn.schedule.sampling_threads = 3;
  CHECK(threads(RunSettings(in_turn)) == 3);
  CHECK(RunSettings(in_turn).config().schedule.training_threads == cores);
}
