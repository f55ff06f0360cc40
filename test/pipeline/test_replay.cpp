// dvla-test: tsan
// A whole run under four lanes, written down and repeated in one thread: equal parameters, moments and
// history, bit for bit. Weights arrive in the midst of rollouts, whatever the threads do.
#include <doctest/doctest.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "dvla/schedule/replay.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

using dvla::Config;
using dvla::Recording;
using dvla::Run;
using dvla_test::small_config;

constexpr int batches = 24;

/// While `open` is false, the weights of version n arrive in the midst of every third rollout n, and the
/// sampler runs ahead as far as it may before the others.
struct Gate {
  std::mutex mutex;
  std::condition_variable moved;
  bool open = true;
  int staleness = 0;
  std::int64_t begun = -1;     ///< newest rollout that has made its first step
  std::int64_t installed = 0;  ///< newest version that is installed
  static bool meets(std::int64_t batch) { return batch > 0 && batch % 3 == 0; }
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
    if (!moved.wait_for(lock, std::chrono::seconds(20), [&] { return open || condition(); }))
      throw dvla::Error("nobody came");
  }
  void wait_for_rollouts(std::int64_t trained) {
    std::int64_t ahead = trained + 1;
    while (ahead < trained + staleness && !meets(ahead)) ++ahead;
    if (staleness > 0) wait([&] { return begun >= std::min<std::int64_t>(ahead, batches - 1); });
  }
} gate;

struct GatedToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "GatedToy";
};
struct GatedEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    ++resets;
    steps = 0;
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    const std::int64_t batch = resets / passes;
    if (++steps == 1) gate.tell([&] { gate.begun = batch; });
    if (steps == 2 && Gate::meets(batch) && gate.staleness > 0)
      gate.wait([&] { return gate.installed >= batch; });
    return ToyEnvironment::step(rows, action, outcome);
  }
  std::int64_t resets = -1, steps = 0;
  static inline std::int64_t passes = 1;  ///< of a batch
};

}  // namespace

template <class Around>
struct dvla::machinery<GatedToy, Around> {
  using type = GatedEnvironment;
};

namespace {

template <class Schedule, class Correction = dvla::DecoupledClip>
using Gated = dvla::Pipeline<dvla::Sampler<GatedToy, dvla::testing::LinearModel>,
                             dvla::Trainer<dvla::BasicGRPO<Correction>>, dvla::Schedule<Schedule>>;
using Lanes = Gated<dvla::Swimlane<3>>;
using Again = Gated<dvla::Replay>;

struct Settings {
  int seed = 1, staleness = 1, stages = 1, epochs = 1;
};
template <class P>
Config<P> config_of(const Settings& settings) {
  auto config = small_config<P>(batches);
  config.environment.environments = 16;
  config.environment.horizon = 8;
  config.algorithm.micro_batch = 16;
  config.algorithm.rollout_epochs = settings.epochs;
  config.schedule.sampling_stages = settings.stages;
  // libtbb is not instrumented: its hand-overs between threads would look like races.
#ifndef __SANITIZE_THREAD__
  config.schedule.sampling_threads = settings.stages;
#endif
  config.run.seed = settings.seed;
  if constexpr (requires { config.schedule.staleness; }) config.schedule.staleness = settings.staleness;
  return config;
}

/// Runs under four lanes, and writes it down into `file`.
std::unique_ptr<Run<Lanes>> record(const Settings& settings, const std::filesystem::path& file) {
  auto config = config_of<Lanes>(settings);
  config.run.record = true;
  gate.tell(
      [&] { gate.open = false, gate.staleness = settings.staleness, gate.begun = -1, gate.installed = 0; });
  GatedEnvironment::passes = settings.epochs;
  auto run = std::make_unique<Run<Lanes>>(config);
  gate.tell([] { gate.open = true; });
  run->self_test();  // which train() would begin with, and is no batch
  run->environment().resets = -1;
  gate.tell([] { gate.open = false, gate.begun = -1; });
  run->train([](const dvla::Iteration& one) { gate.tell([&] { gate.installed = one.batch + 1; }); },
             [](std::int64_t batch) { gate.wait_for_rollouts(batch); });
  gate.tell([] { gate.open = true; });
  std::ofstream(file) << dvla::to_text(run->recording());
  return run;
}

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const dvla::Error& error) {
    return error.what();
  }
  return "(nothing is refused)";
}

}  // namespace

TEST_CASE("A run of four lanes, replayed, ends with equal parameters, moments and history") {
  const dvla_test::TemporaryFolder folder;
  const auto file = folder.path() / "hand_overs.json";
  for (const Settings settings : {Settings{1, 0, 1, 1}, Settings{1, 1, 1, 1}, Settings{2, 1, 2, 1},
                                  Settings{3, 2, 1, 2}, Settings{4, 3, 1, 1}, Settings{5, 3, 2, 2}}) {
    CAPTURE(settings.seed);
    const auto first = record(settings, file);
    const Recording& recording = first->recording();
    CHECK(recording.batches == batches);
    CHECK(recording.boundaries == 8 * settings.stages * settings.epochs);
    const auto midway = std::count_if(recording.hand_overs.begin(), recording.hand_overs.end(),
                                      [](const dvla::HandOver& one) { return one.boundary > 0; });
    CHECK(midway >= (settings.staleness == 0 ? 0 : batches / 3 - 1));

    auto config = config_of<Again>(settings);
    config.schedule.recording = file.string();
    config.run.record = true;
    Run<Again> second(config);
    const auto report = second.train();
    CHECK(dvla_test::same_state(*first, second));
    CHECK(second.recording() == recording);
    CHECK(report.max_staleness == settings.staleness);
    REQUIRE(second.history().size() == batches);
    for (std::size_t i = 0; i < batches; ++i) {
      const dvla::Iteration &one = first->history()[i], &two = second.history()[i];
      CHECK(one.staleness == two.staleness);
      CHECK(one.counts.env_steps == two.counts.env_steps);
      CHECK(one.counts.chunk_steps == two.counts.chunk_steps);
      CHECK(one.update.success_rate == two.update.success_rate);
      CHECK(one.update.loss.policy_loss == two.update.loss.policy_loss);
      CHECK(one.update.gradient_norm == two.update.gradient_norm);
    }

    Run<Gated<dvla::Synchronous>> in_turn(config_of<Gated<dvla::Synchronous>>(settings));
    in_turn.train();
    CHECK(dvla_test::same_bits(dvla_test::values(in_turn.model()), dvla_test::values(second.model())) ==
          (settings.staleness == 0));
  }
}

TEST_CASE("A replay with other settings ends at the first weights that differ, and says where") {
  const dvla_test::TemporaryFolder folder;
  const auto file = folder.path() / "hand_overs.json";
  const auto first = record({1, 2, 1, 1}, file);
  const auto said = [&](auto change) {
    auto config = config_of<Again>({1, 2, 1, 1});
    config.schedule.recording = file.string();
    change(config);
    return refusal([&] { Run<Again>(config).train(); });
  };
  const auto starts = [](const std::string& text, const std::string& with) {
    CAPTURE(text);
    CHECK(text.find(with) != text.npos);
  };
  CHECK(said([](auto&) {}) == "(nothing is refused)");
  CHECK(said([](auto& config) { config.run.iterations = 7; }) == "(nothing is refused)");
  starts(said([](auto& config) { config.run.seed = 2; }),
         "strays from its recording at chunk boundary 0 of batch 0: the weights of version 0 are other ones");
  starts(said([](auto& config) { config.algorithm.learning_rate = 0.02; }),
         "the weights of version 1 are other ones");
  starts(said([](auto& config) { config.environment.horizon = 4; }), "boundaries");
  starts(said([](auto& config) { config.run.iterations = batches + 1; }),
         "run_options.batches is 25, but the recording has only 24");
  starts(said([&](auto& config) { config.schedule.recording = (folder.path() / "none").string(); }),
         "which cannot be read");
  starts(said([](auto& config) { config.schedule.recording.clear(); }), "schedule.recording is empty");

  // Only the last update differs: no rollout sees it, the end does.
  Recording wrong = first->recording();
  wrong.final_weights = *wrong.final_weights + 1;
  std::ofstream(file) << dvla::to_text(wrong);
  starts(said([](auto&) {}), "ends with other weights than the recorded run");
}

TEST_CASE("A recording staler than the algorithm allows is refused before anything starts") {
  const dvla_test::TemporaryFolder folder;
  const auto file = folder.path() / "hand_overs.json";
  record({1, 3, 1, 1}, file);
  using Plain = Gated<dvla::Replay, dvla::Uncorrected>;
  auto config = config_of<Plain>({1, 3, 1, 1});
  config.schedule.recording = file.string();
  const std::string said = refusal([&] { Run<Plain>{config}; });
  CAPTURE(said);
  CHECK(said.find("is of a run with staleness 3, but the algorithm allows 1") != said.npos);
}
