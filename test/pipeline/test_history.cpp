// dvla-test: tsan
// A run's history: totals of the batches trained, on from a checkpoint, and read while it grows.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "dvla/pipeline/history.hpp"

namespace {
dvla::Iteration iteration(std::int64_t batch) {
  dvla::Iteration each;
  each.batch = batch;
  return each;
}
}  // namespace

TEST_CASE("each batch has the totals up to it") {
  dvla::History history;
  history.begin(3);
  CHECK(history.next_batch() == 0);
  for (std::int64_t batch = 0; batch < 3; ++batch) history.add(iteration(batch), {10, 5});
  CHECK(history.next_batch() == 3);
  CHECK(history.iterations().size() == 3);
  CHECK(history.at(1).counts.env_steps == 20);
  CHECK(history.at(2).counts.chunk_steps == 15);
  CHECK(history.trained().env_steps == 30);
}

TEST_CASE("a resumed run goes on from its last batch, without those that came after the checkpoint") {
  std::vector<dvla::Iteration> before(4);
  for (std::size_t batch = 0; batch < before.size(); ++batch)
    before[batch].counts.env_steps = 100 * static_cast<std::int64_t>(batch + 1);
  dvla::History history;
  history.continue_from(2, before);
  history.begin(5);
  CHECK(history.iterations().size() == 2);
  CHECK(history.trained().env_steps == 200);
  history.add(iteration(2), {7, 1});
  CHECK(history.next_batch() == 3);
  CHECK(history.at(2).counts.env_steps == 207);
}

TEST_CASE("a rank that becomes an actor takes over what the others have counted") {
  dvla::History history;
  history.begin(10);
  history.skip_to(4);
  history.take_over({400, 40});
  CHECK(history.iterations().size() == 4);
  CHECK(history.at(3).counts.env_steps == 0);  // it does not know
  history.add(iteration(4), {1, 1});
  CHECK(history.at(4).counts.env_steps == 401);
}

TEST_CASE("an observer reads what has been added while more is") {
  dvla::History history;
  history.begin(0);  // no room: it has to grow
  constexpr std::int64_t batches = 2000;
  std::atomic<std::int64_t> added{0};
  std::int64_t wrong = 0;
  std::thread observer([&] {
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      while (added.load() <= batch) std::this_thread::yield();
      const dvla::Iteration read = history.at(batch);
      wrong += read.batch != batch || read.counts.env_steps != 3 * (batch + 1);
    }
  });
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    history.add(iteration(batch), {3, 1});
    ++added;
  }
  observer.join();
  CHECK(wrong == 0);
}
