// dvla-test: tsan
// Several actors as full replicas: an update over dealt groups is the update of one actor with all of them.
#include <doctest/doctest.h>

#include "actors.hpp"
#include "dvla/sharding/unsharded.hpp"

namespace {

using namespace actors_test;
using Weights = dvla::UnshardedWeights<LinearModel>;

std::unique_ptr<Weights> make(LinearModel& model, const dvla::GroupSource& groups) {
  return std::make_unique<Weights>(model, *std::pmr::new_delete_resource(), dvla::NoKnobs{}, groups);
}

struct Outcome {
  std::vector<std::vector<float>> parameters, gradients;  ///< of each actor; the last step's sum over actors
  std::vector<dvla::UpdateStats> stats;
};

Outcome outcome(Batch& batch, int actors, const std::function<int(int)>& owner,
                const dvla::GrpoKnobs& knobs) {
  Outcome result;
  result.parameters.resize(static_cast<std::size_t>(actors));
  result.gradients.resize(static_cast<std::size_t>(actors));
  result.stats.resize(static_cast<std::size_t>(actors));
  batch.update<Weights>(actors, owner, knobs, make,
                        [&](int actor, LinearModel& model, Weights&, const dvla::UpdateStats& s) {
                          result.parameters[static_cast<std::size_t>(actor)] = values_of(model);
                          result.gradients[static_cast<std::size_t>(actor)] = gradients_of(model);
                          result.stats[static_cast<std::size_t>(actor)] = s;
                        });
  return result;
}

}  // namespace

TEST_CASE("Replicas take the step of one actor that has all groups, however these are dealt") {
  Batch batch;
  for (const auto aggregation : {dvla::Aggregation::trajectory_equal, dvla::Aggregation::masked_mean}) {
    auto knobs = Batch::knobs();
    knobs.aggregation = aggregation;
    const Outcome one = outcome(
        batch, 1, [](int) { return 0; }, knobs);
    for (const int actors : {2, 3, 4})
      for (const auto& deal : deals(actors)) {
        CAPTURE(actors);
        const Outcome several = outcome(batch, actors, deal, knobs);
        for (std::size_t actor = 0; actor < several.stats.size(); ++actor) {
          CHECK(several.parameters[actor] == several.parameters[0]);
          const dvla::UpdateStats &a = several.stats[actor], &b = one.stats[0];
          CHECK(a.episodes == 64);
          CHECK(a.rows == b.rows);
          CHECK(a.success_rate == doctest::Approx(b.success_rate));
          CHECK(a.mean_return == doctest::Approx(b.mean_return));
          CHECK(a.informative_groups == b.informative_groups);
          CHECK(a.optimiser_steps == b.optimiser_steps);
          CHECK(a.loss.units == b.loss.units);
          CHECK(a.loss.loss() == doctest::Approx(b.loss.loss()).epsilon(1e-4));
          CHECK(a.loss.approx_kl() == doctest::Approx(b.loss.approx_kl()).epsilon(1e-3));
          CHECK(a.loss.max_ratio_deviation == doctest::Approx(b.loss.max_ratio_deviation).epsilon(1e-3));
          CHECK(a.gradient_norm == doctest::Approx(b.gradient_norm).epsilon(1e-4));
        }
        // Adam makes steps of 0.01 of gradients that are only rounding, so weights agree less than gradients.
        CHECK(largest_difference(several.gradients[0], one.gradients[0]) < 2e-5);
        CHECK(largest_difference(several.parameters[0], one.parameters[0]) < 3e-3);
      }
  }
}

TEST_CASE("Small mini-batches: the same number of steps for everybody, also for an actor without episodes") {
  Batch batch;
  auto knobs = Batch::knobs();
  knobs.micro_batch = 4;
  knobs.global_batch = 48;
  const auto nobody = [](int) { return 2; };
  const Outcome one = outcome(
      batch, 1, [](int) { return 0; }, knobs);
  for (const auto& deal : {deals(3)[0], deals(3)[1], std::function<int(int)>(nobody)}) {
    const Outcome three = outcome(batch, 3, deal, knobs);
    for (std::size_t actor = 0; actor < 3; ++actor) {
      CHECK(three.stats[actor].optimiser_steps == one.stats[0].optimiser_steps);
      CHECK(three.parameters[actor] == three.parameters[0]);
    }
  }
}

TEST_CASE("A batch in which every episode is absent changes nothing") {
  Batch batch;
  const Outcome two = outcome(
      batch, 2, [](int) { return -1; }, Batch::knobs());
  CHECK(two.stats[1].optimiser_steps == 0);
  CHECK(two.stats[1].success_rate == 0);
  CHECK(two.stats[0].episodes == 0);
  CHECK(two.parameters[0] == values_of(*batch.model()));
}

TEST_CASE("Absent episodes count for nothing: one actor with some is one actor that never had them") {
  Batch batch;
  const auto half = [](int group) { return group < 4 ? 0 : -1; };
  auto knobs = Batch::knobs();
  const Outcome poisoned = outcome(batch, 1, half, knobs);
  CHECK(poisoned.stats[0].episodes == 32);
  for (const float value : poisoned.parameters[0]) REQUIRE(std::isfinite(value));
  // The same as two actors of which one has the four groups and the other none.
  const Outcome two = outcome(batch, 2, half, knobs);
  CHECK(two.parameters[0] == poisoned.parameters[0]);
}

TEST_CASE("Half a group: its statistics are those of the members that are there") {
  Batch batch;
  auto mine = batch.dealt([](int) { return 0; }, 0);
  for (int b = 0; b < Batch::episodes; ++b)
    if (b % 8 >= 4) (*mine)->group[b] = -1;
  const auto update = [&](dvla::Transition& transition, int group) {
    auto knobs = Batch::knobs();
    knobs.group = group;
    const auto model = batch.model();
    Weights weights(*model, batch.heap);
    dvla::GrpoTrainer<LinearModel, Weights, dvla::Uncorrected> trainer(knobs, batch.worker.shape(), 2, 1);
    trainer.update(
        *model, weights, transition, *batch.decision, 0, [] {}, batch.off);
    return values_of(*model);
  };
  CHECK(update(**mine, 8) == update(**mine, 4));  // the second half-groups are wholly absent
}

TEST_CASE(
    "Batch sizes that do not fit the actors are refused in one sentence, another number of actors too") {
  Batch batch;
  auto knobs = Batch::knobs();
  knobs.global_batch = 32;
  using Trainer = dvla::GrpoTrainer<LinearModel, Weights, dvla::Uncorrected>;
  CHECK_NOTHROW(Trainer(knobs, batch.worker.shape(), 2, 1, 2));
  CHECK_THROWS_WITH_AS(Trainer(knobs, batch.worker.shape(), 2, 1, 4), doctest::Contains("32"),
                       dvla::ConfigError);
  const auto model = batch.model();
  Weights weights(*model, batch.heap);
  Trainer two(knobs, batch.worker.shape(), 2, 1, 2);
  CHECK_THROWS_AS(two.update(
                      *model, weights, *batch.transition, *batch.decision, 0, [] {}, batch.off),
                  dvla::Error);
}

TEST_CASE("Each replica packs its share; together these are the weights, and all begin with the first's") {
  Batch batch;
  for (const dvla::Dtype dtype : {dvla::Dtype::f32, dvla::Dtype::bf16}) {
    const dvla::testing::LinearKnobs knobs{.bins = 5, .chunk = 2, .frozen_units = 1, .dtype = dtype};
    std::vector<std::vector<std::byte>> packed(3);
    run_actors(3, [&](int actor, const dvla::GroupSource& groups) {
      const auto model = batch.model(knobs);
      if (actor > 0)
        for (const dvla::WeightUnit& unit : model->units())
          std::ranges::fill(unit.values, static_cast<std::byte>(actor));
      const auto weights = make(*model, groups);
      std::vector<std::byte>& mine = packed[static_cast<std::size_t>(actor)];
      mine.resize(weights->packed_bytes());
      weights->pack(mine);
      CHECK(weights->parts() == Weights::parts_of(*model, 3));
      CHECK_THROWS_AS(weights->pack(std::span(mine).first(4)), dvla::Error);
    });
    const auto model = batch.model(knobs);
    CHECK(put_together(packed, Weights::parts_of(*model, 3)) == bytes_of_model(*model));
  }
}

TEST_CASE("Replicas of a partly frozen model in bfloat16 take the same steps, and leave what is frozen") {
  Batch batch;
  const dvla::testing::LinearKnobs knobs{
      .bins = 5, .chunk = 2, .frozen_units = 2, .dtype = dvla::Dtype::bf16};
  const std::vector<float> start = values_of(*batch.model(knobs));
  std::vector<std::vector<float>> end(3);
  run_actors(3, [&](int actor, const dvla::GroupSource& groups) {
    const auto model = batch.model(knobs);
    const auto weights = make(*model, groups);
    for (int step = 0; step < 5; ++step) {
      weights->zero_gradients();
      for (const dvla::WeightUnit& unit : model->units())
        std::ranges::fill(unit.gradients, static_cast<float>(actor + step));
      weights->step({.learning_rate = 0.01});
    }
    end[static_cast<std::size_t>(actor)] = values_of(*model);
  });
  CHECK(end[0] == end[1]);
  CHECK(end[0] == end[2]);
  for (std::size_t i = 0; i < start.size(); ++i) REQUIRE((end[0][i] == start[i]) == (i < start.size() / 2));
}
