// dvla-test: tsan
// Weights and moments carried from one set of actors to another of another size: bit for bit.
#include <doctest/doctest.h>

#include <cmath>
#include <mutex>
#include <optional>

#include "actors.hpp"
#include "dvla/sharding/carried_state.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"

namespace {

using namespace actors_test;
using Sharded = dvla::ShardedWeights<LinearModel>;
using Whole = dvla::UnshardedWeights<LinearModel>;
using dvla::testing::LinearKnobs;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

template <class Weights>
void steps(Weights& weights, LinearModel& model, int count) {
  for (int step = 0; step < count; ++step) {
    weights.zero_gradients();
    std::size_t i = 0;
    for (const dvla::WeightUnit& unit : model.units())
      for (float& gradient : unit.gradients)
        gradient = std::sin(static_cast<float>(i++) + static_cast<float>(step)) /
                   static_cast<float>(weights.actors());
    weights.step({.learning_rate = 0.1, .weight_decay = 0.1, .max_grad_norm = 0});
  }
}

/// The trainable bytes of a model with these masters.
std::vector<std::byte> carried(const LinearModel& model, std::span<const float> masters) {
  for (const dvla::WeightUnit& unit : model.units()) {
    const auto count = static_cast<std::size_t>(unit.count());
    dvla::from_floats(masters.first(count), unit.dtype, unit.values);
    masters = masters.subspan(count);
  }
  return bytes_of_model(model);
}

/// `world` ranks; `from` train 3 steps, `to` take over and train 2 more. What the new ones end with.
template <class Weights>
std::vector<float> move(const Batch& batch, const LinearKnobs& knobs, int world, const std::vector<int>& from,
                        const std::vector<int>& to) {
  const auto clusters = dvla::testing::ThreadCluster::make(world);
  std::vector<int> everybody;
  for (int rank = 0; rank < world; ++rank) everybody.push_back(rank);
  std::vector<float> end;
  std::mutex mutex;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank)
    ranks.emplace_back([&, rank] {
      dvla::Cluster& cluster = *clusters[static_cast<std::size_t>(rank)];
      const auto limit = std::chrono::seconds(20);
      const auto among = [&](const std::vector<int>& members, const std::string& when) {
        return [&cluster, &members, when, limit](const std::string& purpose) {
          return cluster.group(when + purpose, members, limit);
        };
      };
      const auto model = batch.model(knobs);
      std::unique_ptr<Weights> weights;
      if (dvla::Roles::place(from, rank) >= 0) {
        weights = std::unique_ptr<Weights>(new Weights(*model, heap, {}, among(from, "old/")));
        steps(*weights, *model, 3);
        weights->gather_all();
      }
      const auto all = cluster.group("all", everybody, limit);
      const dvla::CarriedState state =
          dvla::carry(weights.get(), *all, from, dvla::trainable_count(model->units()));
      CHECK(state.step == 3);
      weights.reset();
      if (dvla::Roles::place(to, rank) < 0) return;
      const auto fresh = batch.model(knobs);
      Weights next(*fresh, heap, {}, among(to, "new/"));
      dvla::take(next, state);
      next.gather_all();
      for (const dvla::ShardPiece& piece : next.pieces())
        CHECK(std::equal(piece.weight.begin(), piece.weight.end(),
                         state.values[2].begin() + piece.range.offset));
      CHECK(bytes_of_model(*fresh) == carried(*batch.model(knobs), state.values[2]));
      CHECK(next.steps() == 3);
      steps(next, *fresh, 2);
      next.gather_all();
      const std::scoped_lock lock(mutex);
      if (end.empty()) end = values_of(*fresh);
      CHECK(end == values_of(*fresh));
    });
  for (std::thread& rank : ranks) rank.join();
  return end;
}

TEST_CASE("Actors of any number take over from actors of any number") {
  const Batch batch;
  using Ranks = std::vector<int>;
  for (const LinearKnobs& knobs :
       {Batch::usual, LinearKnobs{.bins = 5, .chunk = 2, .frozen_units = 1, .dtype = dvla::Dtype::bf16}}) {
    const std::vector<float> expected = move<Whole>(batch, knobs, 1, {0}, {0});
    REQUIRE(!expected.empty());
    // Sums over several actors round otherwise than one actor's gradient; in 16 bits that may be a digit.
    const double limit = knobs.dtype == dvla::Dtype::f32 ? 1e-6 : 4e-3;
    for (const auto& each : {std::pair{Ranks{0}, Ranks{0, 1, 2}}, std::pair{Ranks{0, 1, 2}, Ranks{0}},
                             std::pair{Ranks{0, 2}, Ranks{0, 1, 3}}, std::pair{Ranks{0, 3}, Ranks{0, 2}}}) {
      const Ranks &from = each.first, &to = each.second;
      CAPTURE(from.size());
      CAPTURE(to.size());
      CHECK(largest_difference(move<Whole>(batch, knobs, 4, from, to), expected) < limit);
      CHECK(largest_difference(move<Sharded>(batch, knobs, 4, from, to), expected) < limit);
    }
  }
}

TEST_CASE("Trainers that do not have the whole are refused") {
  const Batch batch;
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    Sharded weights(*model, heap, {}, groups);
    const auto all = groups("all");
    const std::int64_t floats = dvla::trainable_count(model->units());
    try {
      (void)dvla::carry(&weights, *all, {0}, floats);
      CHECK(false);
    } catch (const dvla::Error& error) {
      CHECK(std::string(error.what()).find("of the model's " + std::to_string(floats)) != std::string::npos);
    }
  });
}

}  // namespace
