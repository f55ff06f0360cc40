// dvla-test: tsan
// What actors agree on before a batch: one word for all, and a wait, not a batch of nothing, where all
// rollouts are gone.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dvla/pipeline/agreement.hpp"
#include "dvla/testing/thread_cluster.hpp"

namespace {

using namespace dvla;
using namespace std::chrono_literals;

constexpr int actors = 3;
constexpr std::int64_t batch = 7;

/// What each of three actors ends with: its word, or what it threw.
struct Outcome {
  BatchWord word;
  std::string error;
};

/// Runs `body(actor, agreement)`, which returns a word, in a thread for each actor.
template <class Body>
std::array<Outcome, actors> agree(std::chrono::nanoseconds limit, Body body) {
  const Roles roles{{3}, {0, 1, 2}};
  const auto clusters = testing::ThreadCluster::make(actors + 1);
  std::vector<std::unique_ptr<Job>> jobs;
  for (int actor = 0; actor < actors; ++actor)
    jobs.push_back(std::make_unique<Job>(*clusters[static_cast<std::size_t>(actor)], roles, 20s));
  std::array<Outcome, actors> outcomes;
  std::vector<std::thread> threads;
  for (int actor = 0; actor < actors; ++actor)
    threads.emplace_back([&, actor] {
      const auto place = static_cast<std::size_t>(actor);
      const auto group = clusters[place]->group("actors", roles.actors, 20s);
      const auto largest = [&](std::span<std::int64_t> values) { group->max(values); };
      const auto agreement = [&](std::int64_t of, const BatchWord& own, auto asked, auto anybody) {
        return agree_on_batch(*jobs[place], of, own, limit, largest, asked, anybody);
      };
      try {
        outcomes[place].word = body(actor, agreement);
      } catch (const Error& error) {
        outcomes[place].error = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

const auto no = [] { return false; };
const auto yes = [] { return true; };

}  // namespace

TEST_CASE("a batch is as old as its oldest part, and here where any of it is") {
  for (const Outcome& each : agree(20s, [](int actor, auto&agreement) {
         return agreement(batch, {false, actor, actor == 1}, no, no);
       })) {
    CHECK(each.error.empty());
    CHECK(!each.word.ends);
    CHECK(each.word.age == 2);
    CHECK(each.word.here);
  }
}

TEST_CASE("what ends one actor ends all, whatever has come") {
  for (const bool here : {false, true})
    for (const Outcome& each : agree(20s, [here](int actor, auto&agreement) {
           return agreement(batch, {actor == 2, 0, here}, no, no);
         })) {
      CHECK(each.error.empty());
      CHECK(each.word.ends);
    }
}

TEST_CASE("batch after batch") {
  for (const Outcome& each : agree(20s, [](int actor, auto&agreement) {
         for (std::int64_t earlier = 0; earlier < batch; ++earlier)
           if (agreement(earlier, {false, 0, earlier % actors == actor}, no, no).ends)
             throw Error("ends at batch " + std::to_string(earlier));
         return agreement(batch, {actor == 0, 1, true}, no, no);
       })) {
    CHECK(each.error.empty());
    CHECK(each.word.ends);
  }
}

TEST_CASE("where nothing is here, all wait until one knows of a rollout") {
  std::array<std::atomic<int>, actors> asked{};
  for (const Outcome& each : agree(20s, [&](int actor, auto&agreement) {
         return agreement(batch, {false, actor, false}, no,
                          [&, actor] { return ++asked[static_cast<std::size_t>(actor)] == 3 && actor == 1; });
       })) {
    CHECK(each.error.empty());
    CHECK(!each.word.ends);
    CHECK(!each.word.here);
    CHECK(each.word.age == 2);
  }
  for (const auto& times : asked) CHECK(times == 3);  // no actor waits longer than another
}

TEST_CASE("a rollout that is there already is not waited for") {
  for (const Outcome& each : agree(20s, [](int, auto& agreement) { return agreement(batch, {}, no, yes); })) {
    CHECK(each.error.empty());
    CHECK(!each.word.ends);
  }
}

TEST_CASE("an actor that is asked to stop while all wait ends all") {
  for (const Outcome& each : agree(20s, [](int actor, auto&agreement) {
         int turns = 0;
         return agreement(
             batch, {}, [&] { return ++turns == 2 && actor == 0; }, no);
       })) {
    CHECK(each.error.empty());
    CHECK(each.word.ends);
  }
}

TEST_CASE("the wait for a rollout has a limit, on all actors alike") {
  const auto outcomes = agree(50ms, [](int, auto& agreement) { return agreement(batch, {}, no, no); });
  for (std::size_t actor = 0; actor < outcomes.size(); ++actor) {
    const std::string number = std::to_string(actor);
    CHECK(outcomes[actor].error ==
          "rank " + number + " (actor " + number +
              ") waited 0.05 s for a rollout to come again: all of them are gone, and nothing is there of "
              "batch 7");
  }
}
