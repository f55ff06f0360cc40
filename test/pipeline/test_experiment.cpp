// A whole experiment without torch, as a user starts it: what it leaves in its folder, that it goes on after
// a stop, and what it refuses.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <iostream>
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
  CHECK(result.ratio_error <= 1e-5);
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
  CHECK(count_files(run / "checkpoint", ".safetensors") == 2);  // keep_checkpoints
  CHECK(fs::exists(run / "checkpoint" / "step-60.safetensors"));
  const dvla::io::SafetensorsFile checkpoint(run / "checkpoint" / "step-60.safetensors");
  CHECK(checkpoint.metadata().at("pipeline") == Lanes::describe());
}

TEST_CASE("An existing run is refused unless it is to be overwritten, and nothing in it changes") {
  const TemporaryFolder folder;
  auto config = experiment_config<InTurn>(folder, 2);
  dvla::run_experiment<InTurn>(config);
  dvla_test::write_text(folder / "toy/report.json", "mine");
  const std::string message =
      dvla_test::message_of<dvla::ConfigError>([&] { dvla::run_experiment<InTurn>(config); });
  CHECK(contains(message, "is not empty"));
  CHECK(dvla_test::read_text(folder / "toy/report.json") == "mine");
  config.run.overwrite = true;
  dvla::run_experiment<InTurn>(config);
  CHECK(read_json(folder / "toy/report.json")["batches"] == 2);
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
  for (const char* name : {"model.weight", "optimizer.exp_avg", "optimizer.exp_avg_sq"}) {
    CAPTURE(name);
    CHECK(dvla_test::same_bits(uncut.span<float>(name), joined.span<float>(name)));
  }
  const auto curve = uncut.span<double>("run.curve"), curve_joined = joined.span<double>("run.curve");
  CHECK(std::equal(curve.begin(), curve.end(), curve_joined.begin(), curve_joined.end()));
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
  CHECK(main_with({"--trace", "false", "--name", "untraced"}) == 0);
  CHECK(!fs::exists(folder / "untraced/trace.json"));
  CHECK(fs::exists(folder / "untraced/report.json"));
}
