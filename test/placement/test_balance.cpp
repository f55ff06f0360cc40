// The arithmetic of Adaptive, on work whose times are known.
#include <doctest/doctest.h>

#include <functional>
#include <numeric>

#include "dvla/placement/balance.hpp"

namespace {

using dvla::Balance;
using dvla::LaneTimes;

/// Looks until it has settled; returns how many looks that took.
int settle(Balance& balance, const std::function<LaneTimes(int)>& times) {
  int looks = 0;
  while (!balance.settled()) {
    balance.look(times(balance.sampling()));
    REQUIRE(++looks <= balance.total());
  }
  return looks;
}
std::vector<int> all(int total) {
  std::vector<int> splits(static_cast<std::size_t>(total - 1));
  std::iota(splits.begin(), splits.end(), 1);
  return splits;
}

TEST_CASE("Work that divides evenly meets at the best split, from every other one, in a few looks") {
  for (const int total : {2, 4, 8, 16})
    for (const double work : {0.1, 1.0, 3.0, 12.0})  // of sampling against training
      for (int start = 1; start < total; ++start) {
        const auto times = [&](int sampling) { return LaneTimes{work / sampling, 1.0 / (total - sampling)}; };
        int best = 1;
        for (int split = 2; split < total; ++split)
          if (times(split).period() < times(best).period()) best = split;
        Balance balance(total, start, all(total), 0.1);
        CHECK(settle(balance, times) <= 3);
        CHECK(times(balance.sampling()).period() * (1 - 0.1) <= times(best).period() * 1.0001);
      }
}

TEST_CASE("Work that does not divide: what was measured overrules what was expected") {
  // Training loses from every worker beyond the second. So one more is tried, found worse, and given back.
  const auto times = [](int sampling) {
    const int training = 8 - sampling;
    return LaneTimes{2.0 / sampling, training > 2 ? 3.0 : 1.0};
  };
  Balance balance(8, 6, all(8), 0.1);
  CHECK(balance.look(times(6)) < 6);
  CHECK(!balance.settled());
  settle(balance, times);
  CHECK(balance.sampling() == 6);
  // Never worse than where it began.
  for (int start = 1; start < 8; ++start) {
    Balance from(8, start, all(8), 0.1);
    settle(from, times);
    CHECK(times(from.sampling()).period() <= times(start).period());
  }
}

TEST_CASE("Only splits that are allowed are tried; the start is one") {
  const auto times = [](int sampling) { return LaneTimes{8.0 / sampling, 1.0 / (8 - sampling)}; };
  Balance balance(8, 2, {4, 6}, 0.1);
  settle(balance, times);
  CHECK(balance.sampling() == 6);
  Balance still(8, 3, {}, 0.1);
  settle(still, times);
  CHECK(still.sampling() == 3);
}

TEST_CASE("Times that meet stay; times that drift away begin anew") {
  Balance balance(4, 2, all(4), 0.1);
  CHECK(balance.look({1.0, 0.95}) == 2);
  CHECK(balance.settled());
  CHECK(balance.look({1.05, 0.95}) == 2);  // within
  CHECK(balance.settled());
  CHECK(balance.look({3.0, 0.95}) == 2);  // once may be chance
  CHECK(balance.look({1.0, 0.95}) == 2);
  CHECK(balance.look({3.0, 0.95}) == 2);
  CHECK(balance.look({3.0, 0.95}) == 3);  // episodes have become longer
  CHECK(!balance.settled());
  CHECK(balance.look({2.0, 1.9}) == 3);
  CHECK(balance.settled());
  CHECK(balance.look({0, 0}) == 3);  // nothing measured says nothing
}

TEST_CASE("A machine whose times jump about is tried again more and more rarely") {
  // At 2 of 4 the times are noise around a split that is the best there is; one more or less is far worse.
  Balance balance(4, 2, all(4), 0.1);
  int moves = 0;
  for (int look = 0; look < 1000; ++look) {
    const int now = balance.sampling();
    const double noise = look % 4 < 2 ? 1.0 : 1.5;
    const LaneTimes times =
        now == 2 ? LaneTimes{noise, noise / 4} : LaneTimes{now == 3 ? 3.0 : 0.5, now == 1 ? 3.0 : 0.5};
    if (balance.look(times) != now) ++moves;
  }
  CHECK(moves > 2);
  CHECK(moves < 30);
}

TEST_CASE("Groups go by speed, one at least") {
  CHECK(dvla::deal_groups(8, {1, 1, 1, 1}) == std::vector<std::int64_t>{2, 2, 2, 2});
  CHECK(dvla::deal_groups(8, {3, 1}) == std::vector<std::int64_t>{6, 2});
  CHECK(dvla::deal_groups(3, {1000, 1, 1}) == std::vector<std::int64_t>{1, 1, 1});
  CHECK(dvla::deal_groups(10, {1, 1, 1}) == std::vector<std::int64_t>{4, 3, 3});
  CHECK_THROWS_AS(dvla::deal_groups(2, {1, 1, 1}), dvla::Error);
  CHECK_THROWS_AS(Balance(4, 4, {}, 0.1), dvla::Error);
  CHECK_THROWS_AS(Balance(4, 2, {0}, 0.1), dvla::Error);
  CHECK_THROWS_AS(Balance(4, 2, {}, 1.0), dvla::Error);
}

}  // namespace
