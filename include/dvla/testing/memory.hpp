// Conformance of a memory policy's machinery: what every pool pair must do, for shipped and users' own ones.
// Returns one sentence per violation, none if it conforms; no test framework. Host pools only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/testing/findings.hpp"

namespace dvla::testing {

namespace detail {

/// Blocks of random sizes come and go; each is filled with a pattern that is proven before it is freed.
inline void churn(std::pmr::memory_resource& pool, std::uint64_t seed, int operations, std::size_t largest,
                  const std::string& name, Findings& expect) {
  struct Block {
    unsigned char* data;
    std::size_t bytes, alignment;
    unsigned char pattern;
  };
  SplitMix64 random(seed);
  std::vector<Block> blocks;
  auto intact = [](const Block& block) {
    for (std::size_t i = 0; i < block.bytes; ++i)
      if (block.data[i] != static_cast<unsigned char>(block.pattern + i)) return false;
    return true;
  };
  auto give_back = [&](std::size_t which) {
    expect(intact(blocks[which]), name + ": a block's bytes changed while it was held");
    pool.deallocate(blocks[which].data, blocks[which].bytes, blocks[which].alignment);
    blocks[which] = blocks.back();
    blocks.pop_back();
  };
  for (int i = 0; i < operations; ++i) {
    if (blocks.size() < 64 && (blocks.empty() || random.below(5) < 3)) {
      Block block{};
      block.bytes = 1 + random.below(std::uint64_t{1} << random.below(20)) % largest;
      block.alignment = std::size_t{8} << random.below(10);
      block.pattern = static_cast<unsigned char>(random());
      block.data = static_cast<unsigned char*>(pool.allocate(block.bytes, block.alignment));
      expect(reinterpret_cast<std::uintptr_t>(block.data) % block.alignment == 0,
             name + ": a block is not aligned to " + std::to_string(block.alignment));
      for (std::size_t k = 0; k < block.bytes; ++k)
        block.data[k] = static_cast<unsigned char>(block.pattern + k);
      blocks.push_back(block);
    } else {
      give_back(random.below(blocks.size()));
    }
  }
  while (!blocks.empty()) give_back(blocks.size() - 1);
}

}  // namespace detail

/// `make()` gives a fresh machinery with at least 4 MiB a pool; every check has its own.
template <class Make>
std::vector<std::string> check_memory(Make make) {
  detail::Findings expect;
  auto in_use = [](const auto& memory) {
    std::size_t bytes = 0;
    for (const auto& pool : memory.report()) bytes += pool.in_use;
    return bytes;
  };
  {
    auto memory = make();
    const std::size_t before = in_use(memory);
    std::pmr::memory_resource& environment = memory.environment();
    std::pmr::memory_resource& model = memory.model();
    void* mine = environment.allocate(100000, 64);
    void* yours = model.allocate(50000, 64);
    expect(
        reinterpret_cast<std::uintptr_t>(mine) % 64 == 0 && reinterpret_cast<std::uintptr_t>(yours) % 64 == 0,
        "blocks must be aligned to 64 bytes");
    expect(in_use(memory) >= before + 150000, "report() must count what is in use");
    environment.deallocate(mine, 100000, 64);
    model.deallocate(yours, 50000, 64);
    expect(in_use(memory) == before, "report() must not count what was given back");
    for (const auto& pool : memory.report()) {
      expect(!pool.name.empty(), "every pool of a report needs a name");
      expect(pool.high_water >= pool.in_use && pool.high_water <= pool.capacity,
             pool.name + ": in_use <= high_water <= capacity must hold");
      expect(pool.fragmentation >= 0 && pool.fragmentation <= 1,
             pool.name + ": fragmentation must lie in [0, 1]");
    }
  }
  for (const bool of_model : {false, true}) {
    const std::string name = of_model ? "model()" : "environment()";
    auto memory = make();
    std::pmr::memory_resource& pool = of_model
                                          ? static_cast<std::pmr::memory_resource&>(memory.model())
                                          : static_cast<std::pmr::memory_resource&>(memory.environment());
    expect.refused(name + ": a request beyond its bound", "raise --",
                   [&] { (void)pool.allocate(std::size_t{1} << 50, 64); });
    std::vector<void*> blocks;
    constexpr std::size_t piece = 256 * 1024;
    expect.refused(name + ": requests without end", "", [&] {
      while (blocks.size() < 1000000) blocks.push_back(pool.allocate(piece, 64));
    });
    for (void* block : blocks) pool.deallocate(block, piece, 64);
    const std::string how =
        detail::outcome([&] { pool.deallocate(pool.allocate(3 * piece, 64), 3 * piece, 64); });
    expect(how == "done",
           name + ": free neighbours must serve a larger request once the pool is empty again");
    detail::churn(pool, 7, 3000, 60000, name, expect);
    expect(in_use(memory) == 0, name + " must be empty when all blocks are back");
  }
  return expect.sentences;
}

}  // namespace dvla::testing
