// dvla-test: tsan
// Jobs whose ranks die, stop and come again, threads standing for processes: at random moments, with the
// counts proved. DVLA_FAULT_MOMENTS sets how many moments (30; the long form has 100). Nothing here depends on how
// fast the machine is: what must have happened is waited for, and limits are there for what hangs.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <random>

#include "../pipeline/toy_job.hpp"

namespace {
using namespace dvla_test;
using namespace std::chrono_literals;

using Sampling = dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>;
using Training = dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>;
using Late = dvla::Schedule<dvla::Swimlane<3>>;
using Apart = dvla::Pipeline<Sampling, Training, dvla::Placement<dvla::Separated<>>, Late>;
using Mixed = dvla::Pipeline<Sampling, Training, dvla::Placement<dvla::Hybrid>, Late>;

int moments() {
  const char* chosen = std::getenv("DVLA_FAULT_MOMENTS");
  return chosen ? std::max(std::atoi(chosen), 1) : 30;
}

template <class P>
dvla::Config<P> config_of(int iterations, int staleness) {
  auto config = small_config<P>(iterations);
  config.environment.environments = 48;  // 6 groups
  config.schedule.staleness = staleness;
  config.schedule.deadline_s = 240;
  config.run.heartbeat_s = 10;  // who dies is noticed at once, and nobody else for a machine that is busy
  return config;
}
constexpr double of_the_stopped_s = 2;  ///< heartbeat where a rank stops, which two of them have to notice
constexpr auto hangs = 240s;
constexpr std::int64_t episodes = 48;
constexpr int endless = 1000000;  ///< batches of a job that is asked to end
/// Batches after the death of all rollouts, with staleness 1: two that have come, one in training, one of nothing.
constexpr int at_most_after = 4;

/// A job in which ranks can be killed, frozen and started again while it trains.
template <class P>
class Job {
 public:
  Job(int world, const dvla::Config<P>& config)
      : config_(config),
        clusters_(dvla::testing::ThreadCluster::make(world)),
        errors(static_cast<std::size_t>(world)),
        reports(static_cast<std::size_t>(world)) {
    for (int rank = 0; rank < world; ++rank) start(rank, *clusters_[static_cast<std::size_t>(rank)]);
  }
  ~Job() { end(); }

  void kill(int rank) { clusters_[0]->kill(rank); }
  void freeze(int rank) { clusters_[0]->freeze(rank); }
  void thaw(int rank) { clusters_[0]->thaw(rank); }
  void restart(int rank) { start(rank, again(rank)); }
  /// The rank's next life, which does nothing yet.
  dvla::Cluster& again(int rank) { return *later_.emplace_back(clusters_[0]->restart(rank)); }
  /// The same program once more, in the place of a rank that nobody has killed.
  void start_twin(int rank) { start(rank, *later_.emplace_back(clusters_[0]->twin(rank))); }
  std::vector<std::string> errors_of(int rank) {
    const std::scoped_lock lock(mutex_);
    return errors[static_cast<std::size_t>(rank)];
  }
  /// Waits until a life of the rank has ended badly.
  void wait_for_error(int rank) {
    const auto until = std::chrono::steady_clock::now() + hangs;
    while (errors_of(rank).empty() && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(1ms);
    REQUIRE(!errors_of(rank).empty());
  }
  void join() {
    for (std::thread& thread : threads_)
      if (thread.joinable()) thread.join();
  }
  /// Waits until the leader has trained so many batches.
  void wait_for(std::int64_t batches) const {
    wait_until([&] { return trained >= batches; });
  }
  /// Waits until a batch has lacked episodes, and then ten in a row have not.
  void wait_until_whole_again() const {
    wait_until([&] { return gaps > 0 && whole >= 10; });
  }
  /// Waits until no rollout is left, and returns how many batches were trained when the leader saw it.
  std::int64_t wait_until_nobody_samples() const {
    wait_until([&] { return trained_when_none_left >= 0; });
    return trained_when_none_left;
  }
  void end() {
    enough.request_stop();
    join();
  }

  template <class Done>
  void wait_until(Done done) const {
    const auto until = std::chrono::steady_clock::now() + hangs;
    while (!done() && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(200us);
    if (done()) return;
    for (const auto& rank : errors)
      for (const std::string& error : rank) MESSAGE(error);
    REQUIRE(done());
  }

 private:
  const dvla::Config<P> config_;
  std::vector<std::unique_ptr<dvla::testing::ThreadCluster>> clusters_, later_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;  ///< of errors and reports: a rank may have two lives

 public:
  /// The leader's: batches, those that lacked episodes, and those since that did not.
  std::atomic<std::int64_t> trained{0}, gaps{0}, whole{0};
  std::atomic<std::int64_t> trained_when_none_left{-1};  ///< when the leader saw that no rollout is left
  dvla::stop_flag enough;                                ///< the leader's
  std::vector<std::vector<std::string>> errors;          ///< by rank, of each life that ended badly
  std::vector<dvla::RunReport> reports;                  ///< by rank, of the last life
  std::vector<dvla::Iteration> history;

  void start(int rank, dvla::Cluster& cluster) {
    threads_.emplace_back([this, rank, &cluster] {
      const auto place = static_cast<std::size_t>(rank);
      try {
        dvla::Run<P> run(config_, cluster);
        run.on_notice([this, &run](const std::string& what) {
          if (run.job().leads() && what.find("training waits for one to come again") != what.npos)
            trained_when_none_left = trained.load();
        });
        const auto see = [&](const dvla::Iteration& iteration) {
          if (!run.job().leads()) return;
          const bool all = iteration.update.episodes == episodes;
          whole = all ? whole + 1 : 0;
          if (!all) ++gaps;
        };
        const auto trains = [&](std::int64_t batch) {
          if (!run.job().leads()) return;
          trained = batch + 1;
          std::this_thread::sleep_for(1ms);  // so that there is time for faults
        };
        auto report = run.train(see, trains, run.job().leads() ? &enough : nullptr);
        if (run.job().leads()) history = run.history();
        const std::scoped_lock lock(mutex_);
        reports[place] = std::move(report);
      } catch (const std::exception& error) {
        const std::scoped_lock lock(mutex_);
        errors[place].push_back(error.what());
      }
    });
  }
};

/// What the actors trained on, and what was missing, is all that was planned.
void counts_add_up(const dvla::RunReport& report, std::int64_t batches) {
  const dvla::RankReport all = dvla::total(report.ranks);
  CHECK(all.trained + all.lost == batches * episodes);
  CHECK(all.in_flight == 0);
  CHECK(all.sent + all.unreported == all.trained + all.dropped + all.in_flight + all.unacknowledged);
  CHECK(report.max_staleness <= 3);
}

TEST_CASE(
    "a rollout is killed at a random moment: training goes on, and only what it had not handed over is "
    "lost") {
  std::mt19937 random(20261121);
  for (int moment = 0; moment < moments(); ++moment) {
    CAPTURE(moment);
    const int staleness = static_cast<int>(random() % 4);
    const int actors = 1 + static_cast<int>(random() % 2);  // of 4 ranks
    const int victim = actors + static_cast<int>(random() % static_cast<unsigned>(4 - actors));
    const bool comes_again = random() % 2 == 0;
    CAPTURE(staleness);
    CAPTURE(actors);
    CAPTURE(victim);
    CAPTURE(comes_again);
    auto config = config_of<Apart>(endless, staleness);
    config.placement.rollouts = actors == 1 ? 3 : 1;
    config.placement.actors = 1;
    Job<Apart> job(4, config);
    job.wait_for(1 + static_cast<std::int64_t>(random() % 20));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    job.kill(victim);
    const bool ends_meanwhile = random() % 4 == 0;
    if (comes_again) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
      job.restart(victim);
      if (ends_meanwhile)
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000000));
      else
        job.wait_until_whole_again();
    } else {
      job.wait_until([&] { return job.gaps > 20; });
    }
    job.end();
    for (int rank = 0; rank < 4; ++rank) {
      for (const std::string& error : job.errors[static_cast<std::size_t>(rank)]) {
        CAPTURE(rank);
        CHECK_MESSAGE(rank == victim, error);
      }
    }
    const std::int64_t batches = std::ssize(job.history);
    counts_add_up(job.reports[0], batches);
    const dvla::RankReport all = dvla::total(job.reports[0].ranks);
    for (const dvla::RankReport& rank : job.reports[0].ranks) {
      CHECK(rank.unacknowledged == 0);
      CHECK(rank.sent >= 0);
    }
    // The dead rank's share is a third or a half; it is missing from at most all batches after its death.
    CHECK(all.lost <= batches * episodes / (actors == 1 ? 3 : 2));
    if (!comes_again) {
      CHECK(job.history.back().update.episodes == (actors == 1 ? 32 : 24));
      CHECK(job.reports[0].silent == std::vector<int>{victim});
    } else if (!ends_meanwhile) {
      CHECK(job.history.back().update.episodes == episodes);
      CHECK(job.reports[0].silent.empty());
    }
  }
}

TEST_CASE("a rollout that comes again samples with current weights, and the batches are whole again") {
  for (const bool mixed : {false, true}) {
    CAPTURE(mixed);
    const auto check = [](auto& job, int victim) {
      job.wait_for(10);
      job.kill(victim);
      job.wait_until([&] { return job.gaps > 10; });
      job.restart(victim);
      job.wait_until_whole_again();
      job.end();
      for (int rank = 0; rank < 3; ++rank)
        for (const std::string& error : job.errors[static_cast<std::size_t>(rank)])
          CHECK_MESSAGE(rank == victim, error);
      REQUIRE(!job.history.empty());
      CHECK(job.history.front().update.episodes == episodes);
      CHECK(job.history.back().update.episodes == episodes);
      counts_add_up(job.reports[0], std::ssize(job.history));
      CHECK(job.reports[0].silent.empty());
      CHECK(job.reports[static_cast<std::size_t>(victim)].batches > 0);
    };
    if (mixed) {
      Job<Mixed> job(3, config_of<Mixed>(endless, 1));
      check(job, 2);
    } else {
      auto config = config_of<Apart>(endless, 1);
      config.placement = {2, 1};
      Job<Apart> job(3, config);
      check(job, 1);
    }
  }
}

TEST_CASE("two rollouts of two actors come again at once, and both are let in") {
  auto config = config_of<Apart>(endless, 1);
  config.placement = {1, 1};
  Job<Apart> job(4, config);
  job.wait_for(10);
  for (const int rank : {2, 3}) job.kill(rank);
  for (const int rank : {3, 2}) job.restart(rank);
  job.wait_until_whole_again();
  job.end();
  for (int rank = 0; rank < 4; ++rank) CHECK(job.errors_of(rank).size() == (rank < 2 ? 0 : 1));
  CHECK(job.history.back().update.episodes == episodes);
  counts_add_up(job.reports[0], std::ssize(job.history));
}

TEST_CASE(
    "all rollouts are gone: several actors train on nothing once at most, and wait for one to come again") {
  auto config = config_of<Apart>(endless, 1);
  config.placement = {1, 2};
  Job<Apart> job(3, config);
  job.wait_for(10);
  job.kill(2);
  const std::int64_t then = job.wait_until_nobody_samples();
  std::this_thread::sleep_for(500ms);
  CHECK(job.trained <= then + at_most_after);
  job.restart(2);
  job.wait_for(then + 10);
  job.end();
  for (const int actor : {0, 1})
    for (const std::string& error : job.errors[static_cast<std::size_t>(actor)]) CHECK_MESSAGE(false, error);
  CHECK(job.history.back().update.episodes == episodes);
  counts_add_up(job.reports[0], std::ssize(job.history));
  CHECK(dvla::total(job.reports[0].ranks).lost <= 8 * episodes);
}

TEST_CASE("all rollouts are gone and none comes again: every actor ends, and says so") {
  for (const int actors : {1, 2}) {
    CAPTURE(actors);
    auto config = config_of<Apart>(endless, 1);
    config.placement = {1, actors};
    config.schedule.deadline_s = 10;
    Job<Apart> job(1 + actors, config);
    job.wait_for(10);
    job.kill(actors);
    const std::int64_t then = job.wait_until_nobody_samples();
    job.join();
    for (int actor = 0; actor < actors; ++actor) {
      const auto& errors = job.errors[static_cast<std::size_t>(actor)];
      REQUIRE(errors.size() == 1);
      const bool says =
          errors[0].find("every rollout") != std::string::npos ||  // seen while it was waited for
          errors[0].find("all of them are gone") != std::string::npos;
      CHECK_MESSAGE(says, errors[0]);
    }
    CHECK(job.trained <= then + at_most_after);
  }
}

TEST_CASE("a rollout that stops is noticed by its heartbeats, and left out") {
  auto config = config_of<Apart>(endless, 1);
  config.run.heartbeat_s = of_the_stopped_s;
  config.placement = {2, 1};
  Job<Apart> job(3, config);
  job.wait_for(10);
  job.freeze(2);
  job.wait_until([&] { return job.gaps > 10; });
  job.thaw(2);
  job.wait_for_error(2);
  job.end();
  CHECK(job.errors[0].empty());
  CHECK(job.errors[1].empty());
  REQUIRE(job.errors[2].size() == 1);
  CHECK(job.history.back().update.episodes == episodes / 2);
  counts_add_up(job.reports[0], std::ssize(job.history));
}

/// The first rank that a sentence calls lost.
int lost_rank(const std::string& error) {
  const std::string before = "lost rank ";
  const std::size_t place = error.find(before);
  return place == error.npos ? -1 : std::atoi(error.c_str() + place + before.size());
}

TEST_CASE("the loss of an actor ends every rank, which says whom it lost") {
  for (const bool stops : {false, true}) {
    CAPTURE(stops);
    for (const int victim : {0, 1}) {
      CAPTURE(victim);
      auto config = config_of<Apart>(endless, 1);
      if (stops) config.run.heartbeat_s = of_the_stopped_s;
      config.placement = {1, 1};
      Job<Apart> job(4, config);
      job.wait_for(10);
      stops ? job.freeze(victim) : job.kill(victim);
      if (stops) {
        for (const int rank : {1 - victim, 2, 3}) job.wait_for_error(rank);
        job.thaw(victim);
      }
      job.join();
      for (int rank = 0; rank < 4; ++rank) {
        CAPTURE(rank);
        const auto& errors = job.errors[static_cast<std::size_t>(rank)];
        REQUIRE(errors.size() == 1);
        if (rank == victim) continue;
        // Not the other actor, which may have ended, for the same reason, before this rank noticed.
        CHECK_MESSAGE(lost_rank(errors[0]) == victim, errors[0]);
      }
    }
  }
}

TEST_CASE("an actor that fails by itself is named by every rank, with its reason") {
  auto config = config_of<Apart>(endless, 1);
  config.placement = {1, 1};
  for (const int culprit : {0, 1}) {
    const auto errors = run_ranks(4, [&](int rank, dvla::Cluster& cluster) {
      dvla::Run<Apart> run(config, cluster);
      run.train({}, [&](std::int64_t batch) {
        if (rank == culprit && batch == 5) throw dvla::Error("the disk is full");
      });
    });
    const std::string name = std::to_string(culprit);
    for (int rank = 0; rank < 4; ++rank) {
      const std::string& error = errors[static_cast<std::size_t>(rank)];
      const std::string reason = "lane 'training' failed at step 5: the disk is full";
      const std::string expected =
          (rank == culprit ? "" : "rank " + name + " (actor " + name + ") has ended: ") + reason;
      CHECK(error == expected);
    }
  }
}

TEST_CASE("before training begins the loss of any rank, or the leader's end, ends them all, who say why") {
  for (const int victim : {3, 1, 0}) {
    CAPTURE(victim);
    auto config = config_of<Apart>(100, 1);
    config.placement = {1, 1};
    config.schedule.deadline_s = 300;  // longer than the test may take
    config.run.heartbeat_s = of_the_stopped_s;
    const auto clusters = dvla::testing::ThreadCluster::make(4);
    std::vector<std::string> errors(4);
    std::atomic<int> there{0};
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 4; ++rank)
      threads.emplace_back([&, rank] {
        const auto place = static_cast<std::size_t>(rank);
        try {
          dvla::Run<Apart> run(config, *clusters[place]);
          ++there;
          while (rank == 0 && (victim != 0 || there < 4)) run.evaluate(config.environment.environments);
          if (rank > 0) run.train();
        } catch (const std::exception& error) {
          errors[place] = error.what();
        }
      });
    while (there < 4) std::this_thread::sleep_for(1ms);
    if (victim > 0) clusters[0]->kill(victim);
    for (std::thread& thread : threads) thread.join();
    for (int rank = 0; rank < 4; ++rank) {
      CAPTURE(rank);
      const std::string& error = errors[static_cast<std::size_t>(rank)];
      if (victim == 0) {
        const std::string expected = rank == 0 ? "" : "rank 0 (actor 0), which leads the job, ended before ";
        CHECK_MESSAGE(error.find(expected) == 0, error);
      } else if (rank != victim) {
        CHECK_MESSAGE(lost_rank(error) == victim, error);
        CHECK_MESSAGE(error.find(" before training began: ") != std::string::npos, error);
      }
    }
  }
}

TEST_CASE("the same job once more is refused rank by rank, and the first goes on undisturbed") {
  auto config = config_of<Apart>(endless, 1);
  config.run.heartbeat_s = of_the_stopped_s;
  config.placement = {1, 1};
  Job<Apart> job(4, config);  // two actors
  job.wait_for(10);
  for (const int rank : {1, 2, 3}) job.start_twin(rank);
  for (const int rank : {1, 2, 3}) {
    job.wait_for_error(rank);
    CAPTURE(rank);
    const std::string error = job.errors_of(rank).front();
    const char* expected = rank == 1 ? "comes when training has begun" : ") is there already: rank ";
    CHECK_MESSAGE(error.find(expected) != std::string::npos, error);
  }
  const std::int64_t then = job.trained;
  job.wait_for(then + 10);
  // Those who were refused stand in nobody's way later.
  CHECK(job.gaps == 0);
  job.kill(3);
  job.restart(3);
  job.wait_until_whole_again();
  job.end();
  for (int rank = 0; rank < 4; ++rank)
    CHECK(job.errors_of(rank).size() == std::vector<std::size_t>{0, 1, 1, 2}[static_cast<std::size_t>(rank)]);
  for (std::int64_t batch = 0; batch < then; ++batch)
    CHECK(job.history[static_cast<std::size_t>(batch)].update.episodes == episodes);
  CHECK(job.history.back().update.episodes == episodes);
  counts_add_up(job.reports[0], std::ssize(job.history));
}

TEST_CASE("a process too many is refused before training begins too, and refuses nobody") {
  const auto ranks = dvla::testing::ThreadCluster::make(2);
  const auto roles = dvla::detail::separated(1, ranks[0]->topology());
  dvla::Job leader(*ranks[0], roles, hangs), rollout(*ranks[1], roles, hangs);
  const auto twin = ranks[0]->twin(1);
  try {
    dvla::Job second(*twin, roles, hangs);
    FAIL("it was let in");
  } catch (const dvla::ConfigError& error) {
    CHECK(std::string(error.what()).find("rank 1 (rollout 0) is there already") == 0);
    dvla::Job::refuse(*twin, error);
  }
  std::thread other([&] { rollout.roll_call(dvla::Job::first_call); });
  CHECK_NOTHROW(leader.roll_call(dvla::Job::first_call));
  other.join();
}

TEST_CASE("a rollout whose earlier life has stopped, which nobody has noticed yet, is let in") {
  auto config = config_of<Apart>(endless, 1);
  config.run.heartbeat_s = of_the_stopped_s;
  config.placement = {2, 1};
  Job<Apart> job(3, config);
  job.wait_for(10);
  job.freeze(2);
  job.start_twin(2);
  job.wait_until_whole_again();
  job.thaw(2);
  job.wait_for_error(2);
  job.end();
  CHECK(job.errors_of(0).empty());
  CHECK(job.errors_of(1).empty());
  CHECK(job.errors_of(2).size() == 1);  // of the earlier life
  CHECK(job.history.back().update.episodes == episodes);
  counts_add_up(job.reports[0], std::ssize(job.history));
}

TEST_CASE(
    "a rollout that comes again and dies as it is let in delays neither its next incarnation nor the "
    "end") {
  auto config = config_of<Apart>(endless, 1);
  config.run.heartbeat_s = of_the_stopped_s;
  config.placement = {2, 1};
  config.schedule.deadline_s = 300;  // longer than the test may take
  Job<Apart> job(3, config);
  job.wait_for(10);
  job.kill(2);
  dvla::Cluster& again = job.again(2);
  REQUIRE(again.count("run/incarnations/2") == 1);
  again.put(dvla::Job::request_key(2, 1), "");
  CHECK(again.get(dvla::Job::permit_key(2, 1), hangs).empty());
  job.start(2, again);
  job.wait_until_whole_again();
  job.end();
  for (int rank = 0; rank < 3; ++rank) CHECK(job.errors_of(rank).size() == (rank == 2 ? 1 : 0));
  CHECK(job.history.back().update.episodes == episodes);
  counts_add_up(job.reports[0], std::ssize(job.history));
}

}  // namespace
