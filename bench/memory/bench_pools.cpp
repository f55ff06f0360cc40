// dvla-bench:
// What pooling brings. Fresh pages against pooled ones: the same copy into memory that has just come from the
// system and into a pool's. Then a trainer's pattern: the model's tensors (a few sizes, all freed every step)
// and the environment's blocks (odd sizes, long and short lived) interleaved, on DualPool, SinglePool and
// malloc, all in the same order. Besides the time: most MiB in use (peak_MiB), and what each holds from the
// system (held_MiB: a pool's high water; malloc's heap at the end, since it gives pages back and pays for
// fresh ones), the environment side's fragmentation, and the free share of malloc's heap.
#include <benchmark/benchmark.h>
#include <malloc.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/single_pool.hpp"

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

std::vector<std::byte>& source() {
  static std::vector<std::byte> bytes(16 * mib, std::byte{1});
  return bytes;
}
void copied(benchmark::State& state, std::size_t bytes) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
}

void copy_into_fresh_pages(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    void* block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memcpy(block, source().data(), bytes);
    benchmark::DoNotOptimize(block);
    ::munmap(block, bytes);
  }
  copied(state, bytes);
}
void copy_into_malloc(benchmark::State& state) {  // above 128 KiB to 32 MiB glibc maps and unmaps, or keeps
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    void* block = std::malloc(bytes);
    std::memcpy(block, source().data(), bytes);
    benchmark::DoNotOptimize(block);
    std::free(block);
  }
  copied(state, bytes);
}
template <class Pool>
void copy_into_pool(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  Pool pool(64 * mib);
  for (auto _ : state) {
    void* block = pool.allocate(bytes, 64);
    std::memcpy(block, source().data(), bytes);
    benchmark::DoNotOptimize(block);
    pool.deallocate(block, bytes, 64);
  }
  copied(state, bytes);
}
void copy_into_warm_memory(benchmark::State& state) {  // the floor: nobody allocates
  const auto bytes = static_cast<std::size_t>(state.range(0));
  std::vector<std::byte> block(bytes);
  for (auto _ : state) {
    std::memcpy(block.data(), source().data(), bytes);
    benchmark::ClobberMemory();
  }
  copied(state, bytes);
}
/// malloc behind the machineries' interface.
struct Malloc {
  struct Resource : std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    }
    void do_deallocate(void* pointer, std::size_t, std::size_t) override { std::free(pointer); }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
  } heap;
  std::pmr::memory_resource& environment() { return heap; }
  std::pmr::memory_resource& model() { return heap; }
};

struct Block {
  void* data;
  std::size_t bytes;
};

/// One step: the model's temporaries come and go while environment blocks of all ages stay and move.
template <class Memory>
void step(Memory& memory, dvla::SplitMix64& random, std::vector<Block>& old, std::vector<Block>& temporaries,
          std::size_t& in_use, std::size_t& peak) {
  static constexpr std::size_t sizes[] = {16384, 65536, 200704, 786432, 1048576, 1572864};
  auto take = [&](std::pmr::memory_resource& pool, std::size_t bytes) {
    in_use += bytes;
    peak = std::max(peak, in_use);
    Block block{pool.allocate(bytes, 64), bytes};
    *static_cast<volatile char*>(block.data) = 1;
    return block;
  };
  auto give = [&](std::pmr::memory_resource& pool, const Block& block) {
    in_use -= block.bytes;
    pool.deallocate(block.data, block.bytes, 64);
  };
  for (int i = 0; i < 48; ++i) {
    temporaries.push_back(take(memory.model(), sizes[random.below(std::size(sizes))]));
    if (i % 3 == 0) {
      const std::size_t bytes = 64 + random.below(std::uint64_t{1} << (8 + random.below(10)));
      if (old.size() < 512) {
        old.push_back(take(memory.environment(), bytes));
      } else {
        Block& one = old[random.below(old.size())];
        give(memory.environment(), one);
        one = take(memory.environment(), bytes);
      }
    }
  }
  for (const Block& block : temporaries) give(memory.model(), block);
  temporaries.clear();
}

template <class Memory, class Make, class Held>
void interleaved(benchmark::State& state, Make make, Held held) {
  const std::unique_ptr<Memory> memory = make();
  dvla::SplitMix64 random(1);
  std::vector<Block> old, temporaries;
  std::size_t in_use = 0, peak = 0;
  for (int warm = 0; warm < 200; ++warm) step(*memory, random, old, temporaries, in_use, peak);
  for (auto _ : state) step(*memory, random, old, temporaries, in_use, peak);
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * 64);
  state.counters["peak_MiB"] = static_cast<double>(peak) / static_cast<double>(mib);
  held(state, *memory);
  for (const Block& block : old) memory->environment().deallocate(block.data, block.bytes, 64);
}
template <class Machinery>
void interleaved_pools(benchmark::State& state) {
  interleaved<Machinery>(
      state, [] { return std::make_unique<Machinery>(dvla::MemoryKnobs{}); },
      [](benchmark::State& into, Machinery& memory) {
        double held = 0;
        for (const dvla::PoolReport& pool : memory.report()) {
          held += static_cast<double>(pool.high_water) / static_cast<double>(mib);
        }
        into.counters["held_MiB"] = held;
        into.counters["fragmentation"] = memory.environment().report().fragmentation;
      });
}
void interleaved_malloc(benchmark::State& state) {
  interleaved<Malloc>(
      state, [] { return std::make_unique<Malloc>(); },
      [](benchmark::State& into, Malloc&) {
        const struct mallinfo2 info = ::mallinfo2();
        into.counters["held_MiB"] = static_cast<double>(info.arena + info.hblkhd) / static_cast<double>(mib);
        into.counters["free_share"] =
            info.arena == 0 ? 0 : static_cast<double>(info.fordblks) / static_cast<double>(info.arena);
      });
}
// malloc first, while the heap is still empty: its held_MiB counts the whole heap.
BENCHMARK(interleaved_malloc);
BENCHMARK(interleaved_pools<dvla::SinglePoolMachinery>);
BENCHMARK(interleaved_pools<dvla::DualPoolMachinery>);
BENCHMARK(copy_into_warm_memory)->Arg(256 * 1024)->Arg(16 * mib);
BENCHMARK(copy_into_fresh_pages)->Arg(256 * 1024)->Arg(16 * mib);
BENCHMARK(copy_into_malloc)->Arg(256 * 1024)->Arg(16 * mib);
BENCHMARK(copy_into_pool<dvla::EnvironmentPool>)->Arg(256 * 1024)->Arg(16 * mib);
BENCHMARK(copy_into_pool<dvla::ModelPool>)->Arg(256 * 1024)->Arg(16 * mib);

}  // namespace

BENCHMARK_MAIN();
