// GrpoTrainer: what one update does to a model, on a case small enough to be worked out by hand and on a
// model that samples.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "dvla/algorithm/grpo.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/algorithm.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/model.hpp"
#include "dvla/trace/off.hpp"

namespace {
struct TableDecision {
  dvla::Field<float> log_prob;
};
}  // namespace
BOOST_HANA_ADAPT_STRUCT(TableDecision, log_prob);

namespace {

/// Weight n is the log-probability of row n, so gradients can be read off.
struct TableModel {
  using Decision = TableDecision;
  explicit TableModel(std::vector<float> start)
      : table(std::move(start)),
        gradient(table.size()),
        spans{{.values = std::as_writable_bytes(std::span(table)),
               .gradients = gradient,
               .runs = {{.count = std::ssize(table)}}}} {}
  TableModel(const TableModel&) = delete;
  Decision decision_layout(dvla::Extents leading) const {
    return {dvla::Field<float>(dvla::Extents{leading[0], leading[1], 1, 1})};
  }
  void act(const dvla::Observation&, std::span<const std::int64_t>, dvla::Decoding, std::uint64_t, Decision&,
           dvla::Field<float>) {}
  void forward(const dvla::Observation&, const Decision&, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy) {
    ++forwards;
    last.assign(rows.begin(), rows.end());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      log_prob[i] = table[static_cast<std::size_t>(rows[i])];
      entropy[i] = 0;
    }
  }
  void backward(std::span<const float> d_log_prob, std::span<const float>) {
    for (std::size_t i = 0; i < last.size(); ++i)
      gradient[static_cast<std::size_t>(last[i])] += d_log_prob[i];
  }
  double imitate(const dvla::Observation&, dvla::Field<float>, std::span<const std::int64_t>, double) {
    return 0;
  }
  TableModel(const TableModel& other, dvla::ShareFrozen) : TableModel(other.table) {}
  const std::vector<dvla::Parameter>& parameters() const { return names; }
  const std::vector<dvla::WeightUnit>& units() const { return spans; }
  void hold_gradients(bool) {}
  void hook_units(dvla::UnitHooks*) {}
  static void use_threads(int) {}

  std::vector<float> table, gradient;
  std::vector<std::int64_t> last;
  std::vector<dvla::Parameter> names;
  std::vector<dvla::WeightUnit> spans;
  int forwards = 0;
};

/// Keeps each step's gradient and changes nothing.
struct KeptGradients : dvla::LoneActor {
  explicit KeptGradients(TableModel& whose) : model(whose) {}
  TableModel& model;
  std::vector<std::vector<float>> steps{};
  void zero_gradients() { std::ranges::fill(model.gradient, 0.0F); }
  std::vector<double> rates{};
  double step(const dvla::AdamWKnobs& knobs) {
    steps.push_back(model.gradient);
    rates.push_back(knobs.learning_rate);
    return 0;
  }
};

/// T = 2, B = 4 in groups of 2. Episode 0 succeeds in the first step, 1 never, 2 in the second, 3 in the
/// first.
struct Tiny {
  static constexpr dvla::BatchShape shape{2, 4, 1};
  Tiny() {
    std::ranges::fill(decision->log_prob.span(), 0.0F);
    std::ranges::fill(transition->reward.span(), 0.0F);
    std::ranges::fill(transition->terminated.span(), std::uint8_t{1});
    std::ranges::fill(transition->truncated.span(), std::uint8_t{0});
    std::ranges::fill(transition->version.span(), std::int64_t{0});
    for (const int b : {0, 1, 2, 3}) transition->group[b] = b / 2;
    std::ranges::fill(transition->observation.instruction.span(), 0);
    std::ranges::fill(transition->observation.proprioception.span(), 0.0F);
    transition->terminated.at(0)[1] = transition->terminated.at(0)[2] = 0;
    transition->terminated.at(1)[1] = 0;  // episode 1 is cut off by the horizon
    transition->truncated.at(1)[1] = 1;
    transition->reward.at(0)[0] = transition->reward.at(1)[2] = transition->reward.at(0)[3] = 1;
    for (const int b : {0, 1, 2, 3}) transition->episode.success[b] = b == 1 ? 0 : 1;
  }
  static dvla::DecoupledClipKnobs<dvla::GrpoKnobs> knobs() {
    dvla::DecoupledClipKnobs<dvla::GrpoKnobs> knobs;
    knobs.group = 2;
    knobs.epochs = 1;
    knobs.global_batch = 0;
    knobs.micro_batch = 8;
    return knobs;
  }
  std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
  dvla::OwnedRecord<dvla::Transition> transition{
      dvla::transition_layout({.cameras = {}, .proprioception = 1, .instructions = {"go"}}, {1}, shape),
      heap};
  dvla::OwnedRecord<TableDecision> decision{TableModel({0}).decision_layout({2, 4}), heap};
};

template <class Correction = dvla::Uncorrected, class Weights, class World>
dvla::UpdateStats update(World& world, const dvla::DecoupledClipKnobs<dvla::GrpoKnobs>& knobs,
                         TableModel& model, Weights& weights, std::int64_t batch = 0, int* before = nullptr) {
  dvla::trace::Off off;
  dvla::GrpoTrainer<TableModel, Weights, Correction> trainer(knobs, Tiny::shape, 1, 1);
  return trainer.update(
      model, weights, *world.transition, *world.decision, batch, [&] { before ? ++*before : 0; }, off);
}

const float log11 = std::log(1.1F), log07 = std::log(0.7F), log13 = std::log(1.3F);

}  // namespace

TEST_CASE("Loss, gradient and statistics of a batch worked out by hand") {
  // Group 0 earned 1 and 0: mean 0.5, unbiased deviation sqrt(0.5), advantages +-a. Group 1 earned 1 and 1:
  // 0. Rows that count: (0,0) ratio 1.1, (0,1) ratio 0.7 (clipped at 0.8), (1,1) ratio 1.3 (not clipped: it
  // makes the loss larger), and the three of group 1. Weights: an episode's steps share 2: 2; 1, 1; 1, 1; 2.
  // Divided by all 8 steps.
  const double a = 0.5 / (std::sqrt(0.5) + 1e-6);
  Tiny world;
  TableModel model({log11, log07, 0.3F, -0.2F, 9.0F, log13, 0.1F, 9.0F});
  KeptGradients weights{model};
  int before = 0;
  const auto stats = update(world, Tiny::knobs(), model, weights, 0, &before);
  CHECK(before == 1);
  CHECK(stats.loss.policy_loss == doctest::Approx(a * (-2 * 1.1 + 0.8 + 1.3) / 8).epsilon(1e-5));
  CHECK(stats.mean_return == doctest::Approx(0.75));
  CHECK(stats.success_rate == doctest::Approx(0.75));
  CHECK(stats.informative_groups == 1);
  CHECK(stats.rows == 6);
  CHECK(stats.optimiser_steps == 1);
  CHECK(stats.loss.units == 6);
  CHECK(stats.loss.clipped_low == 1);
  CHECK(stats.loss.clipped_high == 0);
  REQUIRE(weights.steps.size() == 1);
  const std::array<double, 8> expected{-2 * 1.1 * a / 8, 0, 0, 0, 0, 1.3 * a / 8, 0, 0};
  for (std::size_t row = 0; row < 8; ++row)
    CHECK(weights.steps[0][row] == doctest::Approx(expected[row]).epsilon(1e-5));
}

TEST_CASE("The learning rate falls linearly to a tenth, by the number of the batch, and stays there") {
  Tiny world;
  dvla::DecoupledClipKnobs<dvla::GrpoKnobs> knobs = Tiny::knobs();
  knobs.learning_rate = 0.5;
  knobs.decay_batches = 10;
  TableModel model(std::vector<float>(8));
  KeptGradients weights(model);
  for (const std::int64_t batch : {0, 5, 10, 1000}) {
    std::ranges::fill(world.transition->version.span(), batch);
    update(world, knobs, model, weights, batch);
  }
  REQUIRE(weights.rates.size() == 4);
  CHECK(weights.rates[0] == doctest::Approx(0.5));
  CHECK(weights.rates[1] == doctest::Approx(0.275));
  CHECK(weights.rates[2] == doctest::Approx(0.05));
  CHECK(weights.rates[3] == doctest::Approx(0.05));
}

TEST_CASE("A masked mean divides by the steps that count") {
  const double a = 0.5 / (std::sqrt(0.5) + 1e-6);
  Tiny world;
  TableModel model({log11, log07, 0.3F, -0.2F, 9.0F, log13, 0.1F, 9.0F});
  KeptGradients weights{model};
  auto knobs = Tiny::knobs();
  knobs.aggregation = dvla::Aggregation::masked_mean;
  CHECK(update(world, knobs, model, weights).loss.policy_loss ==
        doctest::Approx(a * (-1.1 + 0.8 + 1.3) / 6).epsilon(1e-5));
}

TEST_CASE("filter_rewards leaves groups out that always succeed") {
  Tiny world;
  TableModel model(std::vector<float>(8, 0.0F));
  KeptGradients weights{model};
  auto knobs = Tiny::knobs();
  knobs.filter_lower = 0.1;
  knobs.filter_upper = 0.9;
  CHECK(update(world, knobs, model, weights).rows == 3);
}

TEST_CASE("before_step is called exactly once: after the first gradient, before the first change") {
  for (const int epochs : {1, 3})
    for (const int size : {1, 2, 8}) {
      Tiny world;
      TableModel model(std::vector<float>(8, 0.0F));
      auto knobs = Tiny::knobs();
      knobs.epochs = epochs;
      knobs.global_batch = knobs.micro_batch = size;
      dvla::UnshardedWeights<TableModel> weights(model, world.heap);
      dvla::trace::Off off;
      dvla::GrpoTrainer<TableModel, dvla::UnshardedWeights<TableModel>, dvla::Uncorrected> trainer(
          knobs, Tiny::shape, 1, 1);
      int before = 0;
      const auto stats = trainer.update(
          model, weights, *world.transition, *world.decision, 0,
          [&] {
            ++before;
            CHECK(model.forwards > 0);
            CHECK(weights.steps() == 0);
            CHECK(std::ranges::all_of(model.table, [](float value) { return value == 0; }));
          },
          off);
      CHECK(before == 1);
      CHECK(stats.optimiser_steps == epochs * ((6 + size - 1) / size));
      CHECK(weights.steps() == stats.optimiser_steps);
      CHECK(model.forwards == stats.optimiser_steps);
    }
}

TEST_CASE("On-policy data needs no proximal pass and is clipped plainly; older data is recomputed once") {
  const std::vector<float> start{log11, log07, 0.3F, -0.2F, 9.0F, log13, 0.1F, 9.0F};
  Tiny world;
  TableModel plain(start), fresh(start), stale(start);
  KeptGradients plain_weights{plain}, fresh_weights{fresh}, stale_weights{stale};
  update<dvla::Uncorrected>(world, Tiny::knobs(), plain, plain_weights, 0);
  update<dvla::DecoupledClip>(world, Tiny::knobs(), fresh, fresh_weights, 0);
  CHECK(fresh.forwards == 1);
  CHECK(fresh_weights.steps == plain_weights.steps);
  const auto stats = update<dvla::DecoupledClip>(world, Tiny::knobs(), stale, stale_weights, 1);
  CHECK(stale.forwards == 2);
  // Ratio to the proximal policy is 1 everywhere; the importance weights are 1.1, 0.7 and 1.3.
  const double a = 0.5 / (std::sqrt(0.5) + 1e-6);
  CHECK(stats.loss.max_ratio_deviation == 0);
  CHECK(stats.loss.policy_loss == doctest::Approx(a * (-2 * 1.1 + 0.7 + 1.3) / 8).epsilon(1e-5));
  const std::array<double, 8> expected{-2 * 1.1 * a / 8, 0.7 * a / 8, 0, 0, 0, 1.3 * a / 8, 0, 0};
  for (std::size_t row = 0; row < 8; ++row)
    CHECK(stale_weights.steps[0][row] == doctest::Approx(expected[row]).epsilon(1e-5));
}

TEST_CASE("An importance weight above the limit drops its step") {
  Tiny world;
  auto knobs = Tiny::knobs();
  knobs.weight_limit = 1.2;
  TableModel model({log11, log07, 0.3F, -0.2F, 9.0F, log13, 0.1F, 9.0F});
  KeptGradients weights{model};
  const auto stats = update<dvla::DecoupledClip>(world, knobs, model, weights, 1);
  CHECK(stats.loss.dropped == 2);  // 1.3, and 1.35 in the group without advantage
  CHECK(weights.steps[0][5] == 0);
  CHECK(weights.steps[0][0] != 0);
}

TEST_CASE("Versions newer than the weights that are trained are refused by the interpolated form") {
  using Interpolated = dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>;
  Tiny world;
  TableModel model(std::vector<float>(8, 0.0F));
  KeptGradients weights{model};
  std::ranges::fill(world.transition->version.span(), std::int64_t{3});
  CHECK_THROWS_AS(update<Interpolated>(world, Tiny::knobs(), model, weights, 2), dvla::Error);
  update<Interpolated>(world, Tiny::knobs(), model, weights, 5);
  CHECK(model.forwards == 2);  // none more than Uncorrected, and one that was refused
}

TEST_CASE("Knobs that do not fit are refused when the trainer is made") {
  using Trainer = dvla::GrpoTrainer<TableModel, KeptGradients, dvla::Uncorrected>;
  auto refuses = [](auto change) {
    auto knobs = Tiny::knobs();
    change(knobs);
    try {
      Trainer(knobs, Tiny::shape, 1, 1);
    } catch (const dvla::ConfigError&) {
      return true;
    }
    return false;
  };
  CHECK(!refuses([](auto&) {}));
  CHECK(refuses([](auto& knobs) { knobs.global_batch = 3, knobs.micro_batch = 2; }));
  CHECK(refuses([](auto& knobs) { knobs.dual_clip = 0.5; }));
  CHECK(refuses([](auto& knobs) { knobs.beta1 = 1; }));
}

namespace {

/// A batch that was really sampled: Toy, two control steps a chunk, two action dimensions.
struct Sampled {
  Sampled() { worker.rollout(*transition, *decision, 0); }
  std::unique_ptr<dvla::testing::LinearModel> model() const {
    return std::make_unique<dvla::testing::LinearModel>(
        dvla::testing::LinearKnobs{.bins = 5, .chunk = 2},
        dvla::ModelInputs{environment.observation_spec(), environment.action_spec(), 2}, 3);
  }
  /// Parameters after one update of a fresh model; `old` is how many versions the data lag.
  template <class Correction = dvla::DecoupledClip>
  std::vector<float> trained(const dvla::DecoupledClipKnobs<dvla::GrpoKnobs>& knobs, std::int64_t old = 0) {
    auto fresh = model();
    using Weights = dvla::UnshardedWeights<dvla::testing::LinearModel>;
    Weights weights(*fresh, heap);
    dvla::GrpoTrainer<dvla::testing::LinearModel, Weights, Correction> trainer(knobs, worker.shape(), 2, 1);
    std::ranges::fill(transition->version.span(), std::int64_t{0});
    last = trainer.update(
        *fresh, weights, *transition, *decision, old, [] {}, off);
    return dvla::testing::detail::weights_of(*fresh);
  }
  static dvla::DecoupledClipKnobs<dvla::GrpoKnobs> knobs() {
    dvla::DecoupledClipKnobs<dvla::GrpoKnobs> knobs;
    knobs.learning_rate = 0.01;
    knobs.global_batch = 0;
    knobs.micro_batch = 256;
    knobs.gradient_clip = 0;
    return knobs;
  }
  std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
  dvla::ToyEnvironment environment{{.environments = 64, .horizon = 8, .actions = 2}, heap};
  dvla::trace::Off off;
  std::unique_ptr<dvla::testing::LinearModel> sampler = model();
  dvla::RolloutWorker<dvla::ToyEnvironment, dvla::testing::LinearModel, dvla::trace::Off> worker{
      environment, *sampler, *sampler, {.seed = 1, .chunk = 2, .group = 8}, off};
  dvla::OwnedRecord<dvla::Transition> transition{worker.layout(4, 2), heap};
  dvla::OwnedRecord<dvla::testing::LinearDecision> decision{model()->decision_layout({4, 64}), heap};
  dvla::UpdateStats last;
};

/// Calls check(shaped) for every level of log-probabilities and rewards and every aggregation that go
/// together; shaped(knobs) sets them.
template <class Check>
void every_shape_of_loss(Check check) {
  for (const auto level : {dvla::LogProbLevel::token, dvla::LogProbLevel::action, dvla::LogProbLevel::chunk})
    for (const auto reward : {dvla::RewardLevel::chunk, dvla::RewardLevel::action})
      for (const auto aggregation : {dvla::Aggregation::trajectory_equal, dvla::Aggregation::masked_mean}) {
        if (level == dvla::LogProbLevel::chunk && reward == dvla::RewardLevel::action) continue;
        const auto shaped = [&](dvla::GrpoKnobs& knobs) {
          knobs.log_prob_level = level;
          knobs.reward_level = reward;
          knobs.aggregation = aggregation;
        };
        check(shaped);
      }
}

double largest_difference(const std::vector<float>& one, const std::vector<float>& two) {
  double largest = 0;
  for (std::size_t i = 0; i < one.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(one[i]) - static_cast<double>(two[i])));
  return largest;
}

}  // namespace

TEST_CASE_TEMPLATE("GRPO keeps what an algorithm promises, at every level and aggregation", Correction,
                   dvla::Uncorrected, dvla::DecoupledClip,
                   dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>) {
  using dvla::testing::LinearModel;
  using Trainer = dvla::GrpoTrainer<LinearModel, dvla::UnshardedWeights<LinearModel>, Correction>;
  every_shape_of_loss([](auto& shaped) {
    typename Trainer::Knobs knobs;
    shaped(knobs);
    knobs.entropy_bonus = 0.01;
    knobs.weight_decay = 0.1;
    knobs.global_batch = 128;
    knobs.micro_batch = 32;
    for (const std::string& violation :
         dvla::testing::check_algorithm<Trainer>(knobs, {.max_staleness = Correction::max_staleness}))
      FAIL_CHECK(violation);
  });
}

TEST_CASE("Micro-batches that accumulate give what one large batch gives, at every level and aggregation") {
  Sampled world;
  every_shape_of_loss([&](auto& shaped) {
    auto knobs = Sampled::knobs();
    shaped(knobs);
    knobs.entropy_bonus = 0.01;
    const auto whole = world.trained(knobs);
    CHECK(world.last.optimiser_steps == knobs.epochs);
    CHECK(world.last.gradient_norm > 1e-4);
    const double loss = world.last.loss.loss();
    knobs.micro_batch = 8;
    const auto parts = world.trained(knobs);
    CHECK(world.last.optimiser_steps == knobs.epochs);
    CHECK(world.last.loss.loss() == doctest::Approx(loss).epsilon(1e-4));
    CHECK(largest_difference(whole, parts) < 2e-4);  // of steps of 0.01
  });
}

TEST_CASE("The first ratio of fresh data is 1, and later epochs move away from it") {
  Sampled world;
  auto knobs = Sampled::knobs();
  knobs.epochs = 1;
  world.trained(knobs);
  CHECK(world.last.loss.max_ratio_deviation < 1e-5);
  knobs.epochs = 3;
  world.trained(knobs);
  CHECK(world.last.loss.max_ratio_deviation > 1e-3);
  CHECK(world.last.optimiser_steps == 3);
}

TEST_CASE("Fresh data is the same to every correction, to the bit") {
  Sampled world;
  const auto knobs = Sampled::knobs();
  const auto plain = world.trained<dvla::Uncorrected>(knobs);
  CHECK(plain == world.trained<dvla::DecoupledClip>(knobs));
  using Interpolated = dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>;
  CHECK(plain == world.trained<Interpolated>(knobs));
  // Lag 1: alpha is 0, so the interpolated form is plain clipping.
  CHECK(world.trained<dvla::Uncorrected>(knobs, 1) == world.trained<Interpolated>(knobs, 1));
  auto far = knobs;  // until something is clipped, older data too give both the same gradient
  far.learning_rate = 0.2;
  far.epochs = 5;
  CHECK(world.trained<dvla::Uncorrected>(far, 1) == world.trained<Interpolated>(far, 1));
  CHECK(world.trained<dvla::Uncorrected>(far, 2) != world.trained<Interpolated>(far, 2));
}

namespace {

/// A table model whose reference policy gives every decision the same log-probability.
struct Anchored : TableModel {
  using TableModel::TableModel;
  Anchored(const Anchored& other, dvla::ShareFrozen) : TableModel(other.table) {}
  void reference(const dvla::Observation&, const Decision&, std::span<const std::int64_t> rows,
                 std::span<float> log_prob) {
    ++references;
    std::fill_n(log_prob.begin(), rows.size(), -0.5F);
  }
  int references = 0;
};

}  // namespace

TEST_CASE("A KL to the reference policy pulls every decision that counts towards it") {
  Tiny world;
  std::ranges::fill(world.transition->reward.span(), 0.0F);  // no advantage: all that is left is the KL
  auto knobs = Tiny::knobs();
  knobs.kl = 0.1;
  Anchored model(std::vector<float>(8, 0.0F));
  KeptGradients weights{model};
  dvla::trace::Off off;
  dvla::GrpoTrainer<Anchored, KeptGradients, dvla::Uncorrected> trainer(knobs, Tiny::shape, 1, 1);
  const auto stats = trainer.update(
      model, weights, *world.transition, *world.decision, 0, [] {}, off);
  CHECK(model.references == 1);
  CHECK(stats.loss.kl_loss == doctest::Approx(0.1 * (std::exp(-0.5) - 0.5)));
  REQUIRE(weights.steps.size() == 1);
  const double slope = 0.1 * (1 - std::exp(-0.5)) / 8;  // trajectories weigh alike: 2, or 1 and 1
  const std::array<double, 8> expected{2 * slope, slope, slope, 2 * slope, 0, slope, slope, 0};
  for (std::size_t row = 0; row < 8; ++row) CHECK(weights.steps[0][row] == doctest::Approx(expected[row]));
  CHECK_THROWS_WITH_AS(
      (dvla::GrpoTrainer<TableModel, KeptGradients, dvla::Uncorrected>(knobs, Tiny::shape, 1, 1)),
      doctest::Contains("knows no reference policy; wrap it in LoRA"), dvla::ConfigError);
}

TEST_CASE("RLOO, REINFORCE++ and its baseline keep what an algorithm promises, and overlong episodes cost") {
  using dvla::testing::LinearModel;
  using Weights = dvla::UnshardedWeights<LinearModel>;
  const auto keeps = [](auto estimator) {
    using Trainer = dvla::PolicyGradientTrainer<LinearModel, Weights, dvla::DecoupledClip,
                                                typename decltype(estimator)::type>;
    typename Trainer::Knobs knobs;
    knobs.global_batch = 128;
    knobs.micro_batch = 32;
    for (const std::string& violation : dvla::testing::check_algorithm<Trainer>(knobs, {.max_staleness = 8}))
      FAIL_CHECK(violation);
  };
  keeps(std::type_identity<dvla::GroupRelative<dvla::LeaveOneOut>>{});
  keeps(std::type_identity<dvla::GroupRelative<dvla::Whitened>>{});
  keeps(std::type_identity<dvla::GroupRelative<dvla::GroupWhitened>>{});

  // T = 2, C = 2, three episodes: one ends in its first step, one in its third, one not at all.
  const dvla::RolloutExtents extents{2, 3, 2};
  std::vector<std::uint8_t> terminated(12, 0), truncated(12, 0);
  terminated[0] = 1;
  terminated[3 * 2 + 1 * 2] = 1;
  std::vector<float> returns{1, 1, 1};
  dvla::punish_overlong(extents, terminated, truncated, 2, 0.5, returns);
  CHECK(returns[0] == 1);
  CHECK(returns[1] == doctest::Approx(1 - 0.5 * 0.5));
  CHECK(returns[2] == doctest::Approx(0.5));
}
