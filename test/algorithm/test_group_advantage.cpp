#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/core/random.hpp"

using Flags = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

namespace {
Floats advantages(std::size_t group, const Floats& returns, const Flags& valid = {}) {
  Floats out(returns.size(), 99);
  dvla::group_advantage(group, returns, valid, out);
  return out;
}

Floats random_returns(std::size_t count, std::uint64_t seed) {
  dvla::SplitMix64 random(seed);
  Floats returns(count);
  for (float& value : returns) value = static_cast<float>(random.normal());
  return returns;
}
}  // namespace

TEST_CASE("one success among four gives 1.5 and -0.5, with the unbiased spread of 0.5") {
  const Floats out = advantages(4, {1, 0, 0, 0});
  CHECK(out[0] == doctest::Approx(0.75 / (0.5 + 1e-6)).epsilon(1e-6));
  CHECK(out[1] == doctest::Approx(-0.25 / (0.5 + 1e-6)).epsilon(1e-6));
}

TEST_CASE("in every group advantages have mean 0 and unbiased deviation 1") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const Floats out = advantages(8, random_returns(64, seed));
    for (std::size_t g = 0; g < 64; g += 8) {
      double sum = 0, squares = 0;
      for (std::size_t i = g; i < g + 8; ++i) sum += out[i], squares += out[i] * out[i];
      CHECK(std::abs(sum) < 1e-5);
      CHECK(squares / 7 == doctest::Approx(1).epsilon(1e-4));
    }
  }
}

TEST_CASE("the order of the members of a group does not matter") {
  Floats returns = random_returns(8, 3);
  const Floats before = advantages(8, returns);
  std::rotate(returns.begin(), returns.begin() + 3, returns.end());
  const Floats after = advantages(8, returns);
  for (std::size_t i = 0; i < 8; ++i) CHECK(after[i] == doctest::Approx(before[(i + 3) % 8]).epsilon(1e-6));
}

TEST_CASE("shifting or scaling all returns of a group leaves the advantages") {
  const Floats returns = random_returns(8, 4);
  Floats moved = returns;
  for (float& value : moved) value = 16 * value + 128;
  const Floats before = advantages(8, returns), after = advantages(8, moved);
  for (std::size_t i = 0; i < 8; ++i) CHECK(after[i] == doctest::Approx(before[i]).epsilon(1e-3));
}

TEST_CASE("a masked member does not shift the baseline") {
  const Floats three = advantages(3, {1, 2, 4});
  for (const float masked : {0.0F, 1e30F, std::numeric_limits<float>::quiet_NaN()}) {
    const Floats four = advantages(4, {1, masked, 2, 4}, {1, 0, 1, 1});
    CHECK(four == Floats{three[0], 0, three[1], three[2]});
  }
}

TEST_CASE("groups that teach nothing get exactly 0") {
  CHECK(advantages(4, {0.1F, 0.1F, 0.1F, 0.1F}) == Floats(4, 0));
  CHECK(advantages(3, {0.1F, 5, 0.1F}, {1, 0, 1}) == Floats(3, 0));
  CHECK(advantages(4, {7, 1, 2, 3}, {1, 0, 0, 0}) == Floats(4, 0));
  CHECK(advantages(4, {7, 1, 2, 3}, {0, 0, 0, 0}) == Floats(4, 0));
  CHECK(advantages(1, {7, 1, 2, 3}) == Floats(4, 0));

  const Floats returns{1, 1, 0, 1};
  Floats out(4);
  const dvla::GroupSummary summary = dvla::group_advantage(2, returns, {}, out);
  CHECK(summary.groups == 2);
  CHECK(summary.informative == 1);
}

TEST_CASE("the filter keeps groups inside [lower, upper], borders included, and drops their masked members") {
  const Floats returns{1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 9};
  const Flags valid{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0};
  Flags keep(16, 9);
  const dvla::GroupSummary summary = dvla::filter_rewards(4, 0.25, 0.75, returns, valid, keep);
  CHECK(keep == Flags{1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0});
  CHECK(summary.informative == 2);

  Flags mask(2 * 16 * 3, 1);  // [T, B, C]
  dvla::mask_episodes(keep, 3, mask);
  for (std::size_t i = 0; i < mask.size(); ++i) CHECK(mask[i] == keep[i / 3 % 16]);
}

TEST_CASE("advantages are broadcast over time where the mask is set") {
  const Floats advantage{2, -3};
  const Flags mask{1, 1, 1, 0, 1, 0, 0, 0};  // [T = 2, B = 2, C = 2]
  Floats out(8, 99);
  dvla::broadcast_advantage(advantage, 2, mask, out);
  CHECK(out == Floats{2, 2, -3, 0, 2, 0, 0, 0});
}

TEST_CASE("wrong group sizes and returns that are not finite are refused in words") {
  CHECK_THROWS_WITH_AS(
      advantages(3, Floats(8, 0)),
      "group_size is 3 and there are 8 episodes: choose a group_size of at least 1 that divides the "
      "number of episodes.",
      dvla::ConfigError);
  CHECK_THROWS_AS(advantages(0, Floats(8, 0)), dvla::ConfigError);
  CHECK_THROWS_AS(advantages(2, {1, std::numeric_limits<float>::infinity()}), dvla::Error);
  Flags keep(4);
  CHECK_THROWS_AS(dvla::filter_rewards(4, 0.9, 0.1, Floats(4, 0), {}, keep), dvla::ConfigError);
}
