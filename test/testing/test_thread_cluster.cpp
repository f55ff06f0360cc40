// dvla-test: tsan asan
// The job of threads: it conforms, and its faults look as a process's do.
#include <doctest/doctest.h>

#include "dvla/testing/cluster.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::DeadlineError;
using dvla::PeerError;
using dvla::testing::ThreadCluster;
using dvla::testing::detail::outcome;

namespace {

const auto long_enough = 20s;

/// Runs one thread per rank to its end.
template <class Body>
void each_rank(const std::vector<std::unique_ptr<ThreadCluster>>& ranks, Body body) {
  std::vector<std::thread> threads;
  for (const auto& rank : ranks) threads.emplace_back([&body, &rank] { body(*rank); });
  for (auto& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("threads conform as a job of one, two and four ranks") {
  for (const int world : {1, 2, 4}) {
    const auto ranks = ThreadCluster::make(world);
    std::vector<std::string> found(static_cast<std::size_t>(world));
    each_rank(ranks, [&](ThreadCluster& cluster) {
      for (const auto& line : dvla::testing::check_cluster(cluster, long_enough, 50ms, 500ms))
        found[static_cast<std::size_t>(cluster.rank())] += line + "\n";
    });
    for (const auto& text : found) CHECK(text == "");
  }
}

TEST_CASE("a job of one process conforms") {
  dvla::LoneCluster lone;
  for (const auto& line : dvla::testing::check_cluster(lone)) CHECK(line == "");
}

TEST_CASE("nodes are the ones given") {
  CHECK(ThreadCluster::make(3, {0, 0, 1})[2]->topology().node == std::vector<int>{0, 0, 1});
  CHECK_THROWS_AS(ThreadCluster::make(3, {0, 1}), dvla::ConfigError);
  CHECK_THROWS_AS(ThreadCluster::make(0), dvla::ConfigError);
}

TEST_CASE("a killed rank's peers learn it in calls under way, in later ones, and where it never came") {
  const auto ranks = ThreadCluster::make(3);
  std::string receiving, summing, meeting, itself;
  each_rank(ranks, [&](ThreadCluster& cluster) {
    std::byte byte{};
    if (cluster.rank() == 2) {
      const auto channel = cluster.channel("data", 0, long_enough);
      const auto group = cluster.group("all", {0, 1, 2}, long_enough);
      group->barrier();
      cluster.kill(2);
      itself = outcome([&] { channel->send(std::span(&byte, 1), long_enough); });
      CHECK(outcome([&] { cluster.put("key", "value"); }) == "PeerError: rank 2 was killed");
      return;
    }
    const auto channel = cluster.rank() == 0 ? cluster.channel("data", 2, long_enough) : nullptr;
    const auto group = cluster.group("all", {0, 1, 2}, long_enough);
    group->barrier();
    if (cluster.rank() == 0) receiving = outcome([&] { channel->receive(std::span(&byte, 1), long_enough); });
    if (cluster.rank() == 0) cluster.get("summed", long_enough);  // leaving is noticed too
    if (cluster.rank() == 1) summing = outcome([&] { group->barrier(); });
    if (cluster.rank() == 1) cluster.put("summed", "yes");
    if (cluster.rank() == 1) meeting = outcome([&] { cluster.channel("later", 2, long_enough); });
  });
  CHECK(receiving == "PeerError: rank 0 lost rank 2: rank 2 was killed (channel 'data')");
  CHECK(summing == "PeerError: rank 1 in barrier of group 'all': rank 2 was killed");
  CHECK(meeting == "PeerError: rank 1 cannot make channel 'later' 1 2: rank 2 was killed");
  CHECK(itself == "PeerError: rank 2 lost rank 0: rank 2 was killed (channel 'data')");
}

TEST_CASE("a frozen rank is waited for until the limit, and goes on when thawed") {
  const auto ranks = ThreadCluster::make(2);
  each_rank(ranks, [&](ThreadCluster& cluster) {
    const bool first = cluster.rank() == 0;
    std::byte byte{};
    const auto channel = cluster.channel("thawed", 1 - cluster.rank(), long_enough);
    const auto brief = cluster.channel("frozen", 1 - cluster.rank(), long_enough);
    const auto group = cluster.group("frozen", {0, 1}, 50ms);
    if (first) cluster.freeze(1);
    if (first) cluster.put("frozen", "yes");
    cluster.get("frozen", long_enough);
    const std::string how = outcome([&] {
      first ? brief->receive(std::span(&byte, 1), 50ms) : brief->send(std::span(&byte, 1), long_enough);
    });
    if (first)
      CHECK(how == "DeadlineError: rank 0 waited 0.05 s for rank 1 to send 1 bytes (channel 'frozen')");
    if (!first) CHECK(how.starts_with("PeerError: rank 1 lost rank 0: rank 0 gave up after 0.05 s"));
    const std::string together = outcome([&] { group->barrier(); });
    CHECK((together.starts_with("DeadlineError") || together.starts_with("PeerError")));
    CHECK(together.find("waited 0.05 s for rank 1") != std::string::npos);
    std::thread thawing([&] {
      if (first) cluster.thaw(1);
    });
    first ? channel->receive(std::span(&byte, 1), long_enough)
          : channel->send(std::span(&byte, 1), long_enough);
    thawing.join();
  });
}

TEST_CASE("a restarted rank makes new channels; the old ones stay broken") {
  const auto ranks = ThreadCluster::make(2);
  std::byte byte{};
  std::unique_ptr<dvla::Channel> old_end, new_end;
  {
    std::thread peer([&] { old_end = ranks[1]->channel("data/0", 0, long_enough); });
    const auto mine = ranks[0]->channel("data/0", 1, long_enough);
    peer.join();
    const auto again = ranks[0]->restart(1);
    std::thread next([&] {
      const auto theirs = again->channel("data/1", 0, long_enough);
      theirs->send(std::as_bytes(std::span("x")), long_enough);
    });
    new_end = ranks[0]->channel("data/1", 1, long_enough);
    std::byte text[2];
    new_end->receive(text, long_enough);
    next.join();
    CHECK_THROWS_AS(mine->receive(std::span(&byte, 1), long_enough), PeerError);
    CHECK_THROWS_AS(old_end->send(std::span(&byte, 1), long_enough), PeerError);
    CHECK_THROWS_AS(ranks[1]->get("key", long_enough), PeerError);
    CHECK(again->count("after") == 1);
  }
}

TEST_CASE("members that call different things are told so") {
  const auto ranks = ThreadCluster::make(2);
  each_rank(ranks, [&](ThreadCluster& cluster) {
    const auto group = cluster.group("g", {0, 1}, long_enough);
    std::vector<float> values(cluster.rank() == 0 ? 3 : 2);
    const std::string how = outcome([&] { group->sum(std::span(values)); });
    CHECK(how.find("rank 0 calls sum of 12 bytes, and rank 1 calls sum of 8 bytes") != std::string::npos);
  });
}

TEST_CASE("a wait for a text ends by the text, by what makes it vain, or at its deadline") {
  const auto ranks = ThreadCluster::make(1);
  ThreadCluster& cluster = *ranks[0];
  const auto soon = [](std::chrono::milliseconds limit) { return dvla::detail::deadline_after(limit); };
  const auto never = [] { return false; };
  cluster.put("there", "");
  CHECK(dvla::wait_for_text(cluster, "there", soon(0ms), "late", never) == "");
  int looks = 0;
  const auto third = [&] {
    if (++looks == 3) cluster.put("comes", "text");
    return false;
  };
  CHECK(dvla::wait_for_text(cluster, "comes", soon(20s), "late", third, 1ms) == "text");
  CHECK(looks == 3);
  CHECK(dvla::wait_for_text(cluster, "vain", soon(20s), "late", [] { return true; }) == std::nullopt);
  const auto throws = []() -> bool { throw PeerError("gone"); };
  CHECK_THROWS_WITH_AS(dvla::wait_for_text(cluster, "vain", soon(20s), "late", throws), "gone", PeerError);
  CHECK_THROWS_WITH_AS(dvla::wait_for_text(cluster, "vain", soon(30ms), "it is late", never, 1ms),
                       "it is late", DeadlineError);
}
