// dvla-test: tsan
// credit: K + 1 permits, no more; who gives back what was not taken is told.
#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "dvla/handoff/credit.hpp"

using namespace std::chrono_literals;
using dvla::credit;

TEST_CASE("a credit of staleness K holds K + 1 permits") {
  for (int k = 0; k <= 3; ++k) {
    credit<3> permits(k);
    CHECK(permits.permits() == k + 1);
    for (int i = 0; i <= k; ++i) CHECK(permits.try_acquire());
    CHECK_FALSE(permits.try_acquire());
    permits.release();
    CHECK(permits.acquire(1h, {}));
  }
}

TEST_CASE("a staleness outside 0 to Max is refused by name and range") {
  CHECK_THROWS_WITH_AS(credit<3>(4), "staleness is 4, choose 0 to 3", dvla::ConfigError);
  CHECK_THROWS_WITH_AS(credit<3>(-1), "staleness is -1, choose 0 to 3", dvla::ConfigError);
}

TEST_CASE("giving back more than was taken is an error and changes nothing") {
  credit<1> permits(1);
  CHECK_THROWS_AS(permits.release(), dvla::Error);
  CHECK_FALSE(permits.try_release());
  CHECK(permits.try_acquire());
  CHECK(permits.try_acquire());
  CHECK_FALSE(permits.try_acquire());
}

TEST_CASE("a permit that does not come back in time is a DeadlineError that names both lanes") {
  credit<0> permits(0);
  CHECK(permits.try_acquire());
  CHECK_THROWS_WITH_AS(permits.acquire(20ms, {"sampling", "installed weights", "reception", 3}),
                       "lane 'sampling' waited 0.02 s for installed weights from lane 'reception' (batch 3)",
                       dvla::DeadlineError);
}

TEST_CASE("cancelling wakes who waits, with an empty hand") {
  credit<0> permits(0);
  CHECK(permits.try_acquire());
  std::thread waiter([&] { CHECK_FALSE(permits.acquire(1h, {})); });
  permits.cancel();
  waiter.join();
}

TEST_CASE("never more than K + 1 are inside, with several threads") {
  credit<3> permits(2);
  std::atomic<int> inside{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 3000; ++i) {
        REQUIRE(permits.acquire(60s, {}));
        const int now = inside.fetch_add(1) + 1;
        for (int seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        inside.fetch_sub(1);
        permits.release();
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(most <= 3);
}

TEST_CASE("what is written before a permit is given back is seen by who takes it next") {
  credit<0> to(0), fro(0);
  REQUIRE(to.try_acquire());
  REQUIRE(fro.try_acquire());
  int shared = 0;  // ThreadSanitizer looks on
  std::jthread giver([&] {
    for (int turn = 1; turn <= 1000; ++turn) {
      shared = turn;
      to.release();
      if (!fro.acquire(10s, {})) return;
    }
  });
  for (int turn = 1; turn <= 1000; ++turn) {
    REQUIRE(to.acquire(10s, {}));
    CHECK(shared == turn);
    fro.release();
  }
}
