// What a long run costs, counted: memory stays flat over 1e5 iterations, a batch takes nothing from the heap
// once everything is warm, no payload byte is copied, and the model reads observations where the environment
// wrote them.
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "test/data_plane/count_allocations.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

std::int64_t resident_bytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * ::sysconf(_SC_PAGESIZE);
}

template <class P>
dvla::Config<P> tiny_config(int iterations) {
  auto config = dvla_test::small_config<P>(iterations);
  config.environment.environments = 4;
  config.environment.horizon = 2;
  config.algorithm.group = 2;
  config.algorithm.epochs = 1;
  config.algorithm.micro_batch = 8;
  config.memory.environment_pool_mib = 1;
  config.memory.model_pool_mib = 1;
  return config;
}

template <class P>
void check_flat(int iterations) {
  constexpr int warm = 2000;
  dvla::Run<P, dvla::trace::Off> run(tiny_config<P>(iterations));
  // The history keeps every batch, so it may grow: the test below sees to that. Here it has its room from the
  // start, and each of its pages was written to.
  run.continue_from(0, std::vector<dvla::Iteration>(static_cast<std::size_t>(iterations)));
  std::int64_t allocations_warm = 0, allocations_end = 0, resident_warm = 0, resident_end = 0;
  std::vector<dvla::PoolReport> pools;
  run.train([&](const dvla::Iteration& iteration) {
    if (iteration.batch == warm) {
      resident_warm = resident_bytes();
      pools = run.memory().report();
      allocations_warm = allocation_count::by_malloc.load();
    }
    if (iteration.batch == iterations - 1) {
      allocations_end = allocation_count::by_malloc.load();
      resident_end = resident_bytes();
    }
  });
  CAPTURE(P::schedule::name);
  CHECK(resident_warm > 0);
  CHECK(resident_end - resident_warm < 1024 * 1024);  // 10 bytes an iteration would be seen
  CHECK(allocations_end - allocations_warm == 0);
  const auto pools_end = run.memory().report();
  for (std::size_t pool = 0; pool < pools.size(); ++pool) {
    CHECK(pools_end[pool].allocations == pools[pool].allocations);
    CHECK(pools_end[pool].high_water == pools[pool].high_water);
  }
  const auto plane = run.data().report();
  CHECK(plane.trained == iterations);
  CHECK(plane.payload_bytes_copied == 0);
}

}  // namespace

TEST_CASE("Memory is flat over 1e5 iterations, and a batch takes nothing from the heap") {
  check_flat<dvla_test::ToyPipeline<dvla::Schedule<dvla::Synchronous>>>(100000);
  check_flat<dvla_test::ToyPipeline<dvla::Schedule<dvla::Swimlane<1>>>>(100000);
}

TEST_CASE("The longest run that can be asked for starts with little memory and keeps what it has trained") {
  using P = dvla_test::ToyPipeline<dvla::Schedule<dvla::Swimlane<1>>>;
  using TinyRun = dvla::Run<P, dvla::trace::Off>;
  TinyRun run(tiny_config<P>(1'000'000'000));
  const std::int64_t before = resident_bytes();
  dvla::stop_flag stop;
  std::int64_t next = 0;
  std::size_t room = 0;
  const auto report = run.train(
      [&](const dvla::Iteration& iteration) {
        CHECK(iteration.batch == next++);  // what the observer is given is its own batch's
        CHECK(iteration.counts.chunk_steps > 0);
        if (iteration.batch == 200) stop.request_stop();
      },
      [&](std::int64_t batch) {
        if (run.history().size() != static_cast<std::size_t>(batch) + 1) stop.request_stop();
        room = run.history().capacity();
      },
      &stop);
  CHECK(report.batches > 200);
  CHECK(room == TinyRun::history_room);
  CHECK(run.history().size() == static_cast<std::size_t>(report.batches));
  CHECK(resident_bytes() - before < 8 * 1024 * 1024);
}

TEST_CASE("A history that outgrows its room takes more, now and then, and loses nothing") {
  using P = dvla_test::ToyPipeline<dvla::Schedule<dvla::Swimlane<1>>>;
  using TinyRun = dvla::Run<P, dvla::trace::Off>;
  constexpr std::int64_t more = 1000;
  TinyRun run(tiny_config<P>(static_cast<int>(TinyRun::history_room + more)));
  std::int64_t in_order = 0;
  run.train([&](const dvla::Iteration& iteration) {
    in_order += iteration.batch == in_order && iteration.counts.chunk_steps > 0;
  });
  CHECK(in_order == TinyRun::history_room + more);
  REQUIRE(run.history().size() == static_cast<std::size_t>(TinyRun::history_room + more));
  for (std::size_t i = 0; i < run.history().size(); ++i)
    if (run.history()[i].batch != static_cast<std::int64_t>(i)) FAIL("lost batch " << i);
}

namespace {

/// The addresses that the environment wrote and the model read, in the order of the calls.
struct Addresses {
  std::array<const void*, 64> at{};
  std::size_t count = 0;
  void note(const dvla::Observation& observation) {
    if (count < at.size()) at[count++] = observation.proprioception.data();
  }
};
Addresses written, acted, trained;

struct SpyToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "SpyToy";
};
struct SpyEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    written.note(next);
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    written.note(outcome.next);
    return ToyEnvironment::step(rows, action, outcome);
  }
};
struct SpyModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "SpyModel";
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    acted.note(observation);
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    trained.note(observation);
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }
};

}  // namespace

template <class Around>
struct dvla::machinery<SpyToy, Around> {
  using type = SpyEnvironment;
};

TEST_CASE(
    "In a run the model reads, and the trainer trains on, what the environment wrote, where it wrote it") {
  using P = dvla::Pipeline<dvla::Sampler<SpyToy, SpyModel>, dvla::Trainer<dvla::GRPO>>;
  constexpr int batches = 4;
  constexpr std::size_t T = 2;
  auto config = tiny_config<P>(batches);
  config.environment.environments = 64;  // some of them go on to the end of every pass
  dvla::Run<P> run(config);
  run.self_test();  // which train() would begin with
  written = acted = trained = {};
  run.train();
  REQUIRE(written.count == batches * (T + 1));
  REQUIRE(acted.count == batches * T);
  for (std::size_t batch = 0; batch < batches; ++batch)
    for (std::size_t t = 0; t < T; ++t) {
      const void* const address = written.at[batch * (T + 1) + t];
      CHECK(acted.at[batch * T + t] == address);
      CHECK(run.memory().environment().contains(address));
      CHECK(!run.memory().model().contains(address));
    }
  REQUIRE(trained.count >= batches);
  for (std::size_t call = 0; call < trained.count;
       ++call) {  // the whole batch begins at its first observation
    bool known = false;
    for (std::size_t batch = 0; batch < batches; ++batch)
      known = known || trained.at[call] == written.at[batch * (T + 1)];
    CHECK(known);
  }
}
