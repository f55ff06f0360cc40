// dvla-test: tsan
// Rows of an environment that fail, hang or are evaluated by list, in a whole run and in an experiment.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "dvla/pipeline/experiment.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {
using dvla_test::contains;
using dvla_test::TemporaryFolder;
namespace fs = std::filesystem;

/// What row 11 does in the given batch (the number of a reset of all rows).
enum class Trick { none, throws, is_nan, hangs, is_gone, model_hangs };
struct Tricks {
  Trick trick = Trick::none;
  std::int64_t from = 0, to = std::numeric_limits<std::int64_t>::max();
} tricks;
std::vector<int> said_categories;
dvla::Device said_device = dvla::Device::cpu;

struct TrickyToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "TrickyToy";
};
struct TrickyEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  dvla::ActionSpec action_spec() const { return {1, said_categories}; }
  dvla::ObservationSpec observation_spec() const {
    dvla::ObservationSpec spec = ToyEnvironment::observation_spec();
    spec.proprioception_device = said_device;
    return spec;
  }
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    if (rows.count() == size()) ++resets;
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    const std::int64_t made = ToyEnvironment::step(rows, action, outcome);
    const bool now = resets >= tricks.from && resets < tricks.to;
    if (now && tricks.trick == Trick::is_gone) throw std::runtime_error("the simulator is gone");
    rows.for_each([&](std::int64_t row, std::int64_t) {
      if (row != 11 || !now) return;
      if (tricks.trick == Trick::throws) throw std::runtime_error("the cube fell off the table");
      if (tricks.trick == Trick::is_nan) outcome.reward.at(row)[0] = std::numeric_limits<float>::quiet_NaN();
      while (tricks.trick == Trick::hangs) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    });
    return made;
  }
  std::int64_t resets = 0;
};
struct TrickyModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "TrickyModel";
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    while (tricks.trick == Trick::model_hangs && ++calls > tricks.from)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  std::int64_t calls = 0;
};
}  // namespace

template <class Around>
struct dvla::machinery<TrickyToy, Around> {
  using type = TrickyEnvironment;
};

namespace {
template <class... More>
using Tricky =
    dvla::Pipeline<dvla::Sampler<TrickyToy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>, More...>;
using InTurn = Tricky<dvla::Schedule<dvla::Synchronous>>;
using ModelInTurn = dvla::Pipeline<dvla::Sampler<TrickyToy, TrickyModel>, dvla::Trainer<dvla::GRPO>,
                                   dvla::Schedule<dvla::Synchronous>>;

nlohmann::json read_json(const fs::path& path) { return nlohmann::json::parse(dvla_test::read_text(path)); }
}  // namespace

TEST_CASE_TEMPLATE("A row that throws or gives NaN costs its group, is counted and told of; training goes on",
                   P, Tricky<>, InTurn) {
  for (const Trick trick : {Trick::throws, Trick::is_nan}) {
    auto config = dvla_test::small_config<P>(6);
    config.environment.environments = 32;
    dvla::Run<P> run(config);
    std::vector<std::string> told;
    run.on_notice([&](const std::string& what) { told.push_back(what); });
    tricks = {trick, run.environment().resets + 3, run.environment().resets + 5};
    std::vector<std::int64_t> episodes;
    const auto report =
        run.train([&](const dvla::Iteration& each) { episodes.push_back(each.update.episodes); });
    tricks = {};
    CHECK(report.batches == 6);
    CHECK(report.failed_rows == 2);
    CHECK(episodes == std::vector<std::int64_t>{32, 24, 24, 32, 32, 32});
    REQUIRE(told.size() == 2);
    CHECK(contains(told[0], "environment 11 failed in batch 1, decision 0: "));
    CHECK(contains(told[0],
                   trick == Trick::throws ? "the cube fell off the table" : "its reward is not finite"));
    for (const dvla::WeightUnit& unit : run.model().units())
      for (const float value : unit.floats()) CHECK(std::isfinite(value));
  }
}

TEST_CASE("The other groups learn what they would learn without the one that failed") {
  const auto weights_after = [](Trick trick, dvla::FailureCosts costs) {
    auto config = dvla_test::small_config<InTurn>(1);
    config.environment.environments = 32;
    config.run.failure_costs = costs;
    dvla::Run<InTurn> run(config);
    tricks = {trick, 0};
    run.train();
    tricks = {};
    return dvla::weights_checksum(run.model().units());
  };
  const std::uint64_t thrown = weights_after(Trick::throws, dvla::FailureCosts::group);
  CHECK(thrown == weights_after(Trick::is_nan, dvla::FailureCosts::group));  // how it failed does not matter
  CHECK(thrown != weights_after(Trick::none, dvla::FailureCosts::group));
  CHECK(thrown != weights_after(Trick::throws, dvla::FailureCosts::row));
}

TEST_CASE("auto_reset is refused where the algorithm takes one episode a row") {
  auto config = dvla_test::small_config<InTurn>(1);
  config.run.auto_reset = true;
  CHECK_THROWS_WITH_AS(
      dvla::Run<InTurn>{config},
      "run.auto_reset is true, but the algorithm GRPO<DecoupledClip<recomputed>> takes one episode "
      "a row; leave it false, or choose an algorithm that says takes_several_episodes",
      dvla::ConfigError);
}

namespace {
/// Learns nothing; counts the episodes that it is given.
struct Counting {
  using slot = dvla::algorithm_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "Counting";
  static constexpr int max_staleness = 4;
  static constexpr bool takes_several_episodes = true;
};
struct CountingTrainer {
  CountingTrainer(const dvla::NoKnobs&, dvla::BatchShape whole, std::int64_t, std::uint64_t) : shape(whole) {}
  template <class Model, class Weights, class BeforeStep, class Trace>
  dvla::UpdateStats update(Model&, Weights&, const dvla::Transition& all, const typename Model::Decision&,
                           std::int64_t, BeforeStep& before_step, Trace&) {
    dvla::UpdateStats stats;
    for (std::int64_t b = 0; b < shape.episodes; ++b)
      for (std::int64_t s = 0; s < shape.table; ++s) {
        const dvla::EpisodeTable& episode = all.episode;
        if (episode.end.at(s)[b] == 0) continue;
        ++stats.episodes;
        const std::int64_t t = episode.decision.at(s)[b], c = episode.step.at(s)[b];
        const bool cut = episode.end.at(s)[b] == static_cast<int>(dvla::EpisodeEnd::truncated);
        DOCTEST_CHECK((cut ? all.truncated : all.terminated).at(t).at(b)[c] == 1);
        // What it ended with shows the same numbers as what it saw: Toy does not change within an episode.
        DOCTEST_CHECK(std::ranges::equal(episode.final_observation.proprioception.at(s).at(b).span(),
                                         all.observation.proprioception.at(t).at(b).span()));
      }
    before_step();
    return stats;
  }
  dvla::BatchShape shape;
};
}  // namespace

template <class Around>
struct dvla::machinery<Counting, Around> {
  using type = CountingTrainer;
};

TEST_CASE("Under auto_reset rows go on, and the planes carry the table of their episodes") {
  using Several = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, Counting>;
  dvla::Config<Several> config;
  config.environment.environments = 32;
  config.schedule.deadline_s = 30;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.iterations = 4;
  config.run.demonstrations = 0;
  config.run.auto_reset = true;
  config.run.pass_steps = 12;
  config.run.episodes_per_row = 5;
  dvla::Run<Several> run(config);
  std::vector<std::int64_t> episodes;
  run.train([&](const dvla::Iteration& each) { episodes.push_back(each.update.episodes); });
  REQUIRE(episodes.size() == 4);
  for (const std::int64_t count : episodes) {  // 12 steps in episodes of 1 to 4, at most 5 of them a row
    CHECK(count > 3 * 32);
    CHECK(count <= 5 * 32);
  }
}

TEST_CASE("An evaluation by cases plays each once and reports success by task; a recording is written") {
  const TemporaryFolder folder;
  auto config = dvla_test::small_config<InTurn>(40);
  config.run.folder = folder.path().string();
  config.run.name = "cases";
  config.run.quiet = true;
  config.run.record = true;
  config.run.evaluation_cases = "0-9, 13";
  const auto result = dvla::run_experiment<InTurn>(config);
  const auto report = read_json(folder / "cases" / "report.json");
  const auto& after = report["evaluation"];
  CHECK(after["episodes"] == 11);
  REQUIRE(after["cases"].size() == 11);
  std::int64_t solved = 0;
  std::vector<std::int64_t> numbers;
  for (const auto& each : after["cases"]) {
    numbers.push_back(each["case"]);
    solved += each["success"].get<bool>();
    CHECK(each["task"] == (each["case"].get<int>() % 2 == 0 ? "go left" : "go right"));
    CHECK(each["failed"] == false);
  }
  CHECK(numbers == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13});
  CHECK(report["success_rate"].get<double>() == doctest::Approx(static_cast<double>(solved) / 11));
  REQUIRE(after["tasks"].size() == 2);
  CHECK(after["tasks"][0]["task"] == "go left");
  CHECK(after["tasks"][0]["episodes"] == 5);
  CHECK(after["tasks"][1]["episodes"] == 6);
  CHECK(report["evaluation_before"]["episodes"] == 11);
  CHECK(report["failed_rows"] == 0);
  const dvla::Recording recording = dvla::read_recording((folder / "cases" / "hand_overs.json").string());
  CHECK(recording.batches == 40);

  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {"0-1000", "'0-1000' is not within the environment's cases"},
           {"3,3", "case 3 stands there twice"},
           {"4-2", "'4-2' is not within"},
           {"a", "'a' is no number and no range"},
           {"1,", "'' is no number"},
           {"-4", "'-4' is no number"},
           {"1 2", "'1 2' is no number and no range"},
           {"99999999999999999999", "is no number"}}) {
    CAPTURE(text);
    config.run.evaluation_cases = text;
    config.run.name = "refused";
    std::string said;
    try {
      dvla::run_experiment<InTurn>(config);
    } catch (const dvla::ConfigError& error) {
      said = error.what();
    }
    CHECK(contains(said, "run.evaluation_cases is '" + text + "': "));
    CHECK(contains(said, why));
    CHECK(contains(said, "numbers and ranges from 0 to 999"));
    CHECK(!fs::exists(folder / "refused"));
  }
}

TEST_CASE("An evaluation does not depend on how many environments there are") {
  const auto each = [](int environments) {
    auto config = dvla_test::small_config<InTurn>(1);
    config.environment.environments = environments;
    dvla::Run<InTurn> run(config);
    std::vector<bool> solved;
    for (const auto& episode : run.evaluate(run.fresh_episodes(37))) solved.push_back(episode.success);
    return solved;
  };
  const std::vector<bool> few = each(8);
  CHECK(few.size() == 37);
  CHECK(few == each(64));
}

/// Run by the case below in a process of its own.
TEST_CASE("the program that hangs" * doctest::skip(std::getenv("DVLA_TEST_HANG") == nullptr)) {
  const auto run = [](auto config) {
    config.environment.environments = 32;
    config.run.folder = std::getenv("DVLA_TEST_HANG");
    config.run.name = "hangs";
    config.run.quiet = true;
    config.run.evaluation_episodes = 0;
    config.run.step_deadline_s = 0.5;
    tricks = {Trick::hangs, 12};
    return config;
  };
  if (std::string(std::getenv("DVLA_TEST_SCHEDULE")) == "before training") {
    auto config = run(dvla_test::small_config<InTurn>(1000));
    config.run.evaluation_episodes = 32;
    tricks.from = 0;
    dvla::run_experiment<InTurn>(config);
  }
  if (std::string(std::getenv("DVLA_TEST_SCHEDULE")) == "model") {
    const auto config = run(dvla_test::small_config<ModelInTurn>(1000));
    tricks = {Trick::model_hangs, 40};  // calls, of which a batch has 4
    dvla::run_experiment<ModelInTurn>(config);
  }
  if (std::string(std::getenv("DVLA_TEST_SCHEDULE")) == "swimlane")
    dvla::run_experiment<Tricky<>>(run(dvla_test::small_config<Tricky<>>(1000)));
  else
    dvla::run_experiment<InTurn>(run(dvla_test::small_config<InTurn>(1000)));
  FAIL("it came back");
}

TEST_CASE(
    "A step, or a model's call, that hangs ends the process within its deadline, is named and leaves a "
    "checkpoint") {
  for (const std::string schedule : {"swimlane", "in turn", "model", "before training"}) {
    CAPTURE(schedule);
    const TemporaryFolder folder;
    const std::string log = (folder / "log").string();
    const std::string command = "DVLA_TEST_HANG='" + folder.path().string() + "' DVLA_TEST_SCHEDULE='" +
                                schedule + "' " + fs::read_symlink("/proc/self/exe").string() +
                                " --test-case='the program that hangs' > " + log + " 2>&1";
    const auto begin = std::chrono::steady_clock::now();
    const int status = std::system(command.c_str());
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 1);
    const std::string text = dvla_test::read_text(log);
    CAPTURE(text);
    CHECK(contains(text, schedule == "model"
                             ? "error: the model did not come back from acting within 0.5 s"
                             : "error: environment 11 did not come back from a step or reset within 0.5 s"));
    if (schedule == "before training") {  // nothing is kept
      CHECK(!fs::exists(folder / "hangs"));
      continue;
    }
    CHECK(contains(text, " within 0.5 s, in batch "));
    CHECK(contains(text, "; saved '"));
    const auto newest = dvla::io::CheckpointFolder(folder / "hangs" / "checkpoint").latest();
    REQUIRE(newest.checkpoint);
    CHECK(newest.checkpoint->step >= 8);
    auto config = dvla_test::small_config<InTurn>(14);  // it can be gone on from
    config.environment.environments = 32;
    dvla::Run<InTurn> run(config);
    dvla::load_checkpoint_weights(run.model(), dvla::io::open_checkpoint((folder / "hangs").string()));
  }
}

TEST_CASE("Where too many rows fail, what was trained is saved before the error ends the run") {
  const TemporaryFolder folder;
  auto config = dvla_test::small_config<Tricky<>>(1000);
  config.environment.environments = 32;
  config.run.folder = folder.path().string();
  config.run.name = "fails";
  config.run.quiet = true;
  config.run.evaluation_episodes = 0;
  tricks = {Trick::is_gone, 12};
  CHECK_THROWS_WITH(dvla::run_experiment<Tricky<>>(config), doctest::Contains("the simulator is gone"));
  tricks = {};
  const auto newest = dvla::io::CheckpointFolder(folder / "fails" / "checkpoint").latest();
  REQUIRE(newest.checkpoint);
  CHECK(newest.checkpoint->step >= 8);
}

TEST_CASE("An environment that says the impossible of itself is refused in one sentence") {
  for (const auto& [categories, why] : std::vector<std::pair<std::vector<int>, std::string>>{
           {{3, 3}, "an action has 1 dimensions, and categories for 2"},
           {{1}, "a dimension of its actions has 1 category or fewer; 0 is for a continuous one"}}) {
    said_categories = categories;
    const std::string said = "the environment TrickyToy says of itself that " + why;
    CHECK_THROWS_WITH_AS(dvla::Run<InTurn>{dvla_test::small_config<InTurn>(1)}, said.c_str(),
                         dvla::ConfigError);
  }
  said_categories.clear();
}

TEST_CASE("Statistics that do not fit the environment are refused before anything starts") {
  auto config = dvla_test::small_config<InTurn>(1);
  config.run.action_statistics = DVLA_TEST_DIR "/golden/environment/norm_stats.json";
  CHECK_THROWS_WITH_AS(
      dvla::Run<InTurn>{config},
      doctest::Contains("'actions.q01' has 7 numbers, and the environment has 1 dimensions of "
                        "actions"),
      dvla::ConfigError);
}

TEST_CASE("Fields that are born where the model does not read are refused before anything starts") {
  said_device = dvla::Device::cuda;
  CHECK_THROWS_WITH_AS(
      dvla::Run<InTurn>{dvla_test::small_config<InTurn>(1)},
      "the environment TrickyToy gives its proprioception on cuda, and the model LinearModel "
      "reads it on cpu; choose others of one device",
      dvla::ConfigError);
  said_device = dvla::Device::cpu;
}
