// dvla-test: tsan
// Adaptive: shares of the work move between stretches, and training goes on as if nothing had moved: all
// batches are there, all episodes are counted, the optimiser's state is that of the actors before.
#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "toy_job.hpp"

namespace {

/// Rows that take their time without work for a core, so that ranks which share cores are still as fast as
/// they are many.
struct Slow {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Slow";
};
std::atomic<std::int64_t> microseconds_a_row{0};
/// Of the rank whose thread it is: how many times as slow.
thread_local int times_as_slow = 1;

struct SlowEnvironment : dvla::ToyEnvironment {
  SlowEnvironment(const dvla::ToyKnobs& knobs, std::pmr::memory_resource& pool)
      : ToyEnvironment(knobs, pool), factor(times_as_slow) {}
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    const std::int64_t all = action.extents()[0];  // whether their episodes are over or not
    std::this_thread::sleep_for(
        std::chrono::microseconds(all * factor * microseconds_a_row / rows.arena().threads()));
    return ToyEnvironment::step(rows, action, outcome);
  }
  const int factor;
};

}  // namespace

template <class Around>
struct dvla::machinery<Slow, Around> {
  using type = SlowEnvironment;
};

namespace {
using namespace dvla_test;

using Moving = dvla::Pipeline<dvla::Sampler<Slow, dvla::testing::LinearModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>,
                              dvla::Placement<dvla::Adaptive>, dvla::Schedule<dvla::Swimlane<3>>>;

dvla::Config<Moving> config_of(int iterations, int rollouts, int actors) {
  auto config = small_config<Moving>(iterations);
  config.schedule.staleness = 1;
  config.placement.rollouts = rollouts;
  config.placement.actors = actors;
  config.placement.look_every = 3;
  return config;
}

void all_is_well(const JobResult& result, int iterations) {
  for (const std::string& error : result.errors) CHECK_MESSAGE(error.empty(), error);
  REQUIRE(result.history.size() == static_cast<std::size_t>(iterations));
  for (std::size_t i = 0; i < result.history.size(); ++i) {
    CHECK(result.history[i].batch == static_cast<std::int64_t>(i));
    CHECK(result.history[i].update.episodes == 64);
    if (i > 0) CHECK(result.history[i].counts.env_steps > result.history[i - 1].counts.env_steps);
  }
}

TEST_CASE("A job whose sampling takes long ends with more rollouts, whatever it began with") {
  microseconds_a_row = 300;  // 64 rows and 4 steps: 77 ms by one rank
  auto result = train_job(4, config_of(100, 1, 3));
  all_is_well(result, 100);
  const dvla::RunReport& report = result.report();
  REQUIRE(report.looks.size() >= 2);
  CHECK(report.looks[0].shares.rollouts == 1);
  CHECK(report.looks[0].next.rollouts > 1);  // 3, unless this machine is slow at training
  CHECK(report.looks.back().next.rollouts > 1);
  CHECK(report.batches == 100);
  const dvla::RankReport all = dvla::total(report.ranks);
  CHECK(all.sent == 100 * 64);
  CHECK(all.trained == 100 * 64);
  CHECK(all.dropped == 0);
  CHECK(all.lost == 0);
  CHECK(all.env_steps == result.history.back().counts.env_steps);
  CHECK(report.env_steps == all.env_steps);
  CHECK(all.weight_bytes_sent == all.weight_bytes_received);
  double last = 0;
  for (std::size_t i = 90; i < 100; ++i) last += result.history[i].update.success_rate / 10;
  CHECK(last > result.history[0].update.success_rate + 0.3);
}

TEST_CASE("A rollout that is three times as slow gets fewer environments") {
  microseconds_a_row = 200;
  const auto clusters = dvla::testing::ThreadCluster::make(4);
  std::vector<std::string> errors(4);
  std::vector<dvla::Look> looks;
  dvla::RankReport all{};
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank)
    ranks.emplace_back([&, rank] {
      times_as_slow = rank == 2 ? 3 : 1;
      try {
        dvla::Run<Moving> run(config_of(30, 3, 1), *clusters[static_cast<std::size_t>(rank)]);
        const auto report = run.train();
        if (run.job().leads()) {
          looks = report.looks;
          all = dvla::total(report.ranks);
          CHECK(run.weights().steps() == 30 * run.config().algorithm.epochs);  // the moments went along
        }
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  for (std::thread& rank : ranks) rank.join();
  for (const std::string& error : errors) CHECK_MESSAGE(error.empty(), error);
  REQUIRE(looks.size() >= 2);
  REQUIRE(looks.back().next.groups.size() == 3);  // of 8: 3.4, 1.1 and 3.4 by speed
  CHECK(looks.back().next.groups[1] < looks.back().next.groups[0]);
  CHECK(looks.back().next.groups[1] < looks.back().next.groups[2]);
  CHECK(looks.back().times.sampling_s < looks.front().times.sampling_s);
  CHECK(all.trained == 30 * 64);
  CHECK(all.sent == all.trained);
}

#ifndef __SANITIZE_THREAD__  // which cannot see into the arenas of several threads
/// A view of a cluster whose store goes, for this rank, with the first key that has `word` in it.
class LosingStore final : public dvla::Cluster {
 public:
  LosingStore(dvla::Cluster& whole, std::string word) : whole_(whole), word_(std::move(word)) {}
  int rank() const override { return whole_.rank(); }
  const dvla::Topology& topology() const override { return whole_.topology(); }
  std::unique_ptr<dvla::Channel> channel(const std::string& name, int peer,
                                         std::chrono::nanoseconds limit) override {
    return whole_.channel(name, peer, limit);
  }
  std::unique_ptr<dvla::Group> group(const std::string& name, const std::vector<int>& members,
                                     std::chrono::nanoseconds limit) override {
    return whole_.group(name, members, limit);
  }
  void put(const std::string& key, const std::string& value) override { ask(key).put(key, value); }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    return ask(key).get(key, limit);
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds limit) override {
    return ask(key).has_within(key, limit);
  }
  std::string put_once(const std::string& key, const std::string& value,
                       std::chrono::nanoseconds limit) override {
    return ask(key).put_once(key, value, limit);
  }
  std::int64_t count(const std::string& key) override { return ask(key).count(key); }

 private:
  dvla::Cluster& ask(const std::string& key) {
    if (key.find(word_) != key.npos) gone_ = true;
    if (gone_) throw dvla::PeerError("the job's store is gone");
    return whole_;
  }
  dvla::Cluster& whole_;
  const std::string word_;
  std::atomic<bool> gone_{false};
};

TEST_CASE("The job's store goes while roles change: every rank ends with a sentence, and none crashes") {
  microseconds_a_row = 200;
  // As each step of the change asks it first; the first key is asked for when the new roles are taken.
  for (const char* word :
       {"roles/1/run/here/", "roles/1/run/agreed/", "roles/1/run/built/", "roles/1/run/start/"}) {
    CAPTURE(word);
    auto config = config_of(40, 1, 3);
    config.schedule.deadline_s = 5;
    const auto clusters = dvla::testing::ThreadCluster::make(4);
    std::vector<std::string> errors(4);
    std::vector<int> actors(4);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 4; ++rank)
      threads.emplace_back([&, rank] {
        const auto place = static_cast<std::size_t>(rank);
        LosingStore store(*clusters[place], word);
        dvla::Run<Moving> run(config, store);
        try {
          run.train();
        } catch (const std::exception& error) {
          errors[place] = error.what();
        }
        actors[place] = run.job().actors();  // the run still answers, in its old roles or its new ones
        const auto save = [&] { run.while_still([](const dvla::StillWeights&) {}); };
        if (std::string(word) == "roles/1/run/here/") CHECK_THROWS_AS(save(), dvla::Error);
      });
    for (std::thread& thread : threads) thread.join();
    for (std::size_t rank = 0; rank < 4; ++rank) {
      CAPTURE(rank);
      CHECK_MESSAGE(errors[rank].find("the job's store is gone") != std::string::npos, errors[rank]);
      CHECK(actors[rank] >= 1);
    }
  }
}

TEST_CASE("In one process cores move between the lanes") {
  microseconds_a_row = 300;
  auto config = config_of(30, 1, 1);
  config.schedule.sampling_threads = 1;
  config.schedule.training_threads = 3;
  dvla::Run<Moving> run(config);
  const auto report = run.train();
  REQUIRE(report.looks.size() >= 2);
  CHECK(report.looks[0].next.sampling_threads > 1);
  CHECK(report.looks[0].next.training_threads < 3);

  CHECK(report.batches == 30);
  CHECK(run.history().size() == 30);
  CHECK(report.looks[1].times.sampling_s < report.looks[0].times.sampling_s);
}
#endif

TEST_CASE("What Adaptive cannot do is said before anything starts") {
  auto config = config_of(3, 1, 1);
  config.run.record = true;
  try {
    dvla::Run<Moving> run(config);
    FAIL("not refused");
  } catch (const dvla::ConfigError& error) {
    CHECK(std::string(error.what()) ==
          "run.record is for a run whose shares stand still, and Adaptive moves them");
  }
}

}  // namespace
