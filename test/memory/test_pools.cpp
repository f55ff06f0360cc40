// dvla-test: tsan asan
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/single_pool.hpp"
#include "dvla/testing/memory.hpp"

using dvla::EnvironmentPool;
using dvla::Error;
using dvla::ModelPool;
using dvla::PoolReport;
constexpr std::size_t mib = std::size_t{1} << 20;

TEST_CASE("Both machineries conform") {
  const dvla::MemoryKnobs knobs{.environment_pool_mib = 8, .model_pool_mib = 8};
  for (const auto& violation : dvla::testing::check_memory([&] { return dvla::DualPoolMachinery(knobs); })) {
    FAIL_CHECK(violation);
  }
  for (const auto& violation :
       dvla::testing::check_memory([&] { return dvla::SinglePoolMachinery(knobs); })) {
    FAIL_CHECK(violation);
  }
}

TEST_CASE("High water stays, in use falls, and fragmentation is one minus largest over free") {
  EnvironmentPool pool(1 * mib);
  std::vector<void*> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(pool.allocate(mib / 4, 64));
  CHECK(pool.report().in_use == mib);
  CHECK(pool.report().fragmentation == 0);  // nothing is free
  pool.deallocate(blocks[0], mib / 4, 64);
  pool.deallocate(blocks[2], mib / 4, 64);
  const PoolReport report = pool.report();
  CHECK(report.in_use == mib / 2);
  CHECK(report.high_water == mib);
  CHECK(report.largest_free == mib / 4);
  CHECK(report.fragmentation == doctest::Approx(0.5));
  CHECK(report.allocations == 4);
  CHECK(report.live == 2);
  pool.deallocate(blocks[1], mib / 4, 64);  // joins both neighbours
  CHECK(pool.report().largest_free == 3 * mib / 4);
  CHECK(pool.report().fragmentation == 0);
  pool.deallocate(blocks[3], mib / 4, 64);
  CHECK(pool.report().largest_free == mib);
}

TEST_CASE("With device cuda, which pins the pool's pages at once, no more is asked for than there is") {
  const dvla::MemoryKnobs knobs{.environment_pool_mib = 1 << 20, .device = dvla::Device::cuda};
  for (const bool one : {false, true}) try {
      one ? void(dvla::SinglePoolMachinery(knobs)) : void(dvla::DualPoolMachinery(knobs));
      FAIL("it was made");
    } catch (const dvla::ConfigError& error) {
      CHECK_MESSAGE(std::string(error.what()).find("all of which device cuda pins") != std::string::npos,
                    error.what());
    }
}

TEST_CASE("A full pool says its name, the request, what is free and the knob") {
  EnvironmentPool pool(2 * mib);
  void* block = pool.allocate(mib, 64);
  CHECK_THROWS_WITH_AS(
      (void)pool.allocate(2 * mib),
      "environment pool: no room for 2097152 bytes: 1048576 of 2097152 bytes are free, 1048576 "
      "of them in one piece; raise --environment-pool-mib (now 2)",
      Error);
  pool.deallocate(block, mib, 64);
}

TEST_CASE("A second free, a foreign pointer and an inner pointer are found") {
  EnvironmentPool environment(mib);
  ModelPool model(mib);
  for (std::pmr::memory_resource* pool : {static_cast<std::pmr::memory_resource*>(&environment),
                                          static_cast<std::pmr::memory_resource*>(&model)}) {
    auto* block = static_cast<std::byte*>(pool->allocate(1000));
    void* other = pool->allocate(1000);
    int foreign = 0;
    CHECK_THROWS_AS(pool->deallocate(&foreign, sizeof foreign), Error);
    CHECK_THROWS_AS(pool->deallocate(block + 64, 936), Error);
    CHECK_THROWS_AS(pool->deallocate(block + 1, 999), Error);
    pool->deallocate(block, 1000);
    CHECK_THROWS_AS(pool->deallocate(block, 1000), Error);
    pool->deallocate(other, 1000);
    CHECK_THROWS_AS(pool->deallocate(other, 1000), Error);
  }
}

TEST_CASE("What was freed last is given to the next request that it fits") {
  ModelPool pool(4 * mib);
  void* const first = pool.allocate(100000);
  void* const between = pool.allocate(64);
  pool.deallocate(first, 100000);
  CHECK(pool.report().in_use == 64);
  void* const again = pool.allocate(99999);
  CHECK(again == first);
  pool.deallocate(again, 99999);
  pool.deallocate(between, 64);
}

TEST_CASE("Blocks that were freed one by one serve a request for all of them") {
  ModelPool pool(1 * mib);
  std::vector<void*> blocks;
  for (int i = 0; i < 16; ++i) blocks.push_back(pool.allocate(65536));
  for (void* block : blocks) pool.deallocate(block, 65536);
  CHECK(pool.report().largest_free == mib);
  void* whole = pool.allocate(mib);
  CHECK(pool.report().in_use == mib);
  pool.deallocate(whole, mib);
}

TEST_CASE("A block holds what was asked for, and less than a granule more") {
  ModelPool pool(8 * mib);
  for (std::size_t bytes = 0; bytes < 40000; bytes += 61) {
    void* block = pool.allocate(bytes);
    const std::size_t held = pool.report().in_use;
    CHECK(held >= bytes);
    CHECK(held <= bytes + 64);
    pool.deallocate(block, bytes);
  }
}

TEST_CASE("Blocks keep the alignment that was asked for, and their neighbours") {
  ModelPool pool(8 * mib);
  std::vector<std::pair<void*, std::size_t>> blocks;
  for (std::size_t alignment = 64; alignment <= 4 * mib; alignment *= 2) {
    blocks.emplace_back(pool.allocate(100, alignment), alignment);
    CHECK(reinterpret_cast<std::uintptr_t>(blocks.back().first) % alignment == 0);
  }
  for (const auto& [block, alignment] : blocks) pool.deallocate(block, 100, alignment);
  CHECK(pool.report().largest_free == 8 * mib);
}

TEST_CASE("A bound that cannot be is one clear line") {
  CHECK_THROWS_WITH_AS(dvla::DualPoolMachinery({.environment_pool_mib = -1}),
                       "--environment-pool-mib is -1 and must lie in [1, 1048576]", dvla::ConfigError);
  CHECK_THROWS_AS(dvla::DualPoolMachinery({.model_pool_mib = -5}), dvla::ConfigError);
}

TEST_CASE("More memory than the machine has is one clear line that names the knob") {
  const auto message = [](auto make) {
    try {
      make();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message([] { EnvironmentPool pool(std::size_t{1} << 50); }) ==
        "environment pool (--environment-pool-mib): the system refused 1125899906842624 bytes of memory "
        "(Cannot "
        "allocate memory); make the pool smaller or free memory");
  CHECK(message([] { ModelPool pool(std::size_t{1} << 60); }).find("model pool (--model-pool-mib): ") == 0);
}

TEST_CASE("Whichever pool is too small names the knob that raises it") {
  const auto refusal = [](std::pmr::memory_resource& pool) {
    try {
      (void)pool.allocate(64 * mib);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto ends_with = [](const std::string& text, const char* end) { return text.ends_with(end); };
  const dvla::MemoryKnobs knobs{.environment_pool_mib = 1, .model_pool_mib = 2};
  dvla::DualPoolMachinery two(knobs);
  CHECK(ends_with(refusal(two.environment()), "raise --environment-pool-mib (now 1)"));
  CHECK(ends_with(refusal(two.model()), "raise --model-pool-mib (now 2)"));
  dvla::SinglePoolMachinery one(knobs);
  CHECK(ends_with(refusal(one.model()), "raise --environment-pool-mib or --model-pool-mib (now 3)"));
}

TEST_CASE("Blocks cross threads: allocated by one, freed by another, contents intact") {
  const dvla::MemoryKnobs knobs{.environment_pool_mib = 16, .model_pool_mib = 16};
  dvla::DualPoolMachinery memory(knobs);
  struct Parcel {
    std::byte* data;
    std::size_t bytes;
    std::byte mark;
  };
  for (auto* pool : {&memory.environment(), &memory.model()}) {
    std::vector<Parcel> parcels;  // bounded by the producers' patience below
    std::mutex mutex;
    std::condition_variable changed;
    constexpr int each = 2000;
    auto produce = [&](std::uint64_t seed) {
      dvla::SplitMix64 random(seed);
      for (int i = 0; i < each; ++i) {
        const std::size_t bytes = 1 + random.below(20000);
        Parcel parcel{static_cast<std::byte*>(pool->allocate(bytes)), bytes,
                      static_cast<std::byte>(random())};
        for (std::size_t k = 0; k < bytes; k += 97) parcel.data[k] = parcel.mark;
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return parcels.size() < 64; });
        parcels.push_back(parcel);
        changed.notify_all();
      }
    };
    int wrong = 0;
    std::jthread one(produce, 1), two(produce, 2);
    for (int i = 0; i < 2 * each; ++i) {
      Parcel parcel{};
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return !parcels.empty(); });
        parcel = parcels.back();
        parcels.pop_back();
        changed.notify_all();
      }
      for (std::size_t k = 0; k < parcel.bytes; k += 97) wrong += parcel.data[k] != parcel.mark;
      pool->deallocate(parcel.data, parcel.bytes);
    }
    CHECK(wrong == 0);
    CHECK(pool->report().in_use == 0);
    CHECK(pool->report().live == 0);
    CHECK(pool->report().allocations == 2 * each);
  }
}

TEST_CASE("A report may be asked for while blocks come and go in other threads") {
  EnvironmentPool pool(4 * mib);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) pool.deallocate(pool.allocate(1000, 64), 1000, 64);
    });
  for (int i = 0; i < 500; ++i) CHECK(pool.report().live <= 2);
  threads.clear();
  CHECK(pool.report().live == 0);
}

TEST_CASE("A pool is a std::pmr resource: containers live in it") {
  EnvironmentPool pool(mib);
  {
    std::pmr::vector<int> numbers(1000, 7, &pool);
    CHECK(pool.contains(numbers.data()));
    CHECK(pool.report().live == 1);
  }
  CHECK(pool.report().live == 0);
}

TEST_CASE("A child that maps the environment pool's descriptor sees what is written at a block's offset") {
  EnvironmentPool pool(2 * mib);
  REQUIRE(pool.descriptor() >= 0);
  CHECK(ModelPool(mib).descriptor() == -1);
  void* const before = pool.allocate(4096, 64);  // the block below does not begin the pool
  auto* const block = static_cast<char*>(pool.allocate(64, 64));
  const auto offset = static_cast<std::size_t>(reinterpret_cast<std::byte*>(block) - pool.region().data());
  REQUIRE(offset > 0);
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(30);
    char go = 0;
    void* const mapped = ::mmap(nullptr, 2 * mib, PROT_READ | PROT_WRITE, MAP_SHARED, pool.descriptor(), 0);
    if (mapped == MAP_FAILED || ::read(ready[0], &go, 1) != 1) ::_exit(1);
    char* const there = static_cast<char*>(mapped) + offset;
    if (std::strcmp(there, "frame") != 0) ::_exit(2);
    std::strcpy(there, "taken");
    ::_exit(0);
  }
  std::strcpy(block, "frame");  // after the fork: a private page would not show it
  REQUIRE(::write(ready[1], "g", 1) == 1);
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  CHECK(std::string(block) == "taken");
  pool.deallocate(block, 64, 64);
  pool.deallocate(before, 4096, 64);
  ::close(ready[0]);
  ::close(ready[1]);
}
