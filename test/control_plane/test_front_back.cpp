// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <atomic>
#include <latch>
#include <thread>
#include <vector>

#include "dvla/control_plane/front_back.hpp"

using dvla::FrontBack;

TEST_CASE("A fill shows after the swap and not before, and a swap without a fill does nothing") {
  FrontBack<int> copies(1, 1);
  CHECK_FALSE(copies.try_swap());
  copies.fill([](int& back) { back = 2; });
  CHECK(copies.front() == 1);
  CHECK(copies.try_swap());
  CHECK(copies.front() == 2);
  CHECK_FALSE(copies.try_swap());
  CHECK(copies.front() == 2);
}

TEST_CASE("Filled twice before a swap, the newest wins") {
  FrontBack<int> copies(0, 0);
  copies.fill([](int& back) { back = 1; });
  copies.fill([](int& back) {
    CHECK(back == 1);  // the same copy, reclaimed
    back = 2;
  });
  CHECK(copies.try_swap());
  CHECK(copies.front() == 2);
  CHECK_FALSE(copies.try_swap());
}

TEST_CASE(
    "While reception reclaims the back copy the sampler goes on with the front, and swap_within waits") {
  FrontBack<int> copies(0, 0);
  copies.fill([](int& back) { back = 1; });
  std::latch filling(1), go_on(1);
  std::jthread reception([&] {
    copies.fill([&](int& back) {
      filling.count_down();
      go_on.wait();
      back = 2;
    });
  });
  filling.wait();
  CHECK_FALSE(copies.try_swap());  // never blocks
  CHECK(copies.front() == 0);
  CHECK_THROWS_AS(copies.swap_within(std::chrono::milliseconds(1)), dvla::DeadlineError);
  go_on.count_down();
  CHECK(copies.swap_within(std::chrono::seconds(20)));
  CHECK(copies.front() == 2);
}

TEST_CASE("A fill that throws is not offered, and the next one is") {
  FrontBack<int> copies(0, 0);
  CHECK_THROWS_AS(copies.fill([](int& back) {
    back = 99;
    throw dvla::Error("no weights");
  }),
                  dvla::Error);
  CHECK_FALSE(copies.try_swap());
  CHECK_FALSE(copies.swap_within(std::chrono::seconds(1)));
  copies.fill([](int& back) { back = 1; });
  CHECK(copies.try_swap());
  CHECK(copies.front() == 1);
}

TEST_CASE("Hammered from both sides, the front is never torn and never goes back") {
  struct Weights {
    std::vector<int> values = std::vector<int>(512, 0);
  };
  FrontBack<Weights> copies({}, {});
  constexpr int last = 5000;
  std::jthread reception([&] {
    for (int version = 1; version <= last; ++version) {
      copies.fill([&](Weights& back) { back.values.assign(back.values.size(), version); });
    }
  });
  int seen = 0, torn = 0, backwards = 0, swaps = 0;
  while (seen < last) {
    swaps += copies.try_swap() ? 1 : 0;
    const int version = copies.front().values.front();
    for (const int value : copies.front().values) torn += value != version;
    backwards += version < seen;
    seen = version;
  }
  CHECK(torn == 0);
  CHECK(backwards == 0);
  CHECK(swaps >= 1);
}

TEST_CASE("swap_within gives what was installed before it was called, however soon the next fill begins") {
  FrontBack<long> weights(0, 0);
  std::atomic<long> installed{0};
  std::atomic<bool> done{false};
  std::thread reception([&] {
    for (long version = 1; !done; ++version) {
      weights.fill([&](long& back) { back = version; });
      installed.store(version);
    }
  });
  long older = 0;
  for (int swap = 0; swap < 200000; ++swap) {
    const long needed = installed.load();
    weights.swap_within(std::chrono::seconds(30));
    older += weights.front() < needed;
  }
  done = true;
  reception.join();
  CHECK(older == 0);
}
