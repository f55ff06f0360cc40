// What the co-located data plane promises, counted: an observation is born in the environment pool and read
// there by the model, a trajectory's payload is not copied, and a steady state takes nothing from the heap.
#include <doctest/doctest.h>

#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "count_allocations.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/handoff/mailbox.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/testing/linear_model.hpp"

using dvla::Token;

namespace {

/// An environment and a model that note the addresses they write to and read from.
struct Seen {
  std::vector<const void*> addresses = std::vector<const void*>(64);
  std::size_t count = 0;
  void note(const dvla::Observation& observation) {
    addresses.at(count % addresses.size()) = observation.proprioception.data();
    ++count;
  }
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
  Seen written;
};
struct SpyModel : dvla::testing::LinearModel {
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    read.note(observation);
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  Seen read;
};

constexpr std::int64_t N = 32, T = 4;

struct World {
  dvla::DualPoolMachinery memory{{.environment_pool_mib = 4, .model_pool_mib = 1}};
  SpyEnvironment environment{{.environments = N, .horizon = T}, memory.environment()};
  SpyModel model{{}, {environment.observation_spec(), environment.action_spec(), 1}, 1};
  dvla::InProcessTrajectories<dvla::testing::LinearDecision> plane{
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(), {T, N, 1}),
      model.decision_layout({T, N}), 2, memory.environment()};
  dvla::Arena arena{1};
  dvla::RowFailures failures{N};
  std::vector<std::int64_t> every = std::vector<std::int64_t>(N);
  std::vector<dvla::Start> starts = std::vector<dvla::Start>(N);

  void sample(const Token& token) {
    auto rows = [](auto record, std::int64_t t) {
      return dvla::cut_record(record, [t](auto field) { return field.at(t); });
    };
    auto& [transition, decisions, id] = plane.produce(token);
    for (std::size_t i = 0; i < starts.size(); ++i) {
      every[i] = static_cast<std::int64_t>(i);
      starts[i].seed = dvla::mix_seed(static_cast<std::uint64_t>(token.batch), i);
    }
    dvla::Rows all(every, arena, failures);
    environment.reset(all, starts, rows(transition.observation, 0));
    for (std::int64_t t = 0; t < T; ++t) {
      auto decision = rows(decisions, t);
      model.act(rows(transition.observation, t), every, dvla::Decoding::sample, static_cast<std::uint64_t>(t),
                decision, transition.action.at(t));
      environment.step(all, transition.action.at(t),
                       {transition.reward.at(t), transition.terminated.at(t), transition.truncated.at(t),
                        rows(transition.observation, t + 1)});
    }
    plane.commit(token);
  }
};

}  // namespace

TEST_CASE("The counters count: new, malloc, and the memory of a vector") {
  const auto by_new = allocation_count::by_new.load(), by_malloc = allocation_count::by_malloc.load();
  void* volatile block = std::malloc(10);  // volatile: or the compiler leaves the pair out
  std::free(block);
  std::vector<int>* volatile numbers = new std::vector<int>(100);
  delete numbers;
  const auto new_calls = allocation_count::by_new.load() - by_new;
  const auto malloc_calls = allocation_count::by_malloc.load() - by_malloc;
  CHECK(new_calls == 2);
  CHECK(malloc_calls == 3);
}

TEST_CASE(
    "The model reads an observation at the address where the environment wrote it, in the environment pool") {
  World world;
  world.sample({.batch = 0, .buffer = 0});
  REQUIRE(world.model.read.count == T);
  REQUIRE(world.environment.written.count == T + 1);
  for (std::size_t t = 0; t < T; ++t) {
    CHECK(world.model.read.addresses[t] == world.environment.written.addresses[t]);
    CHECK(world.memory.environment().contains(world.model.read.addresses[t]));
  }
  const auto& trained_on = world.plane.consume({.batch = 0, .buffer = 0}).transition.observation;
  for (std::int64_t t = 0; t <= T; ++t) {
    CHECK(trained_on.proprioception.at(t).data() ==
          world.environment.written.addresses[static_cast<std::size_t>(t)]);
  }
}

TEST_CASE("Steady state: no allocation in a step, none in a hand-over, no payload byte copied, pools flat") {
  World world;
  constexpr std::int64_t warm = 4, batches = 500;
  std::vector<std::int64_t> lengths(batches, 0);
  auto play = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t batch = first; batch < last; ++batch) {
      const Token token{.batch = batch, .buffer = static_cast<std::int32_t>(batch % 2)};
      world.sample(token);
      const auto& trajectory = world.plane.consume(token);
      lengths[static_cast<std::size_t>(batch)] = trajectory.transition.observation.instruction.count();
      world.plane.release(token);
    }
  };
  play(0, warm);
  const auto pool = world.memory.environment().report();
  const auto by_new = allocation_count::by_new.load(), by_malloc = allocation_count::by_malloc.load();
  play(warm, batches);
  const auto new_calls = allocation_count::by_new.load() - by_new;
  const auto malloc_calls = allocation_count::by_malloc.load() - by_malloc;
  CHECK(new_calls == 0);
  CHECK(malloc_calls == 0);
  const auto later = world.memory.environment().report();
  CHECK(later.allocations == pool.allocations);
  CHECK(later.high_water == pool.high_water);
  CHECK(world.plane.report().payload_bytes_copied == 0);
  CHECK(world.plane.report().trained == batches);
  CHECK(lengths.back() == (T + 1) * N);
}

TEST_CASE("Two lanes: tokens go round, the payload stays, and neither thread touches the heap") {
  World world;
  constexpr std::int64_t warm = 10, batches = 300;
  const auto limit = std::chrono::seconds(20);
  dvla::mailbox<Token> full(2), empty(2);
  for (std::int32_t buffer = 0; buffer < 2; ++buffer) empty.push({.buffer = buffer}, limit, {});
  std::array<const void*, 2> addresses{};
  int wrong = 0, moved = 0;
  std::int64_t at_start = 0, at_end = 0;
  std::thread sampler([&] {
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      Token token = empty.pop(limit, {}).value();
      token.batch = batch;
      if (batch == warm) at_start = allocation_count::by_malloc.load();
      world.sample(token);
      if (batch == batches - 1) at_end = allocation_count::by_malloc.load();
      full.push(token, limit, {});
    }
  });
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    const Token token = full.pop(limit, {}).value();
    const auto& trajectory = world.plane.consume(token);
    const void*& address = addresses.at(static_cast<std::size_t>(token.buffer));
    if (batch < 2) address = trajectory.transition.reward.data();
    moved += address != trajectory.transition.reward.data();
    wrong += trajectory.id != batch;
    world.plane.release(token);
    empty.push(token, limit, {});
  }
  sampler.join();
  CHECK(at_end - at_start == 0);
  CHECK(wrong == 0);
  CHECK(moved == 0);
  CHECK(world.plane.report().payload_bytes_copied == 0);
}
