// dvla-test: tsan asan
// Rollouts that die, freeze and come back while the data plane works: training goes on with the others, no
// episode is trained on twice or changed, and the counts prove where each one went.
#include <doctest/doctest.h>

#include <condition_variable>
#include <mutex>

#include "routed_job.hpp"

using dvla::testing::ThreadCluster;
using namespace routed_job;

namespace {

/// Strikes once somebody starts batch `batch`, some microseconds later.
class Moment {
 public:
  Moment(std::int64_t batch, std::chrono::microseconds later, std::function<void()> strike)
      : batch_(batch), thread_([this, later, strike = std::move(strike)] {
          {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return begun_; });
          }
          const auto until = std::chrono::steady_clock::now() + later;
          while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
          strike();
        }) {}
  ~Moment() {
    starts(batch_);  // nobody got that far
    thread_.join();
  }
  void starts(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    begun_ = begun_ || batch >= batch_;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool begun_ = false;
  std::int64_t batch_;
  std::thread thread_;
};

/// What became of the dead rollout's episodes: sent = received + refused + missing.
std::int64_t missing_of(const std::vector<Ledger>& ledgers, const dvla::Roles& roles, int dead,
                        const dvla::RoutedReport& its_own) {
  std::int64_t received = 0;
  for (const int rank : roles.actors)
    for (const auto& sender : ledgers[static_cast<std::size_t>(rank)].report.senders)
      if (sender.rollout == dead) received += sender.received;
  return its_own.sent - its_own.dropped - received;
}

constexpr std::int64_t batches = 10;

/// One job of three rollouts whose rollout 1 ends badly. Returns how many episodes it never delivered.
std::int64_t strike(std::uint64_t seed, const dvla::Roles& roles, bool freeze) {
  dvla::SplitMix64 random(seed);
  const Job job{.roles = roles, .staleness = static_cast<int>(seed % 3)};
  constexpr int dead = 1;
  const int victim = roles.rollouts[dead];
  const auto ranks = ThreadCluster::make(job.world());
  std::vector<Plane*> planes(ranks.size(), nullptr);
  std::mutex planes_mutex;
  std::atomic<int> ended{0};
  std::vector<Ledger> ledgers;
  {
    Moment moment(static_cast<std::int64_t>(random() % (batches + 1)),
                  std::chrono::microseconds(random() % 400), [&] {
                    if (!freeze) return ranks[0]->kill(victim);
                    ranks[0]->freeze(victim);
                    std::this_thread::sleep_for(5ms);  // two heartbeats
                    const std::scoped_lock lock(planes_mutex);
                    for (const int rank : roles.actors)
                      if (Plane* plane = planes[static_cast<std::size_t>(rank)])
                        plane->lose(dead, "no heartbeat");
                  });
    ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
      const auto rank = static_cast<std::size_t>(cluster.rank());
      {
        const std::scoped_lock lock(planes_mutex);
        planes[rank] = &plane;
      }
      try {
        cluster.put("made/" + std::to_string(rank), "");  // a job begins when all planes are there
        for (int other = 0; other < job.world(); ++other) cluster.get("made/" + std::to_string(other), 20s);
        if (const int rollout = roles.rollout(cluster.rank()); rollout >= 0) {
          job.roll_out(plane, rollout, batches, ledger, [&](std::int64_t batch) { moment.starts(batch); });
          plane.goodbye();
        } else {
          job.train(plane, batches, ledger);
          plane.goodbye();
        }
      } catch (const dvla::PeerError& error) {
        if (cluster.rank() != victim) ledger.failure = error.what();
      }
      const std::scoped_lock lock(planes_mutex);
      planes[rank] = nullptr;
    });
  }
  ledgers[static_cast<std::size_t>(victim)].failure.clear();
  const Sum sum = sum_of(ledgers);
  const auto& its_own = ledgers[static_cast<std::size_t>(victim)].report;
  const std::int64_t missing = missing_of(ledgers, roles, dead, its_own);
  CAPTURE(seed);
  REQUIRE(sum.wrong == "");
  REQUIRE(missing >= 0);
  REQUIRE(missing <= its_own.unacknowledged);  // an acknowledgement may die on its way, an episode not
  REQUIRE(sum.unacknowledged == its_own.unacknowledged);
  REQUIRE(sum.sent == sum.trained + sum.dropped + sum.in_flight + missing);
  REQUIRE(sum.trained == static_cast<std::int64_t>(sum.trained_ids.size()));
  for (const std::uint64_t id : sum.trained_ids) REQUIRE(sum.committed.contains(id));
  // The two others lost nothing.
  const auto theirs = 2 * batches * job.episodes_per_rollout();
  REQUIRE(sum.sent - its_own.sent == theirs);
  REQUIRE(sum.trained >= theirs);
  std::int64_t empty = 0;
  for (const Ledger& ledger : ledgers) empty += ledger.empty_columns;
  REQUIRE(sum.lost == empty);
  REQUIRE(sum.trained + sum.lost == 3 * batches * job.episodes_per_rollout());
  return missing;
}

}  // namespace

TEST_CASE(
    "A rollout killed at 60 random moments: the others' episodes are all trained on, the counts add up") {
  std::int64_t missing = 0;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    missing += strike(seed, {{0, 1, 2}, {3}}, false);
    missing += strike(100 + seed, {{0, 1, 2}, {3, 4}}, false);
  }
  MESSAGE("episodes that died with their rollout: " << missing);
}

TEST_CASE("A rollout frozen at 30 random moments and found by the heartbeat: the same") {
  for (std::uint64_t seed = 0; seed < 15; ++seed) {
    strike(200 + seed, {{0, 1, 2}, {3}}, true);
    strike(300 + seed, {{0, 1, 2}, {3, 4}}, true);
  }
}

TEST_CASE(
    "A killed rollout comes back as its next incarnation and is trained on again, at 20 random moments") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    dvla::SplitMix64 random(seed);
    const dvla::Roles roles{{0, 1, 2}, seed % 2 == 0 ? std::vector<int>{3} : std::vector<int>{3, 4}};
    const Job job{.roles = roles, .staleness = static_cast<int>(seed % 3)};
    constexpr std::int64_t many = 40;
    const auto ranks = ThreadCluster::make(job.world());
    std::int64_t second_first = -1;
    std::vector<Ledger> ledgers;
    std::unique_ptr<ThreadCluster> second;
    {
      Moment moment(static_cast<std::int64_t>(random() % 10), std::chrono::microseconds(random() % 400),
                    [&] { ranks[0]->kill(1); });
      ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
        if (cluster.rank() == 1) {
          try {
            cluster.put("made", "yes");
            job.roll_out(plane, 1, many, ledger);
            cluster.get("never", 20s);
          } catch (const dvla::PeerError&) {
          }
          plane.cancel();
          second = cluster.restart(1);
          dvla::EnvironmentPool pool(std::size_t{1} << 20);
          second->put("incarnation", "1");
          Ledger life;
          const auto again = job.plane(*second, pool, 1);
          second_first = again->first_batch();
          second->put("back", "yes");
          job.roll_out(*again, 1, many, life);
          again->goodbye();
          ledger.wrong.insert(ledger.wrong.end(), life.wrong.begin(), life.wrong.end());
          ledger.committed.insert(life.committed.begin(), life.committed.end());
        } else if (const int rollout = roles.rollout(cluster.rank()); rollout >= 0) {
          cluster.get("made", 20s);
          job.roll_out(plane, rollout, many, ledger, [&](std::int64_t batch) {
            moment.starts(batch);
            if (batch == 20) cluster.get("back", 20s);  // so that there is something left to come back to
          });
          plane.goodbye();
        } else {
          std::jthread watcher([&] {
            try {
              cluster.get("incarnation", 20s);
              if (!plane.rejoin(1, 1)) ledger.wrong.push_back("rollout 1 must send here");
            } catch (const std::exception& error) {
              ledger.wrong.push_back(error.what());
            }
          });
          Ledger training;
          job.train(plane, many, training);
          watcher.join();
          training.wrong.insert(training.wrong.end(), ledger.wrong.begin(), ledger.wrong.end());
          ledger = training;
          plane.goodbye();
        }
      });
    }
    CAPTURE(seed);
    const Sum sum = sum_of(ledgers);
    CHECK(sum.wrong == "");
    CHECK(second_first > 0);
    CHECK(second_first <= 20 + 2 * (job.staleness + 1));  // it was ahead when it died
    std::int64_t in_second_life = 0;
    for (const std::uint64_t id : sum.trained_ids) {
      CHECK(sum.committed.contains(id));
      const auto rollout = static_cast<std::int64_t>(id & 0xfffff) / job.episodes_per_rollout();
      in_second_life += rollout == 1 && batch_of(id) >= second_first;
    }
    // From the agreed batch on nothing of it is lost.
    CHECK(in_second_life == (many - second_first) * job.episodes_per_rollout());
    CHECK(sum.trained + sum.lost == 3 * many * job.episodes_per_rollout());
    for (const int rank : roles.actors)
      for (const auto& sender : ledgers[static_cast<std::size_t>(rank)].report.senders)
        CHECK(sender.incarnation == (sender.rollout == 1 ? 1 : 0));
  }
}

TEST_CASE("A killed actor is named to the rollouts, in produce or in goodbye") {
  const Job job{.roles = {{0, 1}, {2}}, .deadline = 5s};
  const auto ranks = ThreadCluster::make(3);
  const auto ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
    if (cluster.rank() == 2) {
      job.train(plane, 3, ledger);
      cluster.kill(2);
    } else {
      job.roll_out(plane, cluster.rank(), 100, ledger);
    }
  });
  for (const int rank : {0, 1}) {
    const std::string& failure = ledgers[static_cast<std::size_t>(rank)].failure;
    CHECK(failure.find("rank " + std::to_string(rank)) != std::string::npos);
    CHECK(failure.find("rank 2 was killed") != std::string::npos);
  }
}

TEST_CASE("With every rollout gone the one actor waits for one to come back, and says why it waits") {
  const Job job{.roles = {{0, 1}, {2}}, .deadline = 300ms};
  const auto ranks = ThreadCluster::make(3);
  const auto ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
    if (cluster.rank() == 2) return job.train(plane, 100, ledger);
    job.roll_out(plane, cluster.rank(), 4, ledger);
    cluster.kill(cluster.rank());
  });
  CHECK(ledgers[2].failure.find("missing is every rollout; rank 0 (rollout 0): ") != std::string::npos);
  CHECK(ledgers[2].failure.find("was killed") != std::string::npos);
}

TEST_CASE("Rollouts that joined may come again after their goodbye: the actor waits, until it is stopped") {
  const Job job{.roles = {{1}, {0}}};
  for (const bool joined : {false, true}) {
    CAPTURE(joined);
    const auto ranks = ThreadCluster::make(2, {}, joined ? std::vector<int>{1} : std::vector<int>{});
    dvla::stop_flag stop;
    const auto ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
      if (cluster.rank() == 0) {
        job.train(plane, 3, ledger);
        dvla::Token fourth{.batch = 3};
        if (joined) cluster.put("waits", "");
        CHECK_FALSE(plane.arrive(fourth, &stop));
        CHECK(stop.stop_requested() == joined);
      } else {
        job.roll_out(plane, 0, 3, ledger);
        plane.goodbye();
        if (!joined) return;
        cluster.get("waits", 20s);
        std::this_thread::sleep_for(60ms);  // more than one look at the flag
        stop.request_stop();
      }
    });
    for (const Ledger& ledger : ledgers) CHECK(ledger.failure == "");
    CHECK(ledgers[0].report.trained == 3 * job.episodes_per_rollout());
  }
}

TEST_CASE("An incarnation that was here already is refused, and so is a rollout that sends nothing here") {
  const Job job{.roles = {{0}, {1}}};
  const auto ranks = ThreadCluster::make(2);
  const auto ledgers = job.run(ranks, [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
    const auto channel = cluster.channel("other", 1 - cluster.rank(), 5s);
    if (cluster.rank() == 1) {
      CHECK_THROWS_WITH_AS(plane.rejoin(0, 0),
                           doctest::Contains("comes with incarnation 0, but incarnation 0 was here already"),
                           dvla::Error);
      CHECK_FALSE(plane.rejoin(7, 1));
      CHECK_THROWS_AS(plane.lose(7, ""), dvla::Error);
      job.train(plane, 5, ledger);
    } else {
      job.roll_out(plane, 0, 5, ledger);
    }
    plane.goodbye();
  });
  CHECK(sum_of(ledgers).wrong == "");
}
