// A whole experiment without torch, as a user starts it: what it leaves in its folder, that it goes on after
// a stop, and what it refuses.
#include <doctest/doctest.h>
#include <signal.h>

#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "dvla/pipeline/experiment.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace fs = std::filesystem;

namespace {

using dvla_test::contains;
using dvla_test::TemporaryFolder;
using nlohmann::json;
using Lanes = dvla_test::ToyPipeline<>;
using InTurn = dvla_test::ToyPipeline<dvla::Schedule<dvla::Synchronous>>;

template <class P>
dvla::Config<P> experiment_config(const TemporaryFolder& folder, int iterations) {
  auto config = dvla_test::small_config<P>(iterations);
  config.run.folder = folder.path().string();
  config.run.name = "toy";
  config.run.evaluation_episodes = 128;
  config.run.quiet = true;
  return config;
}
json read_json(const fs::path& path) { return json::parse(dvla_test::read_text(path)); }

int count_files(const fs::path& folder, const std::string& part) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(folder))
    count += contains(entry.path().filename().string(), part);
  return count;
}

/// What the call writes to stdout and stderr by way of C++ streams.
template <class Call>
std::string said(Call call) {
  std::ostringstream text;
  std::streambuf* const out = std::cout.rdbuf(text.rdbuf());
  std::streambuf* const error = std::cerr.rdbuf(text.rdbuf());
  call();
  std::cout.rdbuf(out);
  std::cerr.rdbuf(error);
  return text.str();
}

}  // namespace

TEST_CASE(
    "An experiment leaves a report with every figure, its configuration, events, curve, trace and "
    "checkpoint") {
  const TemporaryFolder folder;
  auto config = experiment_config<Lanes>(folder, 60);
  config.run.demonstrations = 16;
  config.run.imitation_target = 0.5;
  config.run.imitation_steps = 20;
  config.run.checkpoint_every = 25;
  dvla::ExperimentResult result;
  CHECK(said([&] { result = dvla::run_experiment<Lanes>(config); }).empty());  // quiet
  CHECK(result.success_rate > result.success_before);
  CHECK(result.ratio.error <= 1e-5);
  REQUIRE(result.warm_start.has_value());
  CHECK(result.warm_start->steps <= 20);

  const fs::path run = folder / "toy";
  const json report = read_json(run / "report.json");
  for (const char* key :
       {"success_rate", "env_steps_per_s", "chunk_steps_per_s", "overlap", "bubble", "max_staleness",
        "step_time_s", "rollout_time_s", "actor_time_s", "sync_time_s", "train_wall_s"}) {
    CAPTURE(key);
    REQUIRE(report.contains(key));
    CHECK(report[key].is_number());
  }
  CHECK(report["success_rate"] == result.success_rate);
  CHECK(report["batches"] == 60);
  CHECK(report["max_staleness"] <= 1);
  CHECK(report["env_steps_per_s"] > 0);
  CHECK(report["overlap"] >= 0);
  CHECK(report["overlap"] <= 100);
  CHECK(report["stopped"] == false);
  CHECK(report["warm_start"]["steps"] == result.warm_start->steps);
  CHECK(contains(report["pipeline"], "LinearModel"));

  const json written = read_json(run / "config.json");
  CHECK(written["algorithm"]["group"] == 8);
  CHECK(written["run"]["name"] == "toy");
  CHECK(written["environment"]["horizon"] == 4);

  const json trace = read_json(run / "trace.json");
  const json& events = trace.is_array() ? trace : trace["traceEvents"];
  int sampled = 0;
  for (const auto& event : events) sampled += event.value("name", "") == "sample";
  CHECK(sampled == 60);

  CHECK(contains(dvla_test::read_text(run / "success.svg"), "<svg"));
  CHECK(count_files(run, "events.out.tfevents.") == 1);
  CHECK(count_files(run / "checkpoint", ".safetensors") == 2 * 2);  // keep_checkpoints, each with its part
  CHECK(fs::exists(run / "checkpoint" / "step-60.safetensors"));
  const dvla::io::SafetensorsFile checkpoint(run / "checkpoint" / "step-60.safetensors");
  CHECK(checkpoint.metadata().at("pipeline") == Lanes::describe());
}

TEST_CASE("An existing run is refused unless it is to be overwritten, and nothing in it changes") {
  const TemporaryFolder folder;
  auto config = experiment_config<InTurn>(folder, 2);
  dvla::run_experiment<InTurn>(config);
  dvla_test::write_text(folder / "toy/report.json", "mine");
  config.run.quiet = false;
  std::string message;
  const auto words = [&] {
    return said([&] {
      message = dvla_test::message_of<dvla::ConfigError>([&] { dvla::run_experiment<InTurn>(config); });
    });
  };
  CHECK(!contains(words(), "memory that is about to be taken"));
  CHECK(contains(message, "is not empty"));
  config.run.resume = (folder / "toy").string();  // other weights than the checkpoint's
  config.environment.horizon = 8;
  CHECK(!contains(words(), "memory that is about to be taken"));
  CHECK(contains(message, "environment.horizon is 8, and was 4 in the checkpoint"));
  config = experiment_config<InTurn>(folder, 2);
  CHECK(dvla_test::read_text(folder / "toy/report.json") == "mine");
  config.run.overwrite = true;
  config.run.quiet = false;
  CHECK(contains(said([&] { dvla::run_experiment<InTurn>(config); }), "memory that is about to be taken"));
  CHECK(read_json(folder / "toy/report.json")["batches"] == 2);
}

TEST_CASE("A run that trains on nothing says so, once") {
  const TemporaryFolder folder;
  auto config = experiment_config<InTurn>(folder, 12);
  config.algorithm.filter_lower = 500;  // returns are 0 and 1
  config.algorithm.filter_upper = 501;
  const std::string words = said([&] { dvla::run_experiment<InTurn>(config); });
  const std::string warning = "five batches without an optimiser step";
  CHECK(contains(words, warning));
  CHECK(words.find(warning) == words.rfind(warning));
}

TEST_CASE("A wrong value is refused before a folder is made") {
  const TemporaryFolder folder;
  auto config = experiment_config<InTurn>(folder, 2);
  config.environment.environments = 60;
  CHECK_THROWS_AS(dvla::run_experiment<InTurn>(config), dvla::ConfigError);
  config = experiment_config<InTurn>(folder, 2);
  config.run.resume = (folder / "nowhere").string();
  CHECK_THROWS_AS(dvla::run_experiment<InTurn>(config), dvla::Error);
  CHECK(dvla_test::files_in(folder.path()) == 0);
}

TEST_CASE("An experiment that is resumed ends as one that was not interrupted") {
  const TemporaryFolder one, two;
  auto whole = experiment_config<InTurn>(one, 16);
  whole.run.demonstrations = 16;
  whole.run.imitation_steps = 10;
  const double success = dvla::run_experiment<InTurn>(whole).success_rate.value();

  auto part = experiment_config<InTurn>(two, 6);
  part.run.demonstrations = 16;
  part.run.imitation_steps = 10;
  dvla::run_experiment<InTurn>(part);
  part.run.iterations = 16;
  part.run.resume = (two / "toy").string();
  const auto resumed = dvla::run_experiment<InTurn>(part);
  CHECK(!resumed.warm_start.has_value());  // not twice
  CHECK(resumed.report.batches == 10);
  CHECK(resumed.success_rate == success);
  CHECK(count_files(two / "toy", "events.out.tfevents.") == 2);
  const dvla::io::SafetensorsFile uncut(one / "toy/checkpoint/step-16.safetensors"),
      joined(two / "toy/checkpoint/step-16.safetensors");
  CHECK(dvla_test::same_bits(uncut.span<float>("model.weight.0"), joined.span<float>("model.weight.0")));
  const auto uncut_parts = dvla::io::CheckpointFolder::open_parts(uncut),
             joined_parts = dvla::io::CheckpointFolder::open_parts(joined);
  for (const char* name : {"shard.exp_avg", "shard.exp_avg_sq"}) {
    CAPTURE(name);
    CHECK(dvla_test::same_bits(uncut_parts.at(0).span<float>(name), joined_parts.at(0).span<float>(name)));
  }
  const auto curve = uncut.span<double>("run.curve"), curve_joined = joined.span<double>("run.curve");
  CHECK(std::equal(curve.begin(), curve.end(), curve_joined.begin(), curve_joined.end()));
}

namespace {

/// Raises SIGTERM at one call of step() or render(), counted over the whole experiment.
struct Alarm {
  std::int64_t steps = 0, frames = 0, at_step = -1, at_frame = -1;
  static void pass(std::int64_t& calls, std::int64_t at) {
    if (calls++ == at) ::raise(SIGTERM);
  }
} alarm_;

/// Toy with an alarm, and a picture.
struct AlarmToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "AlarmToy";
};
struct AlarmEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    Alarm::pass(alarm_.steps, alarm_.at_step);
    return ToyEnvironment::step(rows, action, outcome);
  }
  void render(std::int64_t row, int, int, std::span<std::uint8_t> rgb) {
    Alarm::pass(alarm_.frames, alarm_.at_frame);
    for (std::size_t i = 0; i < rgb.size(); ++i)
      rgb[i] = static_cast<std::uint8_t>(i * static_cast<std::size_t>(row + alarm_.frames));
  }
};
static_assert(dvla::HasExpert<AlarmEnvironment> && dvla::HasRender<AlarmEnvironment>);
using Alarmed = dvla::Pipeline<dvla::Sampler<AlarmToy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>,
                               dvla::Schedule<dvla::Synchronous>>;

/// Calls of step() in each part of the experiment below: 16 expert episodes (4 control steps), each success
/// check (4 decisions) after 5 imitation steps, the first evaluation (2 passes), a film, 6 batches.
constexpr std::int64_t after_demonstrations = 4, after_warm_start = after_demonstrations + 2 * 4,
                       after_evaluation = after_warm_start + 2 * 4, after_film = after_evaluation + 4,
                       after_training = after_film + 6 * 4;

dvla::Config<Alarmed> alarmed_config(const TemporaryFolder& folder, std::int64_t at_step,
                                     std::int64_t at_frame = -1) {
  alarm_ = {.at_step = at_step, .at_frame = at_frame};
  auto config = experiment_config<Alarmed>(folder, 6);
  config.run.demonstrations = 16;
  config.run.imitation_target = 1;
  config.run.imitation_steps = 10;
  config.run.checkpoint_every = 2;
  config.run.keep_checkpoints = 100;
  config.run.quiet = false;
  return config;
}

}  // namespace

template <class Around>
struct dvla::machinery<AlarmToy, Around> {
  using type = AlarmEnvironment;
};

TEST_CASE("An animation has all frames, and nothing of the runs below is left out when nobody asks to stop") {
  const TemporaryFolder folder;
  const auto result = dvla::run_experiment<Alarmed>(alarmed_config(folder, -1));
  CHECK(alarm_.steps == after_training + 2 * 4 + 4);  // the counts above are right
  CHECK(alarm_.frames == 2 * 3 * 5);  // two films of three tiles at the start and after 4 steps
  CHECK(!result.report.stopped);
  for (const char* file : {"before.gif", "after.gif"}) CHECK(fs::file_size(folder / "toy" / file) > 1000);
}

TEST_CASE("A stop in the warm start keeps nothing; one later keeps a checkpoint to go on from") {
  const TemporaryFolder whole;
  const double success = dvla::run_experiment<Alarmed>(alarmed_config(whole, -1)).success_rate.value();

  for (const std::int64_t step : {std::int64_t{0}, after_demonstrations - 1, after_demonstrations + 2}) {
    CAPTURE(step);
    const TemporaryFolder folder;
    const auto config = alarmed_config(folder, step);
    dvla::ExperimentResult result;
    const std::string text = said([&] { result = dvla::run_experiment<Alarmed>(config); });
    CHECK(contains(text, "stopped by request (SIGTERM) in the warm start: nothing was trained"));
    CHECK(result.report.stopped);
    CHECK(result.report.signal == SIGTERM);
    CHECK(!result.warm_start.has_value());
    CHECK(dvla_test::files_in(folder.path()) == 0);
  }

  struct Case {
    std::int64_t step, frame, batches, steps;
    bool before, before_gif, after;
  };
  const Case cases[] = {
      {after_warm_start + 5, -1, 0, after_warm_start + 6, false, false, false},  // first evaluation
      {-1, 4, 0, after_evaluation + 2, true, false, false},                      // first film, second frame
      {after_film + 9, -1, 3, after_film + 12, true, true, false},               // third batch
      {after_training + 2, -1, 6, after_training + 3, true, true, false},        // last evaluation
      {-1, 15 + 4, 6, after_training + 2 * 4 + 2, true, true, true},             // last film
  };
  for (const Case& stop : cases) {
    CAPTURE(stop.step);
    CAPTURE(stop.frame);
    const TemporaryFolder folder;
    const fs::path run = folder / "toy";
    auto config = alarmed_config(folder, stop.step, stop.frame);
    dvla::ExperimentResult result;
    const std::string text = said([&] { result = dvla::run_experiment<Alarmed>(config); });
    CHECK(alarm_.steps == stop.steps);  // at once
    CHECK(result.warm_start.has_value());
    CHECK(result.report.batches == stop.batches);
    CHECK(result.report.stopped == !stop.after);  // figures are complete before the last film
    CHECK(contains(text, "stopped by request (SIGTERM)"));
    CHECK(result.success_before.has_value() == stop.before);
    CHECK(result.success_rate.has_value() == stop.after);
    CHECK(fs::exists(run / "before.gif") == stop.before_gif);
    CHECK(!fs::exists(run / "after.gif"));
    CHECK(count_files(run, ".dvla-tmp-") == 0);
    const json report = read_json(run / "report.json");
    CHECK(report["stopped"] == !stop.after);
    CHECK(report["batches"] == stop.batches);
    CHECK(report["success_rate"].is_null() == !stop.after);
    CHECK(fs::exists(run / ("checkpoint/step-" + std::to_string(stop.batches) + ".safetensors")));

    config = alarmed_config(folder, -1);
    config.run.resume = run.string();
    if (stop.batches == 6) continue;
    const auto resumed = dvla::run_experiment<Alarmed>(config);
    CHECK(!resumed.warm_start.has_value());
    CHECK(resumed.report.batches == 6 - stop.batches);
    CHECK(resumed.success_rate == success);
    CHECK(fs::exists(run / "after.gif"));
  }
}

TEST_CASE("A resumed run that trains nothing changes nothing") {
  const TemporaryFolder folder;
  dvla::run_experiment<Alarmed>(alarmed_config(folder, -1));
  const auto contents = [&] {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder / "toy"))
      if (entry.is_regular_file() && !contains(entry.path().filename().string(), "tfevents") &&
          entry.path().filename() != "config.json")
        all[entry.path().string()] = dvla_test::read_text(entry.path());
    return all;
  };
  const auto before = contents();
  CHECK(before.size() > 6);
  auto config = alarmed_config(folder, -1);
  config.run.resume = (folder / "toy").string();
  dvla::ExperimentResult result;
  CHECK(contains(said([&] { result = dvla::run_experiment<Alarmed>(config); }),
                 "has 6 batches, and --iterations is 6"));
  CHECK(result.report.batches == 0);
  config.run.iterations = 5;
  CHECK(contains(said([&] { dvla::run_experiment<Alarmed>(config); }), "nothing to do"));
  config.run.name = "other";
  CHECK(contains(said([&] { dvla::run_experiment<Alarmed>(config); }), "nothing to do"));
  CHECK(!fs::exists(folder / "other"));
  CHECK(contents() == before);

  config = alarmed_config(folder, 0);  // stops in the first evaluation
  config.run.resume = (folder / "toy").string();
  config.run.iterations = 10;
  CHECK(contains(said([&] { result = dvla::run_experiment<Alarmed>(config); }), "the run is as it was"));
  CHECK(result.report.stopped);
  CHECK(contents() == before);
}

TEST_CASE("A run goes back in its own folder only when told to, and then no later checkpoint is left over") {
  const TemporaryFolder folder;
  dvla::run_experiment<Alarmed>(alarmed_config(folder, -1));
  const dvla::io::CheckpointFolder checkpoints(folder / "toy/checkpoint");
  using Steps = std::vector<std::int64_t>;
  CHECK(checkpoints.steps() == Steps{6, 4, 2});
  auto config = alarmed_config(folder, -1);
  config.run.iterations = 3;
  config.run.checkpoint_every = 0;
  config.run.resume = checkpoints.path_of(2).string();
  const std::string message =
      dvla_test::message_of<dvla::ConfigError>([&] { dvla::run_experiment<Alarmed>(config); });
  CHECK(contains(message, "run.resume is step 2, but"));
  CHECK(contains(message,
                 "goes on to step 6: resume that one, begin a new run with another --name, or add "
                 "--overwrite to drop the later checkpoints"));
  CHECK(checkpoints.steps() == Steps{6, 4, 2});
  CHECK(read_json(folder / "toy/report.json")["batches"] == 6);

  // Stopped before anything new is complete: all is there.
  auto stopped = config;
  stopped.run.overwrite = true;
  alarm_ = {.at_step = 0};
  said([&] { dvla::run_experiment<Alarmed>(stopped); });
  CHECK(checkpoints.steps() == Steps{6, 4, 2});

  // Elsewhere nothing has to be dropped.
  auto elsewhere = config;
  elsewhere.run.name = "branch";
  alarm_ = {};
  dvla::run_experiment<Alarmed>(elsewhere);
  CHECK(checkpoints.steps() == Steps{6, 4, 2});

  config.run.overwrite = true;
  const std::string text = said([&] { dvla::run_experiment<Alarmed>(config); });
  CHECK(contains(text, "the checkpoints of later steps go when the first new one is complete"));
  CHECK(checkpoints.steps() == Steps{3, 2});
  CHECK(dvla::io::open_checkpoint(folder / "toy").path() == checkpoints.path_of(3));

  // A later one that is damaged is not in the way: it is never taken for the newest.
  dvla_test::write_text(checkpoints.path_of(9), "damaged");
  config.run.overwrite = false;
  config.run.iterations = 4;
  config.run.resume = (folder / "toy").string();
  said([&] { dvla::run_experiment<Alarmed>(config); });
  CHECK(checkpoints.steps() == Steps{9, 4, 3, 2});
}

TEST_CASE("From the command line: the end code and one line for a mistake") {
  const TemporaryFolder folder;
  const std::string where = folder.path().string();
  auto main_with = [&](std::vector<std::string> words, std::string* text = nullptr) {
    words.insert(words.begin(), "program");
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    int code = -1;
    const std::string out = said([&] {
      code = dvla::experiment_main<InTurn>(static_cast<int>(arguments.size()), arguments.data(),
                                           experiment_config<InTurn>(folder, 2));
    });
    if (text) *text = out;
    return code;
  };
  std::string text;
  CHECK(main_with({"--help"}, &text) == 0);
  CHECK(contains(text, "--group"));
  CHECK(main_with({"--group", "7"}, &text) == 1);
  CHECK(text.starts_with("error: "));
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
  CHECK(main_with({"--no-such-knob", "7"}, &text) == 1);
  CHECK(main_with({"--quiet", "false", "--name", "loud"}, &text) == 0);
  for (const char* part :
       {"LinearModel", "self-test", "env_steps/s", "success on 128 fresh episodes", "written to"}) {
    CAPTURE(part);
    CHECK(contains(text, part));
  }
  CHECK(main_with({"--name", "\xff"}, &text) == 1);
  CHECK(text.starts_with("error: --name: run.name is '?'; it must be text in UTF-8"));
  CHECK(main_with({"--folder", "\xff"}, &text) == 1);
  CHECK(text.starts_with("error: --folder: run.folder is"));
  CHECK(main_with({"--trace", "false", "--name", "untraced"}) == 0);
  CHECK(!fs::exists(folder / "untraced/trace.json"));
  CHECK(fs::exists(folder / "untraced/report.json"));

  // A run that goes on says what has changed, and does not go on where that changes what its data means.
  const std::string loud = (folder / "loud").string();
  const auto go_on = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--quiet", "false", "--name", "loud", "--resume", loud, "--iterations", "4"});
    return main_with(words, &text);
  };
  CHECK(go_on({"--bins", "5", "--reward-scale", "2"}) == 1);
  CHECK(contains(text, "error: model.bins is 5, and was "));
  CHECK(contains(text, "; run.reward_scale is 2.0, and was 1.0 in the checkpoint '" + loud));
  CHECK(contains(text, "add --allow-changes"));
  CHECK(!fs::exists(folder / "loud/checkpoint/step-4.safetensors"));
  CHECK(go_on({"--learning-rate", "0.5", "--reward-scale", "2", "--allow-changes"}) == 0);
  CHECK(contains(text, "since the checkpoint algorithm.learning_rate is 0.5, and was "));
  CHECK(contains(text, "since the checkpoint run.reward_scale is 2.0, and was 1.0"));
  CHECK(!contains(text, "since the checkpoint model."));
  CHECK(read_json(folder / "loud/config.json")["run"]["allow_changes"] == false);  // it acts once
  CHECK(fs::exists(folder / "loud/checkpoint/step-4.safetensors"));
}
