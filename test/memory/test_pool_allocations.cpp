// What a pool takes from the heap: nothing in deallocate(), which destructors call and may not throw.
#include <doctest/doctest.h>

#include <random>
#include <utility>
#include <vector>

#include "../data_plane/count_allocations.hpp"
#include "dvla/memory/environment_pool.hpp"

TEST_CASE("Freeing takes no memory, whatever was taken and freed before") {
  std::mt19937 random(20261129);
  dvla::EnvironmentPool pool(std::size_t{8} << 20);
  std::vector<std::pair<void*, std::size_t>> blocks;
  std::int64_t most = 0, pieces = 0;
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < 200; ++i) {
      const std::size_t bytes = 64 + random() % 2000;
      blocks.emplace_back(pool.allocate(bytes, 64), bytes);
    }
    std::shuffle(blocks.begin(), blocks.end(), random);  // many holes
    const std::size_t kept = round % 10 == 9 ? 0 : std::min<std::size_t>(blocks.size(), random() % 1500);
    const std::int64_t before = allocation_count::by_malloc;
    while (blocks.size() > kept) {
      pool.deallocate(blocks.back().first, blocks.back().second, 64);
      blocks.pop_back();
    }
    most = std::max(most, allocation_count::by_malloc - before);
    pieces += pool.report().fragmentation > 0;
  }
  CHECK(most == 0);
  CHECK(pieces > 10);  // there were holes
  CHECK(allocation_count::by_malloc > 0);
}
