// dvla-test: tsan asan
// Heartbeats among threads: deaths, stops and departures, each told apart and told once.
#include <doctest/doctest.h>

#include <map>

#include "dvla/placement/heartbeat.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::Heartbeat;
using dvla::testing::ThreadCluster;

namespace {

const auto long_enough = 100s;

/// What one rank was told.
struct Losses {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<int, std::vector<std::string>> reasons;

  Heartbeat::OnLost callback() {
    return [this](int peer, const std::string& reason) {
      const std::scoped_lock lock(mutex);
      reasons[peer].push_back(reason);
      changed.notify_all();
    };
  }
  /// The reason, once there is one.
  std::string wait_for(int peer) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, long_enough, [&] { return !reasons[peer].empty(); });
    return reasons[peer].empty() ? "nothing" : reasons[peer].front();
  }
  std::size_t count() {
    const std::scoped_lock lock(mutex);
    std::size_t all = 0;
    for (const auto& [peer, list] : reasons) all += list.size();
    return all;
  }
};

/// Each rank watches every other one; `body(cluster, heartbeat, losses)` runs in its thread.
template <class Body>
void job(int world, std::chrono::milliseconds period, Body body) {
  const auto ranks = ThreadCluster::make(world);
  std::vector<std::thread> threads;
  for (const auto& owned : ranks)
    threads.emplace_back([&, cluster = owned.get()] {
      Losses losses;
      Heartbeat heartbeat(period, losses.callback());
      for (int peer = 0; peer < world; ++peer)
        if (peer != cluster->rank()) heartbeat.watch(peer, cluster->channel("beats", peer, long_enough));
      body(*cluster, heartbeat, losses);
    });
  for (auto& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("ranks that live are not reported, and those that leave are not lost") {
  job(3, 1s, [](ThreadCluster& cluster, Heartbeat& heartbeat, Losses& losses) {
    if (cluster.rank() != 1) std::this_thread::sleep_for(3500ms);  // rank 1 leaves first
    heartbeat.leave();
    CHECK(losses.count() == 0);
    heartbeat.leave();  // twice is once
  });
}

TEST_CASE("a rank that leaves alone is lost to the others at once, and says why") {
  job(3, 5s, [](ThreadCluster& cluster, Heartbeat& heartbeat, Losses& losses) {
    if (cluster.rank() == 2) {
      heartbeat.leave(true);
      CHECK(losses.count() == 0);
      return;
    }
    CHECK(losses.wait_for(2) == "it has left");
    heartbeat.leave();
    CHECK(losses.count() == 1);
  });
}

TEST_CASE("leaving at once, all together, is in peace") {
  for (int round = 0; round < 20; ++round)
    job(4, 1s, [](ThreadCluster&, Heartbeat& heartbeat, Losses& losses) {
      heartbeat.leave();
      CHECK(losses.count() == 0);
    });
}

TEST_CASE("a killed rank is reported to each peer once, long before two periods") {
  job(3, 5s, [](ThreadCluster& cluster, Heartbeat& heartbeat, Losses& losses) {
    if (cluster.rank() == 2) {
      cluster.kill(2);
      return;
    }
    CHECK(losses.wait_for(2).find("rank 2 was killed") != std::string::npos);
    heartbeat.leave();
    CHECK(losses.count() == 1);
  });
}

TEST_CASE("a frozen rank is reported after two periods, and named") {
  job(2, 50ms, [](ThreadCluster& cluster, Heartbeat& heartbeat, Losses& losses) {
    if (cluster.rank() == 0) {
      std::this_thread::sleep_for(120ms);
      cluster.freeze(1);
      const std::string reason = losses.wait_for(1);
      CHECK(
          (reason == "rank 1 was silent for 0.1 s, two heartbeats" ||
           reason.find("rank 0 lost rank 1") != std::string::npos));  // it gave up first, on the frozen side
      heartbeat.leave();
      CHECK(losses.count() == 1);
    } else {
      losses.wait_for(0);
    }
  });
}

TEST_CASE("a rank that ends without leaving is lost") {
  job(2, 5s, [](ThreadCluster& cluster, Heartbeat&, Losses& losses) {
    if (cluster.rank() == 1) CHECK(losses.wait_for(0).find("rank 0 closed it") != std::string::npos);
  });
}

TEST_CASE("a rank that comes again is watched again") {
  const auto ranks = ThreadCluster::make(2);
  Losses losses, others;
  Heartbeat heartbeat(5s, losses.callback());
  std::unique_ptr<ThreadCluster> again;
  const auto pair_up = [&](ThreadCluster& other, Heartbeat& its, const std::string& name) {
    std::thread peer([&] { its.watch(0, other.channel(name, 0, long_enough)); });
    heartbeat.watch(1, ranks[0]->channel(name, 1, long_enough));
    peer.join();
  };
  Heartbeat first(5s, others.callback());
  pair_up(*ranks[1], first, "beats/0");
  again = ranks[0]->restart(1);
  CHECK(losses.wait_for(1).find("rank 1 was killed") != std::string::npos);
  Heartbeat second(5s, others.callback());
  pair_up(*again, second, "beats/1");
  CHECK(losses.count() == 1);
  // The next life is there before the last one's end was noticed.
  auto third_life = ThreadCluster::make(2);
  {
    std::unique_ptr<dvla::Channel> theirs;
    std::thread peer([&] { theirs = third_life[1]->channel("beats/2", 0, long_enough); });
    heartbeat.watch(1, third_life[0]->channel("beats/2", 1, long_enough));
    peer.join();
    CHECK(losses.count() == 2);
    std::thread answer([&] {
      std::byte word{};
      while (word != std::byte{2}) theirs->receive(std::span(&word, 1), long_enough);
      theirs->send(std::span(&word, 1), long_enough);
    });
    heartbeat.leave();
    answer.join();
  }
  CHECK(losses.count() == 2);
}

TEST_CASE("a period that cannot be is refused") {
  CHECK_THROWS_AS(Heartbeat(0ms, [](int, const std::string&) {}), dvla::ConfigError);
}
