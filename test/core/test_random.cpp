#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "dvla/core/random.hpp"

using dvla::mix_seed;
using dvla::SplitMix64;

static_assert(std::uniform_random_bit_generator<SplitMix64>);

TEST_CASE("SplitMix64 gives the published sequence") {
  SplitMix64 random(1234567);
  const std::uint64_t expected[] = {6457827717110365317ULL, 3203168211198807973ULL, 9817491932198370423ULL,
                                    4593380528125082431ULL, 16408922859458223821ULL};
  for (const std::uint64_t value : expected) CHECK(random() == value);
}

TEST_CASE("a generator continues from its saved state") {
  SplitMix64 random(7);
  for (int i = 0; i < 10; ++i) random.normal();
  SplitMix64 restored(random.state());
  CHECK(restored == random);
  for (int i = 0; i < 100; ++i) CHECK(restored.normal() == random.normal());
}

TEST_CASE("uniform01 stays in [0, 1) and has the moments of the uniform distribution") {
  SplitMix64 random(1);
  double sum = 0, squares = 0;
  constexpr int draws = 200000;
  for (int i = 0; i < draws; ++i) {
    const double value = random.uniform01();
    REQUIRE((value >= 0 && value < 1));
    const float single = random.uniform01<float>();
    REQUIRE((single >= 0 && single < 1));
    sum += value;
    squares += value * value;
  }
  CHECK(sum / draws == doctest::Approx(0.5).epsilon(0.005));
  CHECK(squares / draws - std::pow(sum / draws, 2) == doctest::Approx(1.0 / 12).epsilon(0.01));
}

TEST_CASE("uniform maps to the asked interval") {
  SplitMix64 random(2);
  for (int i = 0; i < 1000; ++i) {
    const float value = random.uniform(-3.0F, 5.0F);
    CHECK((value >= -3.0F && value <= 5.0F));
  }
}

TEST_CASE("below covers every value about equally often") {
  SplitMix64 random(3);
  std::array<int, 7> counts{};
  for (int i = 0; i < 70000; ++i) ++counts.at(static_cast<std::size_t>(random.below(7)));
  for (const int count : counts) CHECK(count == doctest::Approx(10000).epsilon(0.05));
  CHECK(random.below(1) == 0);
  const std::uint64_t huge = (std::uint64_t{1} << 63) + 1;  // nearly half of all draws are rejected
  for (int i = 0; i < 100; ++i) CHECK(random.below(huge) < huge);
}

TEST_CASE("normal has mean 0, variance 1 and kurtosis 3") {
  SplitMix64 random(4);
  double moments[4] = {};
  constexpr int draws = 200000;
  for (int i = 0; i < draws; ++i) {
    const double value = random.normal();
    REQUIRE(std::isfinite(value));
    for (int k = 0; k < 4; ++k) moments[k] += std::pow(value, k + 1) / draws;
  }
  CHECK(std::abs(moments[0]) < 0.01);
  CHECK(moments[1] == doctest::Approx(1).epsilon(0.01));
  CHECK(std::abs(moments[2]) < 0.03);
  CHECK(moments[3] == doctest::Approx(3).epsilon(0.03));
}

TEST_CASE("mix_seed tells seeds, indices and their order apart, and is a compile-time function") {
  static_assert(mix_seed(1, 2, 3) != mix_seed(1, 3, 2) && mix_seed(1, 2) != mix_seed(2, 1));
  static_assert(mix_seed(1) != mix_seed(1, 0) && mix_seed(1, 0) != mix_seed(1, 0, 0));
  static_assert(mix_seed(1, -1) == mix_seed(1, ~std::uint64_t{0}));
  std::set<std::uint64_t> seen;
  for (std::uint64_t seed = 0; seed < 10; ++seed)
    for (int a = 0; a < 50; ++a)
      for (int b = 0; b < 50; ++b) seen.insert(mix_seed(seed, a, b));
  CHECK(seen.size() == 10 * 50 * 50);
}

TEST_CASE("streams of neighbouring indices are not correlated") {
  double product = 0;
  constexpr int draws = 50000;
  for (int i = 0; i < draws; ++i)
    product += SplitMix64(mix_seed(9, i)).normal() * SplitMix64(mix_seed(9, i + 1)).normal();
  CHECK(std::abs(product / draws) < 0.02);
}
