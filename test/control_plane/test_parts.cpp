// dvla-test: asan
#include <doctest/doctest.h>

#include <numeric>

#include "dvla/control_plane/parts.hpp"
#include "dvla/core/random.hpp"

using dvla::WeightPart;
using dvla::detail::ByteRange;

TEST_CASE("Equal parts cover the weights, also when there are fewer floats than actors") {
  for (const int actors : {1, 2, 3, 7}) {
    for (const std::int64_t floats : {0, 1, 6, 1000}) {
      const auto parts = dvla::equal_parts(floats, actors);
      CHECK_NOTHROW(dvla::check_weight_parts(floats, parts, static_cast<std::size_t>(actors)));
      for (const auto& part : parts) CHECK(dvla::floats_in(part) <= floats / actors + 1);
    }
  }
}

TEST_CASE("What was gathered and scattered is where it was") {
  std::vector<float> flat(100), back(100, -1.0F);
  std::iota(flat.begin(), flat.end(), 0.0F);
  const std::vector<WeightPart> parts{{{50, 10}, {0, 20}, {99, 1}}, {{20, 30}, {60, 39}}};
  dvla::check_weight_parts(100, parts, 2);
  for (const auto& part : parts) {
    std::vector<std::byte> packed(static_cast<std::size_t>(dvla::floats_in(part)) * 4);
    dvla::gather_part(std::as_bytes(std::span(flat)), part, packed);
    dvla::scatter_part(packed, part, std::as_writable_bytes(std::span(back)));
  }
  CHECK(back == flat);
}

TEST_CASE("Ranges of the flat weights are found inside a packed part") {
  const WeightPart part{{50, 10}, {0, 20}};
  CHECK(dvla::detail::inside(part, {{55, 100}, {0, 5}, {5, 5}}) ==
        std::vector<ByteRange>{{5 * 4, 15 * 4}});  // 55 to 60 and 0 to 10 lie side by side
  CHECK(dvla::detail::inside(part, {{20, 30}}).empty());
  CHECK(dvla::detail::inside(part, {{0, 100}}) == std::vector<ByteRange>{{0, 30 * 4}});
}

TEST_CASE("Pieces are at most so long, and together they are the ranges") {
  dvla::SplitMix64 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<ByteRange> ranges, all;
    std::size_t at = 0;
    for (std::uint64_t i = random() % 8; i > 0; --i) {
      at += 1 + random() % 50;
      ranges.push_back({at, 1 + random() % 100});
      at += ranges.back().bytes;
    }
    const std::size_t most = 1 + random() % 60;
    dvla::detail::Pieces pieces(ranges, most);
    std::size_t done = 0;
    const std::size_t total = dvla::detail::bytes_in(ranges);
    for (auto piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
      const std::size_t bytes = dvla::detail::bytes_in(piece);
      done += bytes;
      CHECK(bytes == std::min(most, bytes + total - done));  // only the last may be short
      for (const ByteRange& range : piece) dvla::detail::append(all, range);
    }
    CHECK(all == ranges);
  }
}
