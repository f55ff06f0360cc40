// dvla-test: tsan
// ShardedWeights on threads, with LinearModel: equal to one actor, bytes, bfloat16, packing, errors.
#include <doctest/doctest.h>

#include <mutex>

#include "actors.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/sharding.hpp"
#include "dvla/trace/recorder.hpp"

namespace {

using namespace actors_test;
using Sharded = dvla::ShardedWeights<LinearModel>;
using Whole = dvla::UnshardedWeights<LinearModel>;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// The same model without units.
struct PlainModel : LinearModel {
  using LinearModel::LinearModel;
  std::vector<dvla::WeightRange> units() const = delete;
};

/// Passes everything on and counts what a ring of members would send.
struct CountingGroup final : dvla::Group {
  CountingGroup(std::unique_ptr<dvla::Group> inner, std::int64_t& count)
      : group(std::move(inner)), bytes(count) {}
  int rank() const override { return group->rank(); }
  int size() const override { return group->size(); }
  void broadcast(std::span<std::byte> values, int root) override { group->broadcast(values, root); }
  void sum(std::span<float> values) override { group->sum(values); }
  void sum(std::span<double> values) override {
    bytes += (size() - 1) * static_cast<std::int64_t>(values.size_bytes());
    group->sum(values);
  }
  void max(std::span<std::int64_t> values) override { group->max(values); }
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override {
    bytes += static_cast<std::int64_t>(all.size() - part.size());
    group->all_gather(part, all);
  }
  void reduce_scatter(std::span<const float> all, std::span<float> part) override {
    bytes += static_cast<std::int64_t>(all.size_bytes() - part.size_bytes());
    group->reduce_scatter(all, part);
  }
  void barrier() override { group->barrier(); }
  void close() noexcept override { group->close(); }
  std::unique_ptr<dvla::Group> group;
  std::int64_t& bytes;
};

template <class Weights>
std::unique_ptr<Weights> make(LinearModel& model, const dvla::GroupSource& groups) {
  return std::unique_ptr<Weights>(new Weights(model, heap, {}, groups));
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
      weights.begin_micro_batch(micro + 1 == micros);
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

TEST_CASE("50 steps at 1, 2, 3 and 4 actors: the loss curve of one actor with the whole model") {
  Batch batch;
  const auto one = batch.model();
  Whole whole(*one, heap);
  const std::vector<double> expected = imitate(batch, *one, whole, 50, 2);
  CHECK(expected.back() < 0.9 * expected.front());
  for (const int actors : {1, 2, 3, 4}) {
    CAPTURE(actors);
    run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
      const auto model = batch.model();
      const auto weights = make<Sharded>(*model, groups);
      const std::vector<double> losses = imitate(batch, *model, *weights, 50, 2);
      weights->gather_all();
      for (std::size_t step = 0; step < losses.size(); ++step)
        CHECK(std::abs(losses[step] - expected[step]) < 1e-5);
      CHECK(largest_difference(model->parameters(), one->parameters()) < 1e-4);
      if (actors == 1 && actor == 0) {
        CHECK(losses == expected);
        CHECK(std::ranges::equal(model->parameters(), one->parameters()));
      }
    });
  }
}

TEST_CASE("One actor alone keeps what every sharding promises") {
  const auto faults = dvla::testing::check_sharding(
      [](LinearModel& model, std::pmr::memory_resource& memory) { return Sharded(model, memory); });
  for (const std::string& fault : faults) MESSAGE(fault);
  CHECK(faults.empty());
}

TEST_CASE("A model without units is one unit, and learns the same; so do actors without rows") {
  Batch batch;
  const auto one = batch.model();
  Whole whole(*one, heap);
  const std::vector<double> expected = imitate(batch, *one, whole, 10, 1);
  run_actors(3, [&](int, const dvla::GroupSource& groups) {
    PlainModel model({.bins = 5, .chunk = 2},
                     {batch.environment.observation_spec(), batch.environment.action_spec(), 2}, 3);
    dvla::ShardedWeights<PlainModel> weights(model, heap, {}, groups);
    CHECK(weights.layout().units().size() == 1);
    const std::vector<double> losses = imitate(batch, model, weights, 10, 1);
    for (std::size_t step = 0; step < losses.size(); ++step)
      CHECK(std::abs(losses[step] - expected[step]) < 1e-5);
  });
  run_actors(2, [&](int, const dvla::GroupSource& groups) {  // more micro-batches than rows
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
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
        whole.assign(model.parameters().begin(), model.parameters().end());
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
                              const auto now = model.parameters();
                              if (first.empty()) first.assign(now.begin(), now.end());
                              CHECK(std::ranges::equal(first, now));
                              CHECK(largest_difference(now, whole) < 3e-3);  // see test_actors.cpp
                            });
    }
}

TEST_CASE(
    "Bytes sent are those of the formula, whatever the accumulation: an all-gather and a reduce-scatter") {
  Batch batch;
  for (const bool bf16 : {false, true})
    for (const int actors : {1, 2, 3, 4})
      for (const int micros : {1, 4})
        run_actors(actors, [&](int, const dvla::GroupSource& groups) {
          std::int64_t counted = 0;
          const auto model = batch.model();
          Sharded weights(*model, heap, {bf16}, [&](const std::string& purpose) {
            auto inner = groups(purpose);
            return purpose == "shards" ? std::make_unique<CountingGroup>(std::move(inner), counted)
                                       : std::move(inner);
          });
          imitate(batch, *model, weights, 5, micros);
          const std::int64_t sent = weights.traffic().total();
          std::int64_t padded = 0;  // the formula by hand
          for (const auto& unit : weights.layout().units()) padded += (unit.count + actors - 1) / actors;
          const std::int64_t formula = (actors - 1) * padded * ((bf16 ? 2 : 4) + 4);
          CHECK(weights.layout().bytes_a_step(bf16 ? 2 : 4) == formula);
          CHECK(sent == 5 * formula);
          CHECK(counted == sent);
        });
}

TEST_CASE("bfloat16: the model computes with, and packs, rounded values; masters keep what rounding loses") {
  CHECK(dvla::detail::from_bf16(dvla::detail::to_bf16(1.0F)) == 1.0F);
  CHECK(dvla::detail::from_bf16(dvla::detail::to_bf16(1.00390625F)) == 1.0F);       // half way: to even
  CHECK(dvla::detail::from_bf16(dvla::detail::to_bf16(1.01171875F)) == 1.015625F);  // half way: to even
  CHECK(dvla::detail::from_bf16(dvla::detail::to_bf16(-1.004F)) == -1.0078125F);
  CHECK(std::isnan(dvla::detail::from_bf16(dvla::detail::to_bf16(std::bit_cast<float>(0x7F800001U)))));
  CHECK(std::isinf(dvla::detail::from_bf16(dvla::detail::to_bf16(INFINITY))));
  Batch batch;
  run_actors(3, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    Sharded weights(*model, heap, {true}, groups);
    const auto rounded = [](float value) { return dvla::detail::from_bf16(dvla::detail::to_bf16(value)); };
    const auto check = [&] {
      weights.gather_all();
      std::vector<float> packed(weights.packed_bytes() / 4);
      weights.pack(std::as_writable_bytes(std::span(packed)));
      std::size_t at = 0;
      bool lost = false;
      for (const dvla::ShardPiece& piece : weights.pieces())
        for (std::size_t i = 0; i < piece.weight.size(); ++i, ++at) {
          const float now = model->parameters()[static_cast<std::size_t>(piece.range.offset) + i];
          REQUIRE(now == rounded(piece.weight[i]));
          REQUIRE(packed[at] == now);
          lost = lost || now != piece.weight[i];
        }
      CHECK(lost);
    };
    check();
    const std::vector<double> losses = imitate(batch, *model, weights, 50, 2);
    CHECK(losses.back() < 0.9 * losses.front());
    check();
  });
}

TEST_CASE("Actors' parts cover the weights, and each packs its own; all begin with the first one's weights") {
  Batch batch;
  for (const int actors : {1, 3, 4}) {
    std::vector<std::vector<float>> packed(static_cast<std::size_t>(actors));
    run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
      const auto model = batch.model();
      if (actor > 0) std::ranges::fill(model->parameters(), 7.0F);
      const auto weights = make<Sharded>(*model, groups);
      std::vector<float>& mine = packed[static_cast<std::size_t>(actor)];
      mine.resize(weights->packed_bytes() / 4);
      weights->pack(std::as_writable_bytes(std::span(mine)));
      CHECK_THROWS_AS(weights->pack({}), dvla::Error);
      CHECK(weights->parts() == Sharded::parts_of(*model, actors));
    });
    const auto model = batch.model();
    const std::span<float> parameters = model->parameters();
    const auto parts = Sharded::parts_of(*model, actors);
    dvla::check_weight_parts(std::ssize(parameters), parts, static_cast<std::size_t>(actors));
    std::vector<float> whole(parameters.size());
    for (std::size_t actor = 0; actor < parts.size(); ++actor)
      dvla::scatter_part(std::as_bytes(std::span(packed[actor])), parts[actor],
                         std::as_writable_bytes(std::span(whole)));
    CHECK(std::ranges::equal(whole, parameters));
  }
}

TEST_CASE("reset_optimiser forgets moments and steps and keeps the weights; take_parameters sets them") {
  Batch batch;
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
    const std::vector<float> start(model->parameters().begin(), model->parameters().end());
    const std::vector<double> once = imitate(batch, *model, *weights, 3, 1);
    weights->reset_optimiser();
    CHECK(weights->state().step == 0);
    CHECK(std::ranges::all_of(weights->state().second_moment, [](float value) { return value == 0; }));
    weights->gather_all();
    CHECK(!std::ranges::equal(model->parameters(), start));
    std::ranges::copy(start, model->parameters().begin());
    weights->take_parameters();
    CHECK(imitate(batch, *model, *weights, 3, 1) == once);
  });
}

TEST_CASE("A gradient that is not finite is an error on every actor that names it, and changes nothing") {
  Batch batch;
  run_actors(3, [&](int actor, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    const auto weights = make<Sharded>(*model, groups);
    const std::vector<float> start(model->parameters().begin(), model->parameters().end());
    weights->zero_gradients();
    if (actor == 1) model->gradients()[0] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH_AS(weights->step({}),
                         doctest::Contains(actor == 0 ? "first in unit 0" : "another actor"), dvla::Error);
    CHECK(weights->state().step == 0);
    weights->zero_gradients();
    std::ranges::fill(model->gradients(), 0.5F);
    CHECK(weights->step({}) ==
          doctest::Approx(1.5 * std::sqrt(static_cast<double>(start.size()))));  // goes on
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
  weights.begin_micro_batch(true);
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

TEST_CASE("Units that do not cover the weights are refused") {
  CHECK_THROWS_AS(dvla::ShardLayout({{0, 4}, {5, 3}}, 8, 2), dvla::ConfigError);
  CHECK_THROWS_AS(dvla::ShardLayout({{0, 4}}, 8, 2), dvla::ConfigError);
  CHECK_THROWS_AS(dvla::ShardLayout({{0, 4}, {4, 5}}, 8, 2), dvla::ConfigError);
  CHECK_THROWS_AS(dvla::ShardLayout({}, 8, 2), dvla::ConfigError);
  const dvla::ShardLayout layout({{0, 1}, {1, 7}}, 8, 3);
  CHECK(layout.shard_floats() == 1 + 3);
  CHECK(layout.range(0, 2).count == 0);
  CHECK(layout.range(1, 2) == dvla::WeightRange{7, 1});
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
    const int units = static_cast<int>(weights->layout().units().size());
    CHECK(gathers == 3 * units);
    CHECK(reductions == 3 * units);
    CHECK(trace.rows() == std::vector<std::string>{"sharding"});
  });
}
