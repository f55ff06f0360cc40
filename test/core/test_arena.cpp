// dvla-test: asan
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "dvla/core/arena.hpp"

TEST_CASE("for_each visits every index once, with one thread and with several") {
  for (const int threads : {1, 2, 3}) {
    dvla::Arena arena(threads);
    CHECK(arena.threads() == threads);
    for (const std::int64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
      arena.for_each(count, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
      CHECK(std::all_of(visits.begin(), visits.end(), [](const auto& n) { return n == 1; }));
    }
  }
}

TEST_CASE("The first exception comes out of for_each and the arena is usable afterwards") {
  for (const int threads : {1, 2}) {
    dvla::Arena arena(threads);
    CHECK_THROWS_AS(arena.for_each(100,
                                   [](std::int64_t i) {
                                     if (i == 37) throw std::runtime_error("row 37");
                                   }),
                    std::runtime_error);
    std::atomic<int> visits{0};
    arena.for_each(100, [&](std::int64_t) { ++visits; });
    CHECK(visits == 100);
  }
}

TEST_CASE("both runs both, also when one of them throws") {
  for (const int threads : {1, 2}) {
    dvla::Arena arena(threads);
    int first = 0, second = 0;
    arena.both([&] { first = 1; }, [&] { second = 2; });
    CHECK(first == 1);
    CHECK(second == 2);
    CHECK_THROWS_AS(arena.both([] { throw std::runtime_error("first"); }, [] {}), std::runtime_error);
    CHECK_THROWS_AS(arena.both([&] { first = 3; }, [] { throw std::runtime_error("second"); }),
                    std::runtime_error);
    CHECK(first == 3);
  }
}

TEST_CASE("No threads asked for is one thread") { CHECK(dvla::Arena(0).threads() == 1); }
