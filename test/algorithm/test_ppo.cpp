// PPO: advantages and targets of batches worked out by hand, what it keeps of what an algorithm promises, and that it
// learns.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "dvla/algorithm/ppo.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/algorithm.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/trace/off.hpp"
#include "test/sharding/actors.hpp"

namespace {

using dvla::testing::LinearValueModel;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// What GaeEstimator makes of a batch of T decisions of one control step, every reward 1, every recorded value
/// `value`.
struct ByHand {
  explicit ByHand(std::int64_t decisions, std::int64_t rows, std::int64_t table, std::int64_t chunk = 1)
      : transition(dvla::transition_layout({.cameras = {}, .proprioception = 1, .instructions = {"go"}}, {1},
                                           {decisions, rows, chunk, table, true}),
                   heap),
        present(static_cast<std::size_t>(rows), 1),
        returns(present.size()) {
    std::ranges::fill(transition->observation.proprioception.span(), 0.0F);
    std::ranges::fill(transition->reward.span(), 1.0F);
    for (auto flags : {transition->terminated, transition->truncated}) std::ranges::fill(flags.span(), 0);
    auto& episode = transition->episode;
    dvla::for_each_field(episode, [](const char*, auto& field) {
      std::ranges::fill(field.span(), typename std::remove_cvref_t<decltype(field)>::element_type{});
    });
  }
  void end(std::int64_t s, std::int64_t row, std::int64_t decision, std::int64_t step, dvla::EpisodeEnd how,
           float final_value = 0) {
    auto& episode = transition->episode;
    episode.decision.at(s)[row] = static_cast<std::int32_t>(decision);
    episode.step.at(s)[row] = static_cast<std::int32_t>(step);
    episode.end.at(s)[row] = static_cast<std::uint8_t>(how);
    episode.final_value.at(s)[row] = final_value;
  }
  void estimate(const dvla::PpoKnobs& knobs, float value = 0) {
    const auto& reward = transition->reward;
    const dvla::RolloutExtents extents{static_cast<std::size_t>(reward.extents()[0]),
                                       static_cast<std::size_t>(reward.extents()[1]),
                                       static_cast<std::size_t>(reward.extents()[2])};
    const std::size_t elements = extents.rows() * extents.per_row(knobs.reward_level);
    values.assign(elements, value);
    mask.assign(elements, 7);
    advantage.assign(elements, -1);
    target.assign(elements, -1);
    dvla::GaeEstimator estimator(knobs, extents, static_cast<std::size_t>(transition->episode.size()));
    const dvla::EstimatorBatch batch{
        *transition, present, returns,   values, transition->episode.final_value.span(),
        {},          mask,    advantage, target};
    estimator.mask(batch);
    informative = estimator.estimate(batch, [](std::span<double>) {});
  }

  dvla::OwnedRecord<dvla::Transition> transition;
  std::vector<std::uint8_t> present, mask;
  std::vector<float> returns, values, advantage, target;
  std::size_t informative = 0;
};

dvla::PpoKnobs plain() {
  dvla::PpoKnobs knobs;
  knobs.gamma = 0.9;
  knobs.lambda = 1;
  knobs.normalize_advantages = false;
  return knobs;
}

}  // namespace

TEST_CASE(
    "What an episode ended with is worth something where it was cut off, and nothing where it was over") {
  // T = 3, r = 1, gamma = 0.9, lambda = 1. The next episode would begin in a state worth 100.
  for (const bool truncated : {true, false}) {
    ByHand world(3, 1, 1);
    world.end(0, 0, 2, 0, truncated ? dvla::EpisodeEnd::truncated : dvla::EpisodeEnd::terminated, 10);
    world.estimate(plain());
    const double last = truncated ? 10.0 : 1.0;
    CHECK(world.target[2] == doctest::Approx(last));
    CHECK(world.target[1] == doctest::Approx(1 + 0.9 * last));
    CHECK(world.target[0] == doctest::Approx(1 + 0.9 * (1 + 0.9 * last)));
    CHECK(world.advantage == world.target);  // recorded values are 0
    CHECK(world.informative == 1);
  }
}

TEST_CASE("Without a bootstrap what is cut off ends as what is over does") {
  ByHand world(3, 1, 1);
  world.end(0, 0, 2, 0, dvla::EpisodeEnd::truncated, 10);
  dvla::PpoKnobs knobs = plain();
  knobs.bootstrap = false;
  world.estimate(knobs);
  CHECK(world.target[2] == doctest::Approx(1.0));
  CHECK(world.target[0] == doctest::Approx(1 + 0.9 * 1.9));
}

TEST_CASE("No transition crosses a reset, and what a row does not play counts for nothing") {
  // Row 0: terminated after decision 0, then truncated after 2. Row 1: terminated after 1, no episode after it. Row 2
  // is absent.
  ByHand world(4, 3, 2);
  world.end(0, 0, 0, 0, dvla::EpisodeEnd::terminated);
  world.end(1, 0, 2, 0, dvla::EpisodeEnd::truncated, 5);
  world.end(0, 1, 1, 0, dvla::EpisodeEnd::terminated);
  world.end(0, 2, 3, 0, dvla::EpisodeEnd::truncated, 50);
  world.present[2] = 0;
  world.estimate(plain(), 2);
  const std::array<std::uint8_t, 12> mask{1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0};
  CHECK(std::ranges::equal(world.mask, mask));
  const auto target = [&](std::size_t t, std::size_t b) {
    return static_cast<double>(world.target[t * 3 + b]);
  };
  CHECK(target(0, 0) == doctest::Approx(1));
  CHECK(target(2, 0) == doctest::Approx(1 + 0.9 * 5));
  CHECK(target(1, 0) == doctest::Approx(1 + 0.9 * 5.5));
  CHECK(target(1, 1) == doctest::Approx(1));
  CHECK(target(0, 1) == doctest::Approx(1.9));
  CHECK(world.advantage[0] == doctest::Approx(1 - 2));
  CHECK(world.advantage[2] == 0);
}

TEST_CASE("A chunk's reward is the sum of its steps; at action level each step has its own") {
  ByHand world(2, 1, 1, 3);
  world.end(0, 0, 1, 1, dvla::EpisodeEnd::terminated);
  world.transition->reward.at(1).at(0)[2] = 0;  // after the end
  world.estimate(plain());
  CHECK(world.mask == std::vector<std::uint8_t>{1, 1});
  CHECK(world.target[1] == doctest::Approx(2));
  CHECK(world.target[0] == doctest::Approx(3 + 0.9 * 2));
  auto knobs = plain();
  knobs.reward_level = dvla::RewardLevel::action;
  world.estimate(knobs);
  CHECK(world.mask == std::vector<std::uint8_t>{1, 1, 1, 1, 1, 0});
  double expected = 0;
  for (const std::size_t k : {4, 3, 2, 1, 0}) {
    expected = 1 + 0.9 * expected;
    CHECK(world.target[k] == doctest::Approx(expected));
  }
}

namespace {

/// PPO on Toy, with rows that begin another episode within a pass where `table` is above 1.
template <class Correction = dvla::DecoupledClip>
struct Learning {
  using Trainer = dvla::PpoTrainer<LinearValueModel, dvla::UnshardedWeights<LinearValueModel>, Correction>;

  explicit Learning(typename Trainer::Knobs knobs, std::int64_t table = 1, std::int64_t pass_steps = 0)
      : worker(environment, *model, *model,
               {.seed = 1, .chunk = 2, .group = 1, .pass_steps = pass_steps, .table = table}, off),
        transition(dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                                           worker.shape()),
                   heap),
        decision(model->decision_layout({worker.shape().decisions, worker.shape().episodes}), heap),
        trainer(knobs, worker.shape(), 1, 1) {}

  dvla::UpdateStats batch(std::int64_t lag = 0) {
    worker.models().front().version = std::max<std::int64_t>(number - lag, 0);
    worker.rollout(*transition, *decision, number);
    return trainer.update(
        *model, weights, *transition, *decision, number++, [] {}, off);
  }

  dvla::ToyEnvironment environment{{.environments = 128, .horizon = 4, .actions = 1}, heap};
  dvla::trace::Off off;
  std::unique_ptr<LinearValueModel> model = std::make_unique<LinearValueModel>(
      dvla::testing::LinearKnobs{.bins = 5, .chunk = 2},
      dvla::ModelInputs{environment.observation_spec(), environment.action_spec(), 2}, 3);
  dvla::UnshardedWeights<LinearValueModel> weights{*model, heap};
  dvla::RolloutWorker<dvla::ToyEnvironment, LinearValueModel, dvla::trace::Off> worker;
  dvla::OwnedRecord<dvla::Transition> transition;
  dvla::OwnedRecord<dvla::testing::LinearValueDecision> decision;
  Trainer trainer;
  std::int64_t number = 0;
};

template <class Knobs>
Knobs fast() {
  Knobs knobs;
  knobs.learning_rate = 0.02;
  knobs.global_batch = 64;
  knobs.micro_batch = 32;
  knobs.aggregation = dvla::Aggregation::masked_mean;
  return knobs;
}

}  // namespace

TEST_CASE_TEMPLATE("PPO keeps what an algorithm promises, with every correction", Correction,
                   dvla::Uncorrected, dvla::DecoupledClip, dvla::GIPO) {
  using Trainer = dvla::PpoTrainer<LinearValueModel, dvla::UnshardedWeights<LinearValueModel>, Correction>;
  for (const auto level :
       {dvla::LogProbLevel::token, dvla::LogProbLevel::action, dvla::LogProbLevel::sequence})
    for (const auto targets : {dvla::ValueTargets::gae, dvla::ValueTargets::v_trace}) {
      typename Trainer::Knobs knobs;
      knobs.global_batch = 96;
      knobs.micro_batch = 32;
      knobs.log_prob_level = level;
      knobs.value_targets = targets;
      for (const std::string& violation : dvla::testing::check_algorithm<Trainer, LinearValueModel>(
               knobs, {.max_staleness = Correction::max_staleness}))
        FAIL_CHECK(violation);
    }
}

TEST_CASE("A rollout records what the sampling weights think of the observations that cut episodes off") {
  for (const std::int64_t table : {1, 3}) {
    Learning<> world(fast<Learning<>::Trainer::Knobs>(), table, table > 1 ? 12 : 0);
    world.worker.rollout(*world.transition, *world.decision, 0);
    const auto& episode = world.transition->episode;
    const std::int64_t B = world.worker.shape().episodes;
    std::int64_t cut = 0;
    for (std::int64_t s = 0; s < table; ++s)
      for (std::int64_t b = 0; b < B; ++b) {
        const float recorded = episode.final_value.at(s)[b];
        if (episode.end.at(s)[b] != static_cast<std::uint8_t>(dvla::EpisodeEnd::truncated)) {
          CHECK(recorded == 0);
          continue;
        }
        ++cut;
        const std::int64_t next = episode.decision.at(s)[b] + 1;
        const dvla::Observation seen =
            dvla::cut_record(table > 1 ? episode.final_observation : world.transition->observation,
                             [&](auto field) { return field.at(table > 1 ? s : next); });
        float value = 0;
        const std::array<std::int64_t, 1> rows{b};
        world.model->values(seen, rows, {&value, 1});
        CHECK(recorded == value);
      }
    CHECK(cut > 0);
  }
}

TEST_CASE("PPO learns Toy, with one episode a row and with several, on fresh data and on stale") {
  struct Case {
    std::int64_t table, lag;
  };
  for (const auto& [table, lag] : {Case{1, 0}, Case{3, 0}, Case{1, 2}}) {
    CAPTURE(table);
    CAPTURE(lag);
    auto knobs = fast<Learning<>::Trainer::Knobs>();
    Learning<> world(knobs, table, table > 1 ? 12 : 0);
    const auto first = world.batch();
    dvla::UpdateStats last;
    for (int i = 0; i < 40; ++i) last = world.batch(lag);
    CHECK(last.success_rate > first.success_rate + 0.3);
    CHECK(last.success_rate > 0.8);
    CHECK(last.loss.values > 0);
    if (table > 1) CHECK(last.episodes > 128);
  }
}

TEST_CASE("Values under V-trace are the trained weights' own; on fresh data it is GAE's target to the bit") {
  auto knobs = fast<Learning<>::Trainer::Knobs>();
  auto corrected = knobs;
  corrected.value_targets = dvla::ValueTargets::v_trace;
  Learning<> gae(knobs), v_trace(corrected);
  for (int i = 0; i < 3; ++i) {
    const auto a = gae.batch(), b = v_trace.batch();
    CHECK(a.loss.value_loss == b.loss.value_loss);
    CHECK(a.gradient_norm == b.gradient_norm);
  }
  Learning<> stale_gae(knobs), stale(corrected);
  for (int i = 0; i < 30; ++i) stale.batch(2), stale_gae.batch(2);
  CHECK(stale.batch(2).success_rate > 0.7);
}

TEST_CASE("While the critic warms up the policy stays, and the values learn") {
  auto knobs = fast<Learning<>::Trainer::Knobs>();
  knobs.critic_warmup = 5;
  Learning<> world(knobs);
  const auto policy = [&] {  // every unit but the last, which is the value head
    std::vector<float> all;
    for (std::size_t unit = 0; unit + 1 < world.model->units().size(); ++unit)
      all.insert(all.end(), world.model->units()[unit].floats().begin(),
                 world.model->units()[unit].floats().end());
    return all;
  };
  const std::vector<float> before = policy();
  double first = 0, last = 0;
  for (int i = 0; i < 5; ++i) {
    const auto stats = world.batch();
    (i == 0 ? first : last) = stats.loss.value_loss;
    CHECK(policy() == before);
    CHECK(stats.loss.value_loss > 0);
  }
  CHECK(last < first);
  world.batch();
  CHECK(policy() != before);
}

TEST_CASE("A model whose values do not fit the rewards' level is refused in one sentence") {
  auto knobs = fast<Learning<>::Trainer::Knobs>();
  knobs.reward_level = dvla::RewardLevel::action;
  Learning<> world(knobs);
  CHECK_THROWS_WITH_AS(
      world.batch(),
      doctest::Contains("algorithm.reward_level asks for 2 values a decision, and the model gives 1"),
      dvla::ConfigError);
}

TEST_CASE_TEMPLATE(
    "Actors that share a batch take the step of one that has all of it, on fresh data and on stale", Weights,
    dvla::UnshardedWeights<LinearValueModel>, dvla::ShardedWeights<LinearValueModel>) {
  using Trainer = dvla::PpoTrainer<LinearValueModel, Weights, dvla::DecoupledClip>;
  for (const std::int64_t number : {0, 2})
    for (const auto targets : {dvla::ValueTargets::gae, dvla::ValueTargets::v_trace}) {
      auto knobs = fast<typename Trainer::Knobs>();
      knobs.global_batch = 0;
      knobs.micro_batch = 16;
      knobs.value_targets = targets;
      Learning<> world(fast<Learning<>::Trainer::Knobs>(), 3, 12);
      world.worker.rollout(*world.transition, *world.decision, 0);
      const auto after = [&](int actors) {
        std::vector<std::vector<float>> weights(static_cast<std::size_t>(actors));
        std::vector<dvla::UpdateStats> stats(weights.size());
        actors_test::run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
          LinearValueModel model({.bins = 5, .chunk = 2},
                                 {world.environment.observation_spec(), world.environment.action_spec(), 2},
                                 3);
          Weights own(model, heap, {}, groups);
          Trainer trainer(knobs, world.worker.shape(), 1, 1, actors);
          dvla::OwnedRecord<dvla::Transition> mine(*world.transition, heap);
          std::memcpy(mine.block().data(), world.transition.block().data(), mine.block().size());
          for (std::int64_t b = 0; b < mine->group.count(); ++b) {
            if (b % actors == actor) continue;
            mine->group[b] = -1;  // another's: what stands there is poison
            for (std::int64_t t = 0; t < mine->reward.extents()[0]; ++t)
              mine->reward.at(t).at(b)[0] = std::numeric_limits<float>::quiet_NaN();
          }
          dvla::trace::Off off;
          stats[static_cast<std::size_t>(actor)] = trainer.update(
              model, own, *mine, *world.decision, number, [] {}, off);
          own.gather_all();
          weights[static_cast<std::size_t>(actor)] = [&] {
            std::vector<float> all;
            for (const dvla::WeightUnit& unit : model.units())
              all.insert(all.end(), unit.floats().begin(), unit.floats().end());
            return all;
          }();
        });
        for (const auto& each : weights) CHECK(each == weights[0]);
        return std::pair(weights[0], stats[0]);
      };
      const auto [alone, one] = after(1);
      for (const int actors : {2, 3}) {
        const auto [shared, several] = after(actors);
        CHECK(several.episodes == one.episodes);
        CHECK(several.rows == one.rows);
        CHECK(several.loss.values == one.loss.values);
        CHECK(several.success_rate == doctest::Approx(one.success_rate));
        CHECK(several.mean_return == doctest::Approx(one.mean_return));
        CHECK(several.explained_variance == doctest::Approx(one.explained_variance).epsilon(1e-3));
        CHECK(several.loss.loss() == doctest::Approx(one.loss.loss()).epsilon(1e-3));
        CHECK(actors_test::largest_difference(shared, alone) < 5e-3);  // of steps of 0.02
      }
    }
}
