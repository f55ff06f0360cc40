#include <doctest/doctest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "dvla/algorithm/aggregation.hpp"

using dvla::Aggregation;
using Flags = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

namespace {
// [T = 4, B = 3]: episodes of 4, 1 and 0 valid decisions.
const Flags mask{1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0};
}  // namespace

TEST_CASE("a masked mean weighs every valid element the same") {
  Floats weight(12);
  dvla::loss_weights(Aggregation::masked_mean, 3, 1, mask, weight);
  CHECK(weight == Floats(mask.begin(), mask.end()));
}

TEST_CASE("with trajectory_equal every trajectory that has a valid step weighs the same") {
  Floats weight(12);
  dvla::loss_weights(Aggregation::trajectory_equal, 3, 1, mask, weight);
  CHECK(weight == Floats{1, 4, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0});
}

TEST_CASE("masked_mean divides by the valid elements of the global batch") {
  Floats weight(12);
  dvla::loss_weights(Aggregation::masked_mean, 3, 1, mask, weight);
  const std::vector<std::uint32_t> rows{0, 1, 2, 3};
  CHECK(dvla::loss_denominator(Aggregation::masked_mean, 1, 6, weight, rows, 5) == 3 * 6);
}

TEST_CASE("trajectory_equal counts all elements, also those of rows that were not drawn") {
  Floats weight(12);
  dvla::loss_weights(Aggregation::trajectory_equal, 3, 1, mask, weight);
  const std::vector<std::uint32_t> valid{0, 1, 3, 6, 9};
  CHECK(dvla::loss_denominator(Aggregation::trajectory_equal, 1, 6, weight, valid, 5) == 12 * 6);
  const std::vector<std::uint32_t> first{9, 1}, second{0, 3, 6};
  CHECK(dvla::loss_denominator(Aggregation::trajectory_equal, 1, 6, weight, first, 5) +
            dvla::loss_denominator(Aggregation::trajectory_equal, 1, 6, weight, second, 5) ==
        doctest::Approx(12 * 6));
  CHECK_THROWS_AS(dvla::loss_denominator(Aggregation::trajectory_equal, 1, 6, weight, valid, 4), dvla::Error);
}
