#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dvla/algorithm/minibatch.hpp"

using dvla::MiniBatches;
using Flags = std::vector<std::uint8_t>;
using Rows = std::vector<std::uint32_t>;

namespace {
Rows all(const MiniBatches& batches) {
  Rows rows;
  for (std::size_t i = 0; i < batches.size(); ++i)
    for (std::size_t part = 0; part < batches.micros(i); ++part) {
      const auto micro = batches.micro(i, part);
      rows.insert(rows.end(), micro.begin(), micro.end());
    }
  return rows;
}
}  // namespace

TEST_CASE("every valid row is drawn once, and no other") {
  Flags mask(300 * 2, 1);
  for (std::size_t row = 0; row < 300; row += 3) mask[2 * row] = mask[2 * row + 1] = 0;
  mask[2 * 1] = 0;  // row 1 keeps one valid element
  MiniBatches batches(300, {64, 16, 1});
  batches.draw(mask, 2, 1);
  Rows rows = all(batches);
  CHECK(!std::is_sorted(rows.begin(), rows.end()));
  std::sort(rows.begin(), rows.end());
  Rows expected;
  for (std::uint32_t row = 0; row < 300; ++row)
    if (row % 3 != 0) expected.push_back(row);
  CHECK(rows == expected);
  CHECK(batches.rows() == 200);
}

TEST_CASE("the order depends on the seed only, and is fixed across platforms") {
  MiniBatches a(10, {10, 5, 1}), b(10, {10, 5, 1});
  a.draw(Flags(10, 1), 1, 42);
  b.draw(Flags(10, 1), 1, 42);
  CHECK(all(a) == all(b));
  const Rows first = all(a);
  a.draw(Flags(10, 1), 1, 43);
  CHECK(all(a) != first);
  CHECK(first == Rows{0, 2, 3, 1, 6, 9, 5, 4, 7, 8});
}

TEST_CASE("mini-batches differ by one row at most, micro-batches but the last are full") {
  for (std::size_t valid = 1; valid <= 200; ++valid) {
    MiniBatches batches(200, {48, 16, 1});
    Flags mask(200, 0);
    std::fill_n(mask.begin(), valid, std::uint8_t{1});
    batches.draw(mask, 1, valid);
    CHECK(batches.size() == (valid + 47) / 48);
    std::size_t smallest = valid, largest = 0;
    for (std::size_t i = 0; i < batches.size(); ++i) {
      const std::size_t size = batches.mini(i).size();
      smallest = std::min(smallest, size);
      largest = std::max(largest, size);
      for (std::size_t part = 0; part + 1 < batches.micros(i); ++part)
        CHECK(batches.micro(i, part).size() == 16);
      CHECK(!batches.micro(i, batches.micros(i) - 1).empty());
    }
    CHECK(largest <= 48);
    CHECK(largest - smallest <= 1);
    CHECK(all(batches).size() == valid);
  }
}

TEST_CASE("with nothing valid there is no mini-batch") {
  MiniBatches batches(8, {4, 2, 1});
  batches.draw(Flags(8, 0), 1, 1);
  CHECK(batches.size() == 0);
  CHECK(batches.rows() == 0);
}

TEST_CASE("every row is equally likely in every place") {
  std::vector<int> counts(25);
  MiniBatches batches(5, {5, 5, 1});
  for (std::uint64_t seed = 0; seed < 20000; ++seed) {
    batches.draw(Flags(5, 1), 1, dvla::mix_seed(7, seed));
    const auto rows = batches.mini(0);
    for (std::size_t place = 0; place < 5; ++place) ++counts[place * 5 + rows[place]];
  }
  for (const int count : counts) CHECK(count == doctest::Approx(4000).epsilon(0.06));
}

TEST_CASE("drawing again does not allocate") {
  MiniBatches batches(100, {10, 5, 1});
  batches.draw(Flags(100, 1), 1, 1);
  const auto* storage = batches.mini(0).data();
  for (std::uint64_t seed = 0; seed < 10; ++seed) batches.draw(Flags(100, 1), 1, seed);
  CHECK(batches.mini(0).data() == storage);
  CHECK_THROWS_AS(batches.draw(Flags(101, 1), 1, 1), dvla::Error);
}

TEST_CASE("batch sizes that do not divide are refused with the numbers") {
  CHECK_NOTHROW(dvla::BatchSizes{640, 40, 16}.validate());
  CHECK_THROWS_WITH_AS(
      (MiniBatches(10, {100, 40, 1})),
      "global_batch is 100, micro_batch 40 and there are 1 trainers: global_batch must be a multiple "
      "of micro_batch * trainers = 40, and none may be 0.",
      dvla::ConfigError);
  CHECK_THROWS_AS((dvla::BatchSizes{640, 40, 3}.validate()), dvla::ConfigError);
  CHECK_THROWS_AS((dvla::BatchSizes{0, 40, 1}.validate()), dvla::ConfigError);
  CHECK_THROWS_AS((dvla::BatchSizes{40, 0, 1}.validate()), dvla::ConfigError);
}

TEST_CASE("gather_rows picks rows in order") {
  const std::vector<float> source{0, 1, 10, 11, 20, 21};
  std::vector<float> target(4);
  dvla::gather_rows<float>(source, 2, Rows{2, 0}, target);
  CHECK(target == std::vector<float>{20, 21, 0, 1});
  CHECK_THROWS_AS(dvla::gather_rows<float>(source, 2, Rows{2}, target), dvla::Error);
}
