// dvla-test: tsan
// Groups of the actors are whole groups for who has them, and end when an actor is lost.
#include <doctest/doctest.h>

#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "dvla/pipeline/actor_groups.hpp"
#include "dvla/testing/thread_cluster.hpp"

namespace {

using namespace dvla;
using namespace std::chrono_literals;

/// Runs `body(job, groups)` in a thread for each of the two actors of a job of three ranks.
template <class Body>
void with_actors(Body body) {
  const Roles roles{{0}, {1, 2}};
  const auto clusters = testing::ThreadCluster::make(3);
  std::vector<std::unique_ptr<Job>> jobs;
  for (const auto& cluster : clusters) jobs.push_back(std::make_unique<Job>(*cluster, roles, 20s));
  std::vector<std::thread> threads;
  for (const int rank : roles.actors)
    threads.emplace_back([&, rank] {
      ActorGroups groups;
      body(*jobs[static_cast<std::size_t>(rank)], groups);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("a group does what the cluster's does, each by itself") {
  with_actors([](const Job& job, ActorGroups& groups) {
    const auto one = groups.make(job, Collectives::gloo, "one", 20s),
               two = groups.make(job, Collectives::gloo, "two", 20s);
    CHECK(one->rank() == job.actor());
    CHECK(one->size() == 2);
    const int own = job.actor() + 1;
    std::array<float, 2> floats{static_cast<float>(own), 1};
    std::array<double, 1> doubles{10.0 * own};
    std::array<std::int64_t, 1> largest{own};
    one->sum(floats);
    two->sum(doubles);
    one->max(largest);
    CHECK(floats == std::array<float, 2>{3, 2});
    CHECK(doubles[0] == 30);
    CHECK(largest[0] == 2);
    std::array<std::int32_t, 1> from{own};
    std::array<std::int32_t, 2> all{};
    two->all_gather(std::as_bytes(std::span(from)), std::as_writable_bytes(std::span(all)));
    CHECK(all == std::array<std::int32_t, 2>{1, 2});
    std::array<float, 1> part{};
    two->reduce_scatter(floats, part);
    CHECK(part[0] == (job.actor() == 0 ? 6 : 4));
    one->broadcast(std::as_writable_bytes(std::span(from)), 1);
    CHECK(from[0] == 2);
    two->barrier();
  });
}

TEST_CASE("close() ends the collectives that wait, and those to come, of all its groups") {
  with_actors([](const Job& job, ActorGroups& groups) {
    const auto one = groups.make(job, Collectives::gloo, "one", 20s),
               two = groups.make(job, Collectives::gloo, "two", 20s);
    {
      const auto gone = groups.make(job, Collectives::gloo, "gone", 20s);  // its owner needs it no more
    }
    if (job.leads()) {  // the other never comes
      std::thread closes([&] {
        std::this_thread::sleep_for(50ms);
        groups.close();
      });
      std::array<double, 1> value{1};
      CHECK_THROWS_AS(one->sum(value), Error);
      closes.join();
      CHECK_THROWS_AS(two->barrier(), Error);
    } else {
      std::array<double, 1> value{1};
      CHECK_THROWS_AS(two->sum(value), Error);
    }
  });
}
