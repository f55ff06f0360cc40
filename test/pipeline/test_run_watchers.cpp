// What only watches a run never ends it: a full disk under its logs, pictures and checkpoints, closed streams, no
// gnuplot, a foreign locale. And what a run may do to another one's folder: nothing, unasked.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dvla/pipeline/experiment.hpp"
#include "test/core/foreign_locale.hpp"
#include "test/io/full_disk.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace fs = std::filesystem;

namespace {

using dvla_test::contains;
using dvla_test::FullDisk;
using dvla_test::read_text;
using dvla_test::TemporaryFolder;
using nlohmann::json;

/// Toy with a picture, and with calls that a test hears of.
struct PaintedToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "PaintedToy";
};
std::function<void()> on_reset, on_picture;
struct PaintedEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    if (on_reset) on_reset();
    ToyEnvironment::reset(rows, starts, next);
  }
  void render(std::int64_t row, int, int, std::span<std::uint8_t> rgb) {
    if (on_picture) on_picture();
    std::fill(rgb.begin(), rgb.end(), static_cast<std::uint8_t>(row));
  }
};
using P = dvla::Pipeline<dvla::Sampler<PaintedToy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>,
                         dvla::Schedule<dvla::Synchronous>>;

dvla::Config<P> config_in(const fs::path& folder, int iterations = 6) {
  auto config = dvla_test::small_config<P>(iterations);
  config.run.folder = folder.string();
  config.run.name = "toy";
  config.run.evaluation_episodes = 64;
  config.run.checkpoint_every = 2;
  config.run.keep_checkpoints = 100;
  return config;
}
json read_json(const fs::path& path) { return json::parse(read_text(path)); }
fs::path events_of(const fs::path& run) {
  fs::path last;
  for (const auto& entry : fs::directory_iterator(run))
    if (contains(entry.path().filename().string(), "tfevents")) last = std::max(last, entry.path());
  return last;
}
std::vector<std::int64_t> steps_in(const fs::path& run) {
  return dvla::io::CheckpointFolder(run / "checkpoint").steps();
}
using Steps = std::vector<std::int64_t>;

/// What a run says, and the error that ends it, if one does.
struct Told {
  std::string out, err, error;
  int count(const std::string& part) const {
    int found = 0;
    for (std::size_t at = err.find(part); at != err.npos; at = err.find(part, at + 1)) ++found;
    return found;
  }
};
template <class Call>
Told told(Call call) {
  std::ostringstream out, err;
  std::streambuf* const out_before = std::cout.rdbuf(out.rdbuf());
  std::streambuf* const err_before = std::cerr.rdbuf(err.rdbuf());
  Told all;
  try {
    call();
  } catch (const dvla::Error& error) {
    all.error = error.what();
  }
  std::cout.rdbuf(out_before);
  std::cerr.rdbuf(err_before);
  all.out = out.str();
  all.err = err.str();
  return all;
}

}  // namespace

template <class Around>
struct dvla::machinery<PaintedToy, Around> {
  using type = PaintedEnvironment;
};

/// Run as the program when DVLA_TEST_PROGRAM names a folder.
int main(int argc, char** argv) {
  if (const char* folder = std::getenv("DVLA_TEST_PROGRAM"))
    return dvla::experiment_main<P>(argc, argv, config_in(folder, 20));
  return doctest::Context(argc, argv).run();
}

TEST_CASE("What acts once is not kept: neither in config.json, nor in a checkpoint, nor by --print-config") {
  const TemporaryFolder folder;
  auto config = config_in(folder.path());
  config.run.overwrite = true;
  config.run.animation = false;
  told([&] { dvla::run_experiment<P>(config); });
  config.run.resume = (folder / "toy").string();
  config.run.iterations = 8;
  CHECK(told([&] { dvla::run_experiment<P>(config); }).error == "");
  CHECK(steps_in(folder / "toy") == Steps{8, 6, 4, 2});
  const std::string kept = (folder / "toy/config.json").string();
  const auto file = dvla::io::open_checkpoint(folder / "toy");
  for (const auto& again : {dvla::from_json<P>(read_text(kept)), dvla::load_config<P>(file)}) {
    CHECK(again.run.resume.empty());
    CHECK_FALSE(again.run.overwrite);
    CHECK(again.run.iterations == 8);
  }
  const char* const more[] = {"program", "--config", kept.c_str(), "--seed", "2"};
  const Told refused = told([&] { dvla::run_experiment<P>(dvla::parse_command_line<P>(5, more).value()); });
  CHECK(contains(refused.error, "is not empty"));
  CHECK(steps_in(folder / "toy") == Steps{8, 6, 4, 2});

  std::ostringstream printed;
  const char* const print[] = {"program", "--print-config", "--overwrite", "--resume", "x", "--seed", "2"};
  CHECK_FALSE(dvla::parse_command_line<P>(7, print, {}, printed));
  const auto template_of = dvla::from_toml<P>(printed.str());
  CHECK(template_of.run.resume.empty());
  CHECK_FALSE(template_of.run.overwrite);
  CHECK(template_of.run.seed == 2);
}

TEST_CASE("A second run in the folder of one that is alive is refused, and deletes nothing") {
  const TemporaryFolder folder;
  auto config = config_in(folder.path());
  config.run.quiet = true;
  config.run.animation = false;
  dvla::run_experiment<P>(config);
  CHECK(!fs::exists(folder / "toy" / dvla::io::FolderLock::file_name));
  config.run.iterations = 8;
  Told second, third;
  int resets = 0;
  on_reset = [&] {  // of the first run, in its first batch
    if (++resets != 2) return;
    auto other = config;
    other.run.overwrite = true;
    second = told([&] { dvla::run_experiment<P>(other); });
    other.run.overwrite = false;
    other.run.resume = (folder / "toy").string();
    third = told([&] { dvla::run_experiment<P>(other); });
  };
  config.run.resume = (folder / "toy").string();
  CHECK(told([&] { dvla::run_experiment<P>(config); }).error == "");
  on_reset = {};
  for (const Told& refused : {second, third})
    CHECK(contains(refused.error, "run name 'toy': another run is at work in '"));
  CHECK(steps_in(folder / "toy") == Steps{8, 6, 4, 2});
  CHECK(read_json(folder / "toy/report.json")["batches"] == 2);
}

TEST_CASE("A full disk under the events, or under pictures and the trace, costs one warning each") {
  const TemporaryFolder folder;
  const fs::path run = folder / "toy";
  auto config = config_in(folder.path(), 40);
  {
    const FullDisk disk([](const std::string& path) { return contains(path, "tfevents"); });
    const Told all = told([&] { dvla::run_experiment<P>(config); });
    CHECK(all.error == "");
    CHECK(all.count("warning: ") == 1);
    CHECK(
        contains(all.err, "warning: TensorBoard's events may lack something from here on: cannot write the"));
    CHECK(contains(all.err, "No space left on device"));
    CHECK(read_json(run / "report.json")["batches"] == 40);
    CHECK(fs::exists(run / "checkpoint/step-40.safetensors"));
    CHECK(fs::exists(run / "after.gif"));
    CHECK(events_of(run).empty());
  }
  config.run.overwrite = true;
  {
    const FullDisk disk(
        [&](const std::string& path) {  // when config.json is there, but for report and checkpoint
          return contains(path, "trace.json") ||
                 (contains(path, "/toy/.dvla-tmp") && fs::exists(run / "config.json") &&
                  fs::exists(run / "report.json") == fs::exists(run / "checkpoint/step-40.safetensors"));
        });
    const Told all = told([&] { dvla::run_experiment<P>(config); });
    CHECK(all.error == "");
    CHECK(all.count("warning: ") == 4);
    for (const char* part : {"an animation is left out: cannot write '", "trace.json may lack something",
                             "success.svg may lack something", "index.html may lack something"}) {
      CAPTURE(part);
      CHECK(contains(all.err, part));
    }
    CHECK(read_json(run / "report.json")["batches"] == 40);
    CHECK(fs::exists(run / "checkpoint/step-40.safetensors"));
    CHECK(!fs::exists(run / "before.gif"));
    CHECK(!fs::exists(run / "trace.json"));  // rather than half of it
    CHECK(fs::file_size(events_of(run)) > 1000);
  }
}

TEST_CASE("No gnuplot and nothing to draw with cost the pictures") {
  const TemporaryFolder folder;
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", folder.path().c_str(), 1);
  on_picture = [] { throw dvla::Error("no library of OpenGL"); };
  const Told all = told([&] { dvla::run_experiment<P>(config_in(folder.path())); });
  on_picture = {};
  ::setenv("PATH", path.c_str(), 1);
  CHECK(all.error == "");
  CHECK(all.count("warning: ") == 2);
  CHECK(contains(all.err, "gnuplot is not installed"));
  CHECK(contains(all.err, "an animation is left out: no library of OpenGL"));
  CHECK(read_json(folder / "toy/report.json")["batches"] == 6);
}

TEST_CASE("An evaluation that cannot be played ends a run before it trains, and costs a warning after it") {
  const TemporaryFolder folder;
  auto config = config_in(folder.path());
  config.run.animation = false;
  const auto fails_from =
      [&](int reset) {  // the self-test's, the evaluation's, one a batch, the evaluation's
        int resets = 0;
        on_reset = [&resets, reset] {
          if (++resets >= reset) throw dvla::Error("there is no such case");
        };
        const Told all = told([&] { dvla::run_experiment<P>(config); });
        on_reset = {};
        return all;
      };
  const std::string sentence = "an environment failed in each of the 64 episodes of the evaluation";
  const Told before = fails_from(2);
  CHECK(contains(before.error, sentence));
  CHECK(contains(before.err, "failed in an evaluation: there is no such case"));
  CHECK(!fs::exists(folder / "toy"));

  const Told after = fails_from(2 + 6 + 1);
  CHECK(after.error == "");
  CHECK(contains(after.err, "warning: an evaluation is left out: " + sentence));
  const json report = read_json(folder / "toy/report.json");
  CHECK(report["success_rate"].is_null());
  CHECK(report["success_rate_before"].is_number());
  CHECK(report["batches"] == 6);

  config.run.resume = (folder / "toy").string();  // which has nothing to lose yet either
  config.run.iterations = 8;
  CHECK(contains(fails_from(2).error, sentence));
  CHECK(steps_in(folder / "toy") == Steps{6, 4, 2});
  CHECK(read_json(folder / "toy/report.json")["batches"] == 6);
}

TEST_CASE("A checkpoint that cannot be written is a warning, and the next one is tried") {
  const TemporaryFolder folder;
  int left = 1;
  const FullDisk disk([&](const std::string& path) { return contains(path, "/checkpoint/") && left-- > 0; });
  const Told all = told([&] { dvla::run_experiment<P>(config_in(folder.path())); });
  CHECK(all.error == "");
  CHECK(all.count("warning: ") == 1);
  CHECK(contains(all.err,
                 "warning: no checkpoint after batch 2, the next one is tried as ever: cannot write '"));
  CHECK(steps_in(folder / "toy") == Steps{6, 4});
}

TEST_CASE("The last checkpoint is written once, and one that cannot be is an error beside a whole report") {
  const TemporaryFolder folder;
  const fs::path run = folder / "toy";
  int writes = 0, every[2];
  for (int& counted : every) {
    auto config = config_in(folder.path());
    config.run.checkpoint_every = &counted == &every[0] ? 0 : 6;
    config.run.overwrite = true;
    const FullDisk disk([&](const std::string& path) {
      writes += contains(path, "/checkpoint/");
      return false;
    });
    CHECK(told([&] { dvla::run_experiment<P>(config); }).error == "");
    counted = std::exchange(writes, 0);
  }
  CHECK(every[0] > 0);
  CHECK(every[0] == every[1]);

  auto config = config_in(folder.path());
  config.run.overwrite = true;
  {
    const FullDisk disk([](const std::string& path) { return contains(path, "/checkpoint/"); });
    const Told all = told([&] { dvla::run_experiment<P>(config); });
    CHECK(contains(all.error,
                   "something of what it leaves could not be written: the last checkpoint: cannot write '"));
    CHECK(contains(all.error, "No space left on device"));
    CHECK(all.count("warning: no checkpoint after batch") == 3);
    CHECK(read_json(run / "report.json")["batches"] == 6);
    CHECK(fs::exists(run / "after.gif"));
    CHECK(steps_in(run).empty());
  }
  const FullDisk disk([&](const std::string& path) {
    return contains(path, "/toy/.dvla-tmp") && fs::exists(run / "checkpoint/step-6.safetensors");
  });
  const Told all = told([&] { dvla::run_experiment<P>(config); });
  CHECK(contains(all.error, "could not be written: cannot write '" + (run / "report.json").string()));
  CHECK(contains(all.out, "success on 64 fresh episodes"));
  CHECK(steps_in(run) == Steps{6, 4, 2});
}

TEST_CASE("An older checkpoint that cannot be read is one warning") {
  const TemporaryFolder folder;
  auto config = config_in(folder.path());
  config.run.keep_checkpoints = 4;
  int resets = 0;
  on_reset = [&] {
    const fs::path loop = folder / "toy/checkpoint/step-1.safetensors";
    if (++resets == 1) fs::create_symlink(loop, loop);
  };
  const Told all = told([&] { dvla::run_experiment<P>(config); });
  on_reset = {};
  CHECK(all.error == "");
  CHECK(all.count("warning: ") == 1);
  CHECK(contains(all.err, "warning: an older checkpoint stays: cannot open '"));
  CHECK(steps_in(folder / "toy") == Steps{6, 4, 2, 1});
}

TEST_CASE("A run that goes on says so in its events, so that readers drop what it does again") {
  const TemporaryFolder folder;
  auto config = config_in(folder.path());
  told([&] { dvla::run_experiment<P>(config); });
  const auto starts_with_step = [&](char step) {  // Event.step, then Event.session_log.status = START
    const std::string event = std::string("\x10") + step + "\x3a\x02\x08\x01";
    return contains(read_text(events_of(folder / "toy")), event);
  };
  CHECK(starts_with_step(1));
  config.run.resume = (folder / "toy/checkpoint/step-2.safetensors").string();
  config.run.overwrite = true;
  CHECK(told([&] { dvla::run_experiment<P>(config); }).error == "");
  CHECK(starts_with_step(3));
  CHECK_FALSE(starts_with_step(1));
}

TEST_CASE("No output depends on the program's locale") {
  const TemporaryFolder plain, foreign;
  const auto run = [](const fs::path& folder) {
    auto config = config_in(folder, 1100);
    config.run.checkpoint_every = 0;
    config.run.checkpoint_weights = dvla::CheckpointWeights::whole;
    return told([&] { dvla::run_experiment<P>(config); });
  };
  const Told before = run(plain.path());
  const dvla_test::ForeignLocale locale;
  const Told all = run(foreign.path());
  CHECK(before.error == "");
  CHECK(all.error == "");
  // Equal, but for the folder and what was timed.
  CHECK(read_text(foreign / "toy/success.csv") == read_text(plain / "toy/success.csv"));
  CHECK(read_text(foreign / "toy/success.svg") == read_text(plain / "toy/success.svg"));
  auto config = read_json(foreign / "toy/config.json");
  config["run"]["folder"] = plain.path().string();
  CHECK(config == read_json(plain / "toy/config.json"));
  const json report = read_json(foreign / "toy/report.json"), other = read_json(plain / "toy/report.json");
  CHECK(report["batches"] == 1100);
  for (const char* same : {"batches", "env_steps", "success_rate", "evaluation", "memory_plan"}) {
    CAPTURE(same);
    CHECK(report[same] == other[same]);
  }
  const json trace = read_json(foreign / "toy/trace.json");
  CHECK(trace["traceEvents"].size() == read_json(plain / "toy/trace.json")["traceEvents"].size());
  CHECK(contains(all.err, "] 1100/1100  success 0.") == contains(before.err, "] 1100/1100  success 0."));
  CHECK(contains(all.err, "] 1100/1100  success "));
  CHECK(contains(all.out, "1100 batches at 0"));
  const auto success = [](const Told& of) { return of.out.substr(of.out.find("\nsuccess on "), 60); };
  CHECK(success(all) == success(before));
  std::ostringstream toml, help;
  const char* const print[] = {"program", "--print-config", "--learning-rate", "0.25"};
  CHECK_FALSE(dvla::parse_command_line<P>(4, print, {}, toml));
  CHECK(contains(toml.str(), "learning_rate = 0.25\n"));
  CHECK(dvla::from_toml<P>(toml.str()).algorithm.learning_rate == 0.25);
  const char* const ask[] = {"program", "--help"};
  CHECK_FALSE(dvla::parse_command_line<P>(2, ask, {}, help));
  CHECK(contains(help.str(), "(default 300)"));
}

TEST_CASE("A program whose output is closed, unread or on a full disk trains to its end") {
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  const auto program = [&](const fs::path& folder, const std::string& line) {
    std::string command = line;
    const std::string word = "PROGRAM";
    command.replace(command.find(word), word.size(),
                    "DVLA_TEST_PROGRAM='" + folder.string() + "' '" + self + "' --quiet false");
    const int status = std::system(("cd '" + folder.string() + "' && " + command).c_str());
    CHECK(read_json(folder / "toy/report.json")["batches"] == 20);
    CHECK(fs::exists(folder / "toy/checkpoint/step-20.safetensors"));
    for (const auto& entry : fs::recursive_directory_iterator(folder / "toy")) {
      if (!entry.is_regular_file()) continue;
      CAPTURE(entry.path().string());
      CHECK_FALSE(contains(read_text(entry.path()), "20/20  success"));  // the progress text
      CHECK_FALSE(contains(read_text(entry.path()), "self-test: "));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  const std::string warning = "warning: standard output takes no text, the run goes on\n";
  const auto once = [&](const std::string& text) {
    return contains(text, warning) && text.find(warning) == text.rfind(warning);
  };
  for (const char* closed :
       {"PROGRAM 2>&-", "PROGRAM <&- 2>&- > out", "PROGRAM >&- 2>&-", "PROGRAM <&- >&- 2>&-"}) {
    CAPTURE(closed);
    const TemporaryFolder folder;
    CHECK(program(folder.path(), closed) == 0);
  }
  {
    const TemporaryFolder folder;
    CHECK(program(folder.path(), "PROGRAM > /dev/full 2> err") == 0);
    CHECK(once(read_text(folder / "err")));
    CHECK(contains(read_text(folder / "err"), "20/20  success"));
  }
  {
    const TemporaryFolder folder;
    CHECK(program(folder.path(), "PROGRAM > out 2> /dev/full") == 0);
    CHECK(contains(read_text(folder / "out"), "written to "));
  }
  {  // whoever reads is gone before the first line
    const TemporaryFolder folder;
    program(folder.path(),
            "{ until test -e gone; do sleep 0.05; done; PROGRAM 2> err; echo $? > code; } | "
            "{ exec 0<&-; touch gone; }");
    CHECK(read_text(folder / "code") == "0\n");
    CHECK(once(read_text(folder / "err")));
  }
  {
    const TemporaryFolder folder;
    program(folder.path(), "{ PROGRAM 2>&1; echo $? > code; } | head -1 > first");
    CHECK(read_text(folder / "code") == "0\n");
  }
}
