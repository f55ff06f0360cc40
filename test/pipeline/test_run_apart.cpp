// dvla-test: tsan
// A whole run whose environments live in processes of their own (environment/apart.hpp), one of which hangs or dies.
// The processes are test/environment/apart_stub.py.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "dvla/environment/apart.hpp"
#include "dvla/handoff/signals.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {
using dvla_test::contains;
namespace fs = std::filesystem;

std::vector<std::string> arguments;

struct Apart {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Apart";
};
struct ApartEnvironment : dvla::ApartBatch {
  ApartEnvironment(const dvla::ToyKnobs& knobs, std::pmr::memory_resource& pool)
      : ApartBatch(options(knobs), pool) {}
  static dvla::ApartOptions options(const dvla::ToyKnobs& knobs) {
    dvla::ApartOptions options{.program = {"python3", DVLA_TEST_DIR "/environment/apart_stub.py"},
                               .rows = knobs.environments,
                               .workers = 4};
    options.program.insert(options.program.end(), {"--horizon", std::to_string(knobs.horizon)});
    options.program.insert(options.program.end(), arguments.begin(), arguments.end());
    options.step_deadline = options.reset_deadline = std::chrono::milliseconds(2000);
    return options;
  }
};
}  // namespace

template <class Around>
struct dvla::machinery<Apart, Around> {
  using type = ApartEnvironment;
};

namespace {
template <class... More>
using Of =
    dvla::Pipeline<dvla::Sampler<Apart, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>, More...>;
using InTurn = Of<dvla::Schedule<dvla::Synchronous>>;

template <class P>
dvla::Config<P> config_of(int iterations) {
  auto config = dvla_test::small_config<P>(iterations);
  config.environment.environments = 16;
  config.algorithm.group = 4;
  config.run.failed_share = 0.5;
  return config;
}
bool has_no_children() { return ::waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD; }
}  // namespace

TEST_CASE_TEMPLATE("A process that hangs or dies costs its rows; training and evaluations go on", P, Of<>,
                   InTurn) {
  for (const std::string fault : {"hang", "crash"}) {
    CAPTURE(fault);
    const dvla_test::TemporaryFolder folder;
    arguments = {"--fault", fault, "--row", "5", "--step", "3", "--once", (folder / "once").string()};
    {
      dvla::Run<P> run(config_of<P>(4));
      std::vector<std::string> told;
      run.on_notice([&](const std::string& what) { told.push_back(what); });
      std::vector<std::int64_t> episodes;
      const auto report =
          run.train([&](const dvla::Iteration& each) { episodes.push_back(each.update.episodes); });
      CHECK(report.batches == 4);
      CHECK(report.failed_rows >= 1);
      REQUIRE(episodes.size() == 4);
      CHECK(episodes[0] == 12);
      for (const std::int64_t each : episodes) CHECK((each == 12 || each == 16));
      REQUIRE(std::ssize(told) == report.failed_rows);
      std::int64_t of_the_fault = 0;
      for (const std::string& each : told) {
        if (contains(each, "its process is still being started (worker 1)")) continue;  // not waited for
        ++of_the_fault;
        CHECK(contains(each, " failed in batch 0, decision 2: its process "));
        CHECK(contains(each, fault == "hang" ? "did not come back from a step within 2000 ms, and was killed"
                                             : "ended by signal 11 (Segmentation fault)"));
        CHECK(contains(each, "(worker 1), 2 control steps into its episode; its group is left out"));
      }
      CHECK(of_the_fault >= 1);
      CHECK(of_the_fault <= 4);  // those of the worker's rows that were still running
      const auto played = run.evaluate(run.fresh_episodes(20));
      CHECK(played.size() == 20);
      for (const auto& each : played) CHECK_FALSE(each.failed);
      CHECK(run.environment().processes().size() == 4);
    }
    CHECK(has_no_children());
  }
}

TEST_CASE("SIGTERM while a process hangs ends the run cleanly, and no process is left") {
  const dvla_test::TemporaryFolder folder;
  arguments = {"--fault", "hang", "--row", "5", "--step", "1", "--once", (folder / "once").string()};
  {
    dvla::Run<Of<>> run(config_of<Of<>>(1000000));
    dvla::stop_flag stop;
    const dvla::signal_guard guard(stop);
    std::jthread sender([&](std::stop_token end) {
      while (!end.stop_requested() && !fs::exists(folder / "once"))
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ::kill(::getpid(), SIGTERM);
    });
    const auto begin = std::chrono::steady_clock::now();
    const auto report = run.train({}, {}, &stop);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
    CHECK(report.stopped);
    CHECK(report.batches >= 1);
    CHECK(report.batches < 10);
  }
  CHECK(has_no_children());
}

TEST_CASE("A hundred seeded kills: only groups that are counted are lost, and nothing is left behind") {
  const auto descriptors = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator{});
  };
  const auto before = descriptors();
  arguments = {};
  {
    auto config = config_of<InTurn>(1000000);
    config.run.failed_share = 1;
    dvla::Run<InTurn> run(config);
    std::int64_t told = 0;
    run.on_notice([&](const std::string& what) {
      if (contains(what, "its process ended by signal 9") ||
          contains(what, "its process is still being started"))
        ++told;
    });
    dvla::stop_flag stop;
    std::atomic<std::int64_t> kills{0};
    std::jthread killer([&](std::stop_token end) {
      dvla::SplitMix64 random(7);
      while (!end.stop_requested() && kills < 100) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5 + random.below(30)));
        std::vector<pid_t> workers;  // as the kernel knows them: they come and go
        for (const auto& task : fs::directory_iterator("/proc/self/task")) {
          std::ifstream children(task.path() / "children");
          for (pid_t each; children >> each;) workers.push_back(each);
        }
        if (workers.empty()) continue;
        ::kill(workers[random.below(workers.size())], SIGKILL);
        ++kills;
      }
      stop.request_stop();
    });
    std::int64_t episodes = 0, batches = 0;
    const auto report = run.train(
        [&](const dvla::Iteration& each) {
          episodes += each.update.episodes;
          CHECK(each.update.episodes % 4 == 0);  // whole groups
          ++batches;
        },
        {}, &stop);
    killer.join();
    CHECK(kills == 100);
    CHECK(report.batches == batches);
    CHECK(report.failed_rows == told);
    CHECK(report.failed_rows > 0);
    CHECK(episodes >= 16 * batches - 4 * report.failed_rows);
    CHECK(episodes < 16 * batches);
  }
  CHECK(has_no_children());
  CHECK(descriptors() == before);
}
