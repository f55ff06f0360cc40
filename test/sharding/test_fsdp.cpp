// dvla-test: tsan
// ShardedWeights on threads, with LinearModel: equal to one actor, bytes, bfloat16, packing, errors.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

#include "actors.hpp"
#include "dvla/pipeline/memory_plan.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/sharding.hpp"
#include "dvla/trace/recorder.hpp"

namespace {

using namespace actors_test;
using Sharded = dvla::ShardedWeights<LinearModel>;
using Whole = dvla::UnshardedWeights<LinearModel>;
using dvla::Dtype;
using dvla::FsdpKnobs;
using dvla::UnitRelease;
using dvla::testing::LinearKnobs;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

const std::vector<FsdpKnobs> modes{{.release = UnitRelease::after_use},
                                   {.release = UnitRelease::after_backward},
                                   {.release = UnitRelease::never},
                                   {.release = UnitRelease::after_use, .shard_frozen = true},
                                   {.release = UnitRelease::after_backward, .shard_frozen = true}};

/// Passes everything on and counts what a ring of members would send.
struct CountingGroup final : dvla::Group {
  CountingGroup(std::shared_ptr<dvla::Group> inner, std::int64_t& count)
      : Group("counted"), group(std::move(inner)), bytes(count) {}
  int rank() const override { return group->rank(); }
  int size() const override { return group->size(); }
  void close() noexcept override { group->close(); }
  void hand_out(std::span<std::byte> values, int root) override { group->broadcast(values, root); }
  void gather(dvla::GroupCall, std::span<const std::byte> part, std::span<std::byte> all) override {
    bytes += static_cast<std::int64_t>(all.size() - part.size());
    group->all_gather(part, all);
  }
  void scatter(dvla::GroupCall, std::span<const float> all, std::span<float> part) override {
    bytes += static_cast<std::int64_t>(all.size_bytes() - part.size_bytes());
    group->reduce_scatter(all, part);
  }
  std::shared_ptr<dvla::Group> group;
  std::int64_t& bytes;
};

/// All trains, units that have to be padded; a part is frozen; units that 2, 3 and 4 actors can share evenly.
std::vector<LinearKnobs> variants(Dtype dtype) {
  return {{.bins = 5, .chunk = 2, .frozen_units = 0, .dtype = dtype},
          {.bins = 5, .chunk = 2, .frozen_units = 2, .dtype = dtype},
          {.bins = 12, .chunk = 2, .frozen_units = 1, .dtype = dtype}};
}
std::vector<std::byte> frozen_bytes(const LinearModel& model) {
  std::vector<std::byte> all;
  for (const dvla::Parameter& each : model.parameters())
    if (!each.trainable) all.insert(all.end(), each.data, each.data + each.bytes());
  return all;
}
std::vector<std::pair<int, FsdpKnobs>> in_each_mode(std::initializer_list<int> all) {
  std::vector<std::pair<int, FsdpKnobs>> pairs;
  for (const int actors : all)
    for (const FsdpKnobs& mode : modes) pairs.emplace_back(actors, mode);
  return pairs;
}
double apart(const std::vector<double>& one, const std::vector<double>& other) {
  double largest = 0;
  for (std::size_t i = 0; i < one.size(); ++i) largest = std::max(largest, std::abs(one[i] - other[i]));
  return largest;
}

template <class Weights>
std::unique_ptr<Weights> make(LinearModel& model, const dvla::GroupSource& groups) {
  return std::unique_ptr<Weights>(new Weights(model, heap, {}, groups));
}
std::unique_ptr<Sharded> make_sharded(const FsdpKnobs& mode, LinearModel& model,
                                      const dvla::GroupSource& groups) {
  return std::make_unique<Sharded>(model, heap, mode, groups);
}

/// Imitation of fixed actions: rows dealt to the actors in turn, `micros` micro-batches a step, an actor's
/// last ones perhaps empty. Returns the loss of each step.
template <class Model, class Weights>
std::vector<double> imitate(Batch& batch, Model& model, Weights& weights, int steps, int micros) {
  const dvla::Observation observation =
      cut_record((*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
  const dvla::Field<float> action = (*batch.transition).action.flat();
  std::vector<std::int64_t> mine;
  for (std::int64_t row = weights.actor(); row < 60; row += weights.actors()) mine.push_back(row);
  std::vector<double> losses;
  for (int step = 0; step < steps; ++step) {
    weights.zero_gradients();
    std::array loss{0.0};
    for (int micro = 0; micro < micros; ++micro) {
      weights.begin_pass({.last = micro + 1 == micros});
      const auto [first, count] = dvla::share_of(std::ssize(mine), micros, micro);
      if (count == 0) continue;
      const double share = static_cast<double>(count) / 60;
      loss[0] += share * model.imitate(observation, action,
                                       std::span<const std::int64_t>(mine).subspan(
                                           static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
                                       share);
    }
    weights.sum(loss);
    weights.step({.learning_rate = 1e-2, .weight_decay = 0.01, .max_grad_norm = 0.5});
    losses.push_back(loss[0]);
  }
  return losses;
}

}  // namespace

TEST_CASE("50 steps at 1, 2, 3 and 4 actors: loss and weights of one actor with the whole model") {
  Batch batch;
  for (const LinearKnobs& knobs : variants(Dtype::f32)) {
    CAPTURE(knobs.bins);
    CAPTURE(knobs.frozen_units);
    const auto one = batch.model(knobs);
    const std::vector<std::byte> frozen = frozen_bytes(*one);
    Whole whole(*one, heap);
    const std::vector<double> expected = imitate(batch, *one, whole, 50, 2);
    CHECK(expected.back() < 0.95 * expected.front());
    for (const auto& [actors, mode] : in_each_mode({1, 2, 3, 4})) {
      CAPTURE(actors);
      std::atomic<std::int64_t> stepped{0};
      run_actors(actors, [&, actors = actors, mode = mode](int actor, const dvla::GroupSource& groups) {
        const auto model = batch.model(knobs);
        const auto weights = make_sharded(mode, *model, groups);
        const std::vector<double> losses = imitate(batch, *model, *weights, 50, 2);
        weights->gather_all();
        for (std::size_t step = 0; step < losses.size(); ++step)
          CHECK(std::abs(losses[step] - expected[step]) < 1e-5);
        CHECK(largest_difference(values_of(*model), values_of(*one)) < 1e-4);
        CHECK(frozen_bytes(*model) == frozen);
        for (const dvla::ShardPiece& piece : weights->pieces()) {
          CHECK(piece.first_moment.size() == piece.weight.size());
          CHECK(piece.second_moment.size() == piece.weight.size());
          stepped += std::ssize(piece.weight);
        }
        if (actors == 1 && actor == 0) {
          CHECK(losses == expected);
          CHECK(values_of(*model) == values_of(*one));
        }
      });
      CHECK(stepped == dvla::trainable_count(one->units()));  // what trains, once over all actors
    }
  }
}

TEST_CASE("bfloat16: several actors are as close to float32 as one process in bfloat16 is, times 1.5") {
  Batch batch;
  for (LinearKnobs knobs : variants(Dtype::f32)) {
    const auto reference = batch.model(knobs);
    Whole whole(*reference, heap);
    const std::vector<double> exact = imitate(batch, *reference, whole, 50, 2);
    knobs.dtype = Dtype::bf16;
    const auto one = batch.model(knobs);
    Whole rounded(*one, heap);
    const double of_losses = apart(imitate(batch, *one, rounded, 50, 2), exact);
    const double of_values = largest_difference(values_of(*one), values_of(*reference));
    CHECK(of_losses > 0);
    for (const auto& [actors, mode] : in_each_mode({1, 2, 3, 4}))
      run_actors(actors, [&, mode = mode](int, const dvla::GroupSource& groups) {
        const auto model = batch.model(knobs);
        const std::vector<std::byte> frozen = frozen_bytes(*model);
        const auto weights = make_sharded(mode, *model, groups);
        const std::vector<double> losses = imitate(batch, *model, *weights, 50, 2);
        weights->gather_all();
        CHECK(apart(losses, exact) <= 1.5 * of_losses);
        CHECK(largest_difference(values_of(*model), values_of(*reference)) <= 1.5 * of_values);
        CHECK(frozen_bytes(*model) == frozen);
      });
  }
}

TEST_CASE("One actor alone keeps what every sharding promises") {
  const auto faults = dvla::testing::check_sharding(
      [](LinearModel& model, std::pmr::memory_resource& memory) { return Sharded(model, memory); });
  for (const std::string& fault : faults) MESSAGE(fault);
  CHECK(faults.empty());
}

TEST_CASE("Actors whose micro-batches are mostly empty learn the same") {
  Batch batch;
  const auto one = batch.model();
  Whole whole(*one, heap);
  const std::vector<double> expected = imitate(batch, *one, whole, 10, 1);
  for (const FsdpKnobs& mode : modes)
    run_actors(2, [&](int, const dvla::GroupSource& groups) {  // more micro-batches than rows
      const auto model = batch.model();
      const auto weights = make_sharded(mode, *model, groups);
      const std::vector<double> losses = imitate(batch, *model, *weights, 10, 40);
      for (std::size_t step = 0; step < losses.size(); ++step)
        CHECK(std::abs(losses[step] - expected[step]) < 1e-5);
    });
}

TEST_CASE("GRPO on shards is GRPO on the whole, however the groups are dealt") {
  Batch batch;
  auto knobs = Batch::knobs();
  std::vector<float> whole;
  dvla::UpdateStats one;
  batch.update<Whole>(
      1, [](int) { return 0; }, knobs, make<Whole>,
      [&](int, LinearModel& model, Whole&, const dvla::UpdateStats& stats) {
        whole = values_of(model);
        one = stats;
      });
  for (const int actors : {1, 2, 3, 4})
    for (const auto& deal : deals(actors)) {
      CAPTURE(actors);
      std::mutex mutex;
      std::vector<float> first;
      batch.update<Sharded>(actors, deal, knobs, make<Sharded>,
                            [&](int, LinearModel& model, Sharded&, const dvla::UpdateStats& stats) {
                              const std::scoped_lock lock(mutex);
                              CHECK(stats.optimiser_steps == one.optimiser_steps);
                              CHECK(stats.rows == one.rows);
                              CHECK(stats.loss.loss() == doctest::Approx(one.loss.loss()).epsilon(1e-4));
                              CHECK(stats.gradient_norm == doctest::Approx(one.gradient_norm).epsilon(1e-4));
                              const std::vector<float> now = values_of(model);
                              if (first.empty()) first = now;
                              CHECK(first == now);
                              CHECK(largest_difference(now, whole) < 3e-3);  // see test_actors.cpp
                            });
    }
}

TEST_CASE("Bytes sent are those of the formula: what trains, and what is frozen where it is sharded") {
  Batch batch;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const LinearKnobs& knobs : variants(dtype))
      for (const auto& [actors, mode] : in_each_mode({1, 2, 3, 4}))
        for (const int micros : {1, 4})
          run_actors(actors, [&, actors = actors, mode = mode](int, const dvla::GroupSource& groups) {
            std::int64_t counted = 0;
            const auto model = batch.model(knobs);
            Sharded weights(*model, heap, mode, [&](const std::string& purpose) {
              std::shared_ptr<dvla::Group> inner = groups(purpose);
              if (purpose == "shards") inner = std::make_shared<CountingGroup>(std::move(inner), counted);
              return inner;
            });
            imitate(batch, *model, weights, 5, micros);
            const std::int64_t sent = weights.traffic().total();
            // The formula by hand: every parameter is a unit.
            const int element = dtype == Dtype::bf16 ? 2 : 4;
            std::int64_t gathered = 0, gathered_last = 0, reduced = 0;
            for (const dvla::Parameter& each : model->parameters()) {
              const std::int64_t part = (each.count() + actors - 1) / actors;
              if (each.trainable) reduced += part * 4;
              const std::int64_t frozen = (each.count() * element + actors - 1) / actors;
              if (each.trainable) gathered_last = part * element;
              gathered += each.trainable ? part * element : mode.shard_frozen ? frozen : 0;
            }
            const std::int64_t a_step = mode.release == UnitRelease::never ? gathered + reduced
                                        : mode.release == UnitRelease::after_backward
                                            ? micros * (gathered + reduced)
                                            : micros * (2 * gathered - gathered_last + reduced);
            CAPTURE(actors);
            CAPTURE(micros);
            CAPTURE(knobs.frozen_units);
            CAPTURE(mode.shard_frozen);
            CAPTURE(static_cast<int>(mode.release));
            CHECK(dvla::testing::shard_bytes(*model, actors, mode, micros).step == (actors - 1) * a_step);
            CHECK(sent == 5 * (actors - 1) * a_step);
            CHECK(counted == sent);
          });
}

TEST_CASE("Between uses an actor has its part only: nothing else of the model's values is there") {
  Batch batch;
  for (const FsdpKnobs& mode : modes)
    run_actors(3, [&](int actor, const dvla::GroupSource& groups) {
      const auto model = batch.model({.bins = 12, .chunk = 2, .frozen_units = 1});
      const std::vector<std::byte> frozen = frozen_bytes(*model);
      const auto weights = make_sharded(mode, *model, groups);
      imitate(batch, *model, *weights, 2, 2);
      const bool released = mode.release != UnitRelease::never;
      for (std::size_t unit = 0; unit < model->units().size(); ++unit) {
        const auto own = weights->layout().within(unit, actor);
        const std::span<float> values = model->units()[unit].floats();
        const std::span<float> gradients = model->units()[unit].gradients;
        for (std::int64_t i = 0; i < std::ssize(values); ++i) {
          const bool mine = i >= own.offset && i < own.offset + own.count;
          if (released) REQUIRE((values[static_cast<std::size_t>(i)] != 0) == mine);
          if (released) REQUIRE(gradients[static_cast<std::size_t>(i)] == 0);
        }
      }
      CHECK((frozen_bytes(*model) == frozen) == !mode.shard_frozen);
      const std::vector<std::int64_t> rows{0, 1};
      const dvla::Observation observation =
          cut_record((*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
      std::vector<float> log_prob(2 * 4), entropy(2 * 4);
      const auto decisions = dvla::cut_record(*batch.decision, [](auto field) { return field.flat(); });
      if (released)
        CHECK_THROWS_WITH_AS(model->forward(observation, decisions, rows, log_prob, entropy),
                             doctest::Contains("outside of the passes"), dvla::Error);
      weights->gather_all();
      weights->gather_all();
      model->forward(observation, decisions, rows, log_prob, entropy);
      CHECK(frozen_bytes(*model) == frozen);
      weights->begin_pass({.backward = false});  // everybody's; this actor's is empty, or not
      if (actor > 0) model->forward(observation, decisions, rows, log_prob, entropy);
      const auto again = log_prob;
      weights->gather_all();
      model->forward(observation, decisions, rows, log_prob, entropy);
      if (actor > 0) CHECK(again == log_prob);
    });
}

/// Share of the pages that lie wholly in `bytes` and are in memory.
double resident(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()) / page * page;
  std::vector<unsigned char> there((end - begin) / page);
  REQUIRE(there.size() > 40);
  REQUIRE(::mincore(reinterpret_cast<void*>(begin), end - begin, there.data()) == 0);
  double count = 0;
  for (const unsigned char each : there) count += each & 1U;
  return count / static_cast<double>(there.size());
}

TEST_CASE("What is released is memory: of values an actor's part stays, of gradients nothing") {
  Batch batch;
  for (const FsdpKnobs& mode : modes)
    run_actors(4, [&](int, const dvla::GroupSource& groups) {
      const auto model = batch.model({.bins = 1024, .chunk = 2});
      const auto weights = make_sharded(mode, *model, groups);
      const std::span<const dvla::WeightUnit> units = model->units();
      const auto all = [&](auto part) {
        const auto first = std::as_bytes(part(units.front())), last = std::as_bytes(part(units.back()));
        return std::span(first.data(), last.data() + last.size());
      };
      imitate(batch, *model, *weights, 1, 1);
      const double values = resident(all([](const auto& unit) { return unit.floats(); }));
      const double gradients = resident(all([](const auto& unit) { return unit.gradients; }));
      if (mode.release == UnitRelease::never) {
        CHECK(values == 1);
        CHECK(gradients == 1);
      } else {
        CHECK(values < 0.25 + 0.2);  // pages that a unit's parts share
        CHECK(gradients < 0.1);
      }
    });
}

TEST_CASE("The memory plan counts what weights take of the pool, and the addresses of the whole model") {
  struct Counting final : std::pmr::memory_resource {
    std::size_t bytes = 0;
    void* do_allocate(std::size_t count, std::size_t alignment) override {
      bytes += count;
      return heap.allocate(count, alignment);
    }
    void do_deallocate(void* at, std::size_t count, std::size_t alignment) override {
      heap.deallocate(at, count, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
  };
  Batch batch;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const LinearKnobs& knobs : variants(dtype))
      for (const auto& [actors, mode] : in_each_mode({2, 3, 4}))
        run_actors(actors, [&, actors = actors, mode = mode](int, const dvla::GroupSource& groups) {
          const auto model = batch.model(knobs);
          Counting taken;
          const Sharded weights(*model, taken, mode, groups);
          for (const dvla::Parameter& each : model->parameters())
            taken.bytes += each.bytes() + (each.trainable ? 4 * static_cast<std::size_t>(each.count()) : 0);
          dvla::MemoryPlan plan;
          dvla::plan_weights(plan, {.parameters = model->parameters(),
                                    .trains = true,
                                    .actors = actors,
                                    .units_at_once = Sharded::units_at_once(mode),
                                    .shard_frozen = mode.shard_frozen});
          const std::size_t planned = plan.of(dvla::MemoryPlace::model_pool) + plan.addresses();
          CAPTURE(actors);
          CAPTURE(static_cast<int>(mode.release));
          CAPTURE(mode.shard_frozen);
          CHECK(static_cast<double>(planned) ==
                doctest::Approx(static_cast<double>(taken.bytes)).epsilon(0.02));
        });
}

namespace {
/// Models that say too little of their units.
struct Silent : LinearModel {
  using LinearModel::LinearModel;
  void hook_units(dvla::UnitHooks*) {}
};
struct ForwardsOnly : LinearModel, dvla::UnitHooks {
  using LinearModel::LinearModel;
  void hook_units(dvla::UnitHooks* hooks) {
    LinearModel::hook_units((all = hooks) == nullptr ? nullptr : this);
  }
  void before_unit(std::size_t unit, dvla::Direction direction) override {
    if (direction == dvla::Direction::forward) all->before_unit(unit, direction);
  }
  void after_unit(std::size_t unit, dvla::Direction direction) override {
    if (direction == dvla::Direction::forward) all->after_unit(unit, direction);
  }
  void gradient_ready(std::size_t unit) override { all->gradient_ready(unit); }
  dvla::UnitHooks* all = nullptr;
};
/// The last unit's weights are the first's, too.
struct Tied : LinearModel {
  using LinearModel::LinearModel;
  std::vector<dvla::Parameter> parameters() const {
    std::vector<dvla::Parameter> all = LinearModel::parameters();
    all.push_back(all.front());
    all.back().name = "again";
    all.back().unit = all.size() - 2;
    all.back().alias_of = all.front().name;
    return all;
  }
};
template <class Model>
std::string fault_of(UnitRelease release, bool shard_frozen = false) {
  Batch batch;
  dvla::ModelInputs inputs;
  inputs.observation = batch.environment.observation_spec();
  inputs.action = batch.environment.action_spec();
  inputs.chunk = 2;
  std::mutex mutex;
  std::string text;
  run_actors(
      2,
      [&](int, const dvla::GroupSource& groups) {
        Model model({.bins = 5, .chunk = 2, .frozen_units = shard_frozen ? 1 : 0}, inputs, 3);
        try {
          dvla::ShardedWeights<Model> weights(model, heap, {release, shard_frozen}, groups);
          imitate(batch, model, weights, 2, 2);
        } catch (const dvla::Error& error) {
          const std::scoped_lock lock(mutex);
          text = error.what();
        }
      },
      std::chrono::seconds(20));
  return text;
}
}  // namespace

TEST_CASE("A model that does not say what it reads, or reads it in two units, is one sentence") {
  CHECK_MESSAGE(fault_of<Silent>(UnitRelease::after_use).find("did not say that it reads it (UnitHooks") !=
                    std::string::npos,
                fault_of<Silent>(UnitRelease::after_use));
  CHECK(fault_of<Silent>(UnitRelease::after_backward).find("did not say") != std::string::npos);
  CHECK(fault_of<ForwardsOnly>(UnitRelease::after_use).find("in the backward pass") != std::string::npos);
  CHECK(fault_of<ForwardsOnly>(UnitRelease::after_backward).empty());
  CHECK(fault_of<Tied>(UnitRelease::after_use).find("again is weight.0 in another unit") == 0);
  CHECK(fault_of<Tied>(UnitRelease::after_backward, true).find("again is weight.0") == 0);
  CHECK(fault_of<Tied>(UnitRelease::never).empty());
}

TEST_CASE("What was stepped may be packed while the next passes gather, release and reduce") {
  Batch batch;
  for (const FsdpKnobs& mode : modes)
    for (const LinearKnobs& knobs : variants(Dtype::bf16))
      run_actors(3, [&](int, const dvla::GroupSource& groups) {
        const auto model = batch.model(knobs);
        const auto weights = make_sharded(mode, *model, groups);
        imitate(batch, *model, *weights, 1, 1);
        std::vector<std::byte> before(weights->packed_bytes()), packed(before.size());
        weights->pack(before);
        std::atomic<bool> done{false};
        std::thread distribution([&] {
          do {
            weights->pack(packed);
            CHECK(packed == before);
          } while (!done);
        });
        const dvla::Observation observation =
            cut_record((*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
        const std::vector<std::int64_t> rows{0, 1};
        weights->zero_gradients();
        for (int pass = 0; pass < 5; ++pass) {
          weights->begin_pass({.last = pass == 4});
          model->imitate(observation, (*batch.transition).action.flat(), rows, 1);
        }
        std::array sum{1.0};
        weights->sum(sum);
        done = true;
        distribution.join();
      });
}

TEST_CASE("An actor that fails in the middle of a pass ends the others, whatever they are at") {
  Batch batch;
  for (const FsdpKnobs& mode : modes)
    for (const bool empty : {false, true}) {
      std::atomic<int> ended{0};
      const auto begin = std::chrono::steady_clock::now();
      run_actors(
          3,
          [&](int actor, const dvla::GroupSource& groups) {
            const auto model = batch.model();
            const auto weights = make_sharded(mode, *model, groups);
            imitate(batch, *model, *weights, 1, 1);
            const dvla::Observation observation = cut_record(
                (*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
            const std::vector<std::int64_t> rows{0, 1};
            try {
              weights->zero_gradients();
              for (int pass = 0; pass < 3; ++pass) {
                weights->begin_pass({.last = pass == 2});
                if (actor == 0 && pass == 1) {
                  std::vector<float> log_prob(8), entropy(8);
                  const auto decisions =
                      dvla::cut_record(*batch.decision, [](auto field) { return field.flat(); });
                  model->forward(observation, decisions, rows, log_prob, entropy);
                  throw std::runtime_error("out of luck");
                }
                if (actor == 2 && empty) continue;
                model->imitate(observation, (*batch.transition).action.flat(), rows, 1);
              }
              weights->step({});
            } catch (const std::runtime_error&) {
              ++ended;
            }
          },
          std::chrono::seconds(20));
      CHECK(ended == 3);
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
    }
}

TEST_CASE("A unit that a pass does without, as a value head, is in nobody's way") {
  using WithValues = dvla::testing::LinearValueModel;
  Batch batch;
  dvla::ModelInputs inputs;
  inputs.observation = batch.environment.observation_spec();
  inputs.action = batch.environment.action_spec();
  inputs.chunk = 2;
  const auto fresh = [&] {
    return std::make_unique<WithValues>(LinearKnobs{.bins = 5, .chunk = 2}, inputs, 3);
  };
  const auto one = fresh();
  dvla::UnshardedWeights<WithValues> whole(*one, heap);
  const std::vector<double> expected = imitate(batch, *one, whole, 10, 2);
  for (const FsdpKnobs& mode : modes)
    run_actors(2, [&](int, const dvla::GroupSource& groups) {
      const auto model = fresh();
      dvla::ShardedWeights<WithValues> weights(*model, heap, mode, groups);
      const std::vector<double> losses = imitate(batch, *model, weights, 10, 2);
      for (std::size_t step = 0; step < losses.size(); ++step)
        CHECK(std::abs(losses[step] - expected[step]) < 1e-5);
    });
}

TEST_CASE("Knobs that do not fit, and a pass that was announced once and made twice, are one sentence") {
  Batch batch;
  const auto alone = batch.model();
  CHECK_THROWS_WITH_AS(Sharded(*alone, heap, {.release = UnitRelease::never, .shard_frozen = true}),
                       doctest::Contains("sharding.shard_frozen"), dvla::ConfigError);
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    const auto weights = make_sharded({}, *model, groups);
    const dvla::Observation observation =
        cut_record((*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
    const std::vector<std::int64_t> rows{0, 1};
    weights->zero_gradients();
    weights->begin_pass({});
    model->imitate(observation, (*batch.transition).action.flat(), rows, 1);
    CHECK_THROWS_WITH_AS(model->imitate(observation, (*batch.transition).action.flat(), rows, 1),
                         doctest::Contains("twice in one announced pass"), dvla::Error);
  });
}

TEST_CASE("bfloat16: the model computes with, and packs, rounded values; masters keep what rounding loses") {
  CHECK(dvla::from_bf16(dvla::to_bf16(1.0F)) == 1.0F);
  CHECK(dvla::from_bf16(dvla::to_bf16(1.00390625F)) == 1.0F);       // half way: to even
  CHECK(dvla::from_bf16(dvla::to_bf16(1.01171875F)) == 1.015625F);  // half way: to even
  CHECK(dvla::from_bf16(dvla::to_bf16(-1.004F)) == -1.0078125F);
  CHECK(std::isnan(dvla::from_bf16(dvla::to_bf16(std::bit_cast<float>(0x7F800001U)))));
  CHECK(std::isinf(dvla::from_bf16(dvla::to_bf16(INFINITY))));
  Batch batch;
  for (const LinearKnobs& knobs : variants(Dtype::bf16))
    run_actors(3, [&](int, const dvla::GroupSource& groups) {
      const auto model = batch.model(knobs);
      Sharded weights(*model, heap, {}, groups);
      imitate(batch, *model, weights, 3, 2);
      std::vector<std::uint16_t> packed(weights.packed_bytes() / 2);
      weights.pack(std::as_writable_bytes(std::span(packed)));  // while values are on their way
      weights.gather_all();
      const std::vector<std::byte> bytes = bytes_of_model(*model);
      std::vector<float> now(bytes.size() / 2);
      dvla::to_floats(bytes, Dtype::bf16, now);
      std::size_t at = 0;
      bool lost = false;
      for (const dvla::ShardPiece& piece : weights.pieces())
        for (std::size_t i = 0; i < piece.weight.size(); ++i, ++at) {
          const float value = now[static_cast<std::size_t>(piece.range.offset) + i];
          REQUIRE(value == dvla::from_bf16(dvla::to_bf16(piece.weight[i])));
          REQUIRE(dvla::from_bf16(packed[at]) == value);
          lost = lost || value != piece.weight[i];
        }
      CHECK(at == packed.size());
      CHECK(lost);
    });
}

TEST_CASE("Actors' parts cover what trains, and each packs its own; all begin with the first one's weights") {
  Batch batch;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const LinearKnobs& knobs : variants(dtype))
      for (const int actors : {1, 3, 4}) {
        std::vector<std::vector<std::byte>> packed(static_cast<std::size_t>(actors)), later = packed;
        std::vector<std::byte> end;
        run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
          const auto model = batch.model(knobs);
          if (actor > 0)
            for (const dvla::WeightUnit& unit : model->units())
              std::ranges::fill(unit.values, static_cast<std::byte>(actor));
          const auto weights = make<Sharded>(*model, groups);
          std::vector<std::byte>& mine = packed[static_cast<std::size_t>(actor)];
          mine.resize(weights->packed_bytes());
          weights->pack(mine);
          CHECK_THROWS_AS(weights->pack(std::span(mine).first(2)), dvla::Error);
          CHECK(weights->parts() == Sharded::parts_of(*model, actors));
          imitate(batch, *model, *weights, 2, 1);
          std::vector<std::byte>& then = later[static_cast<std::size_t>(actor)];
          then.resize(weights->packed_bytes());
          weights->pack(then);  // beside the gather
          weights->gather_all();
          if (actor == actors - 1) end = bytes_of_model(*model);
        });
        const auto model = batch.model(knobs);
        const auto parts = Sharded::parts_of(*model, actors);
        CHECK(put_together(packed, parts) == bytes_of_model(*model));
        CHECK(put_together(later, parts) == end);
      }
}

TEST_CASE("reset_optimiser forgets moments and steps and keeps the weights; take_parameters sets them") {
  Batch batch;
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
    const std::vector<std::byte> start = bytes_of_model(*model);
    const std::vector<double> once = imitate(batch, *model, *weights, 3, 1);
    weights->reset_optimiser();
    CHECK(weights->steps() == 0);
    for (const dvla::ShardPiece& piece : weights->pieces())
      CHECK(std::ranges::all_of(piece.second_moment, [](float value) { return value == 0; }));
    weights->gather_all();
    CHECK(bytes_of_model(*model) != start);
    dvla::write_weights(model->units(), 0, start);
    weights->take_parameters();
    CHECK(imitate(batch, *model, *weights, 3, 1) == once);
  });
}

TEST_CASE("A gradient that is not finite is an error on every actor that names it, and changes nothing") {
  Batch batch;
  run_actors(3, [&](int actor, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
    const std::vector<std::byte> start = bytes_of_model(*model);
    weights->zero_gradients();
    if (actor == 1) model->units()[0].gradients[0] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH_AS(weights->step({}),
                         doctest::Contains(actor == 0 ? "first in unit 0" : "another actor"), dvla::Error);
    CHECK(weights->steps() == 0);
    CHECK(bytes_of_model(*model) == start);
    weights->zero_gradients();
    for (const dvla::WeightUnit& unit : model->units()) std::ranges::fill(unit.gradients, 0.5F);
    CHECK(weights->step({}) ==
          doctest::Approx(1.5 * std::sqrt(static_cast<double>(start.size() / 4))));  // goes on
  });
}

TEST_CASE("A backward pass after the last one is an error") {
  Batch batch;
  const auto model = batch.model();
  Sharded weights(*model, heap);
  const dvla::Observation observation =
      cut_record((*batch.transition).observation, [](auto field) { return field.rows(0, 4).flat(); });
  const std::vector<std::int64_t> rows{0, 1};
  weights.zero_gradients();
  weights.begin_pass({});
  model->imitate(observation, (*batch.transition).action.flat(), rows, 1);
  model->imitate(observation, (*batch.transition).action.flat(), rows, 1);
  CHECK_THROWS_WITH_AS(weights.step({}), doctest::Contains("announced as the last"), dvla::Error);
}

TEST_CASE("An actor that is gone is an error at the others, with its type, that names actor, unit and step") {
  Batch batch;
  std::mutex mutex;
  std::string text;
  run_actors(
      2,
      [&](int actor, const dvla::GroupSource& groups) {
        const auto model = batch.model();
        const auto weights = make<Sharded>(*model, groups);
        imitate(batch, *model, *weights, 2, 1);
        if (actor == 1) return;
        try {
          weights->zero_gradients();
          weights->step({});
        } catch (const dvla::PeerError& error) {
          const std::scoped_lock lock(mutex);
          text = error.what();
        }
        CHECK_THROWS_AS(weights->zero_gradients(), dvla::PeerError);
      },
      std::chrono::seconds(20));
  CHECK(text.find("actor 0, unit ") == 0);
  CHECK(text.find("optimiser step 2, reduce_scatter: ") != std::string::npos);
}

TEST_CASE("A layout cuts each unit for all actors; one without trainable elements is nobody's") {
  std::vector<float> one(1), seven(7);
  std::vector<std::uint16_t> six(6);
  dvla::WeightUnit of_one, of_none, of_seven, of_six;
  of_one.values = std::as_writable_bytes(std::span(one));
  of_seven.values = std::as_writable_bytes(std::span(seven));
  of_six.values = std::as_writable_bytes(std::span(six));
  of_six.dtype = Dtype::bf16;
  const dvla::ShardLayout layout(std::array{of_one, of_none, of_seven, of_six}, 3);
  CHECK(layout.within(0, 2).count == 0);
  CHECK(layout.part(1) == 0);
  CHECK(layout.within(2, 2) == dvla::WeightRange{6, 1});
  CHECK(layout.range(2, 2) == dvla::WeightRange{7, 1});
  CHECK(layout.range(3, 1) == dvla::WeightRange{10, 2});
  CHECK(layout.parts()[1] == dvla::WeightPart{{16, 12}, {36, 4}});
  CHECK(layout.reduce_bytes(3) == 2 * 2 * 4);
}

TEST_CASE("Collectives are spans of a row of their own, and the backward pass goes on beside them") {
  Batch batch;
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    dvla::trace::Recorder trace;
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
    weights->trace_to(trace);
    imitate(batch, *model, *weights, 3, 2);
    weights->gather_all();
    int gathers = 0, reductions = 0;
    for (const auto& span : trace.spans()) {
      gathers += std::string(span.name) == "all_gather";
      reductions += std::string(span.name) == "reduce_scatter";
    }
    const int units = static_cast<int>(weights->layout().units());
    CHECK(gathers == 3 * 2 * (2 * units - 1) + units);  // gather_all's at the end
    CHECK(reductions == 3 * 2 * units);
    CHECK(trace.rows() == std::vector<std::string>{"sharding"});
  });
}
