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
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

template <class Weights>
void steps(Weights& weights, LinearModel& model, int count) {
  for (int step = 0; step < count; ++step) {
    weights.zero_gradients();
    for (std::size_t i = 0; i < model.gradients().size(); ++i)
      model.gradients()[i] =
          std::sin(static_cast<float>(i) + static_cast<float>(step)) / static_cast<float>(weights.actors());
    weights.step({.learning_rate = 0.1, .weight_decay = 0.1, .max_grad_norm = 0});
  }
}

/// `world` ranks; `from` train 3 steps, `to` take over and train 2 more. What the new ones end with.
template <class Weights>
std::vector<float> move(const Batch& batch, int world, const std::vector<int>& from,
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
      const auto model = batch.model();
      std::unique_ptr<Weights> weights;
      if (dvla::Roles::place(from, rank) >= 0) {
        weights = std::make_unique<Weights>(
            *model, heap,
            typename std::conditional_t<std::is_same_v<Weights, Sharded>, dvla::FsdpKnobs, dvla::NoKnobs>{},
            among(from, "old/"));
        steps(*weights, *model, 3);
        weights->gather_all();
      }
      const auto all = cluster.group("all", everybody, limit);
      const dvla::CarriedState state =
          dvla::carry(weights.get(), *all, from, std::ssize(model->parameters()));
      CHECK(state.step == 3);
      weights.reset();
      if (dvla::Roles::place(to, rank) < 0) return;
      const auto fresh = batch.model();
      Weights next(*fresh, heap, {}, among(to, "new/"));
      dvla::take(next, state);
      next.gather_all();
      CHECK(std::equal(state.values[0].begin(), state.values[0].end(), fresh->parameters().begin()));
      CHECK(next.state().step == 3);
      steps(next, *fresh, 2);
      next.gather_all();
      const std::scoped_lock lock(mutex);
      if (end.empty()) end.assign(fresh->parameters().begin(), fresh->parameters().end());
      CHECK(std::equal(end.begin(), end.end(), fresh->parameters().begin()));
    });
  for (std::thread& rank : ranks) rank.join();
  return end;
}

TEST_CASE("Actors of any number take over from actors of any number") {
  const Batch batch;
  const std::vector<float> expected = move<Whole>(batch, 1, {0}, {0});
  REQUIRE(!expected.empty());
  using Ranks = std::vector<int>;
  for (const auto& each : {std::pair{Ranks{0}, Ranks{0, 1, 2}}, std::pair{Ranks{0, 1, 2}, Ranks{0}},
                           std::pair{Ranks{0, 2}, Ranks{0, 1, 3}}, std::pair{Ranks{0, 3}, Ranks{0, 2}}}) {
    const Ranks &from = each.first, &to = each.second;
    CAPTURE(from.size());
    CAPTURE(to.size());
    // Sums over several actors round otherwise than one actor's gradient.
    CHECK(largest_difference(move<Whole>(batch, 4, from, to), expected) < 1e-6);
    CHECK(largest_difference(move<Sharded>(batch, 4, from, to), expected) < 1e-6);
  }
}

TEST_CASE("Trainers that do not have the whole are refused") {
  const Batch batch;
  run_actors(2, [&](int, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    Sharded weights(*model, heap, {}, groups);
    const auto all = groups("all");
    const std::int64_t floats = std::ssize(model->parameters());
    try {
      (void)dvla::carry(&weights, *all, {0}, floats);
      CHECK(false);
    } catch (const dvla::Error& error) {
      CHECK(std::string(error.what()).find("of the model's " + std::to_string(floats)) != std::string::npos);
    }
  });
}

}  // namespace
