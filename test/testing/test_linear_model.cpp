// dvla-test: asan
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "dvla/core/record.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/model.hpp"

using dvla::Decoding;
using dvla::Field;
using dvla::testing::LinearModel;

namespace {

/// Adam as in the textbook, for a loop written by hand.
struct Adam {
  explicit Adam(LinearModel& of) : model(of) {
    model.hold_gradients(true);
    first.resize(static_cast<std::size_t>(dvla::trainable_count(model.units())));
    second.resize(first.size());
  }
  void step(float rate) {
    ++steps;
    std::size_t i = 0;
    for (const dvla::WeightUnit& unit : model.units())
      for (std::size_t e = 0; e < unit.gradients.size(); ++e, ++i) {
        const float gradient = std::exchange(unit.gradients[e], 0.0F);
        first[i] = 0.9F * first[i] + 0.1F * gradient;
        second[i] = 0.99F * second[i] + 0.01F * gradient * gradient;
        unit.floats()[e] -= rate * (first[i] / (1 - std::pow(0.9F, steps))) /
                            (std::sqrt(second[i] / (1 - std::pow(0.99F, steps))) + 1e-8F);
      }
  }
  LinearModel& model;
  std::vector<float> first, second;
  float steps = 0;
};

struct World {
  static constexpr std::int64_t N = 64, T = 4, group = 8;
  World() : World(dvla::ToyKnobs{.environments = N, .horizon = T}) {}
  explicit World(dvla::ToyKnobs knobs)
      : environment(knobs, pool),
        model({}, {environment.observation_spec(), environment.action_spec(), 1}, 1),
        batch(dvla::trajectory_layout(dvla::transition_layout(environment.observation_spec(),
                                                              environment.action_spec(), {T, N, 1}),
                                      model.decision_layout({T, N})),
              pool) {}

  /// Plays one batch; returns the share of episodes solved.
  double play(Decoding decoding, std::uint64_t seed, bool groups) {
    std::vector<dvla::Start> starts(N);
    std::vector<std::int64_t> every(N);
    std::iota(every.begin(), every.end(), std::int64_t{0});
    for (std::size_t i = 0; i < N; ++i) starts[i].seed = dvla::mix_seed(seed, groups ? i / group : i);
    dvla::RowFailures failures(N);
    dvla::Rows all(every, arena, failures);
    auto rows = [](auto record, std::int64_t t) {
      return dvla::cut_record(record, [t](auto f) { return f.at(t); });
    };
    auto& transition = batch->transition;
    environment.reset(all, starts, rows(transition.observation, 0));
    for (std::int64_t t = 0; t < T; ++t) {
      auto decision = rows(batch->decision, t);
      model.act(rows(transition.observation, t), every, decoding, dvla::mix_seed(seed, 7, t), decision,
                transition.action.at(t));
      environment.step(all, transition.action.at(t),
                       {transition.reward.at(t), transition.terminated.at(t), transition.truncated.at(t),
                        rows(transition.observation, t + 1)});
    }
    double solved = 0;
    for (std::int64_t i = 0; i < N; ++i) solved += environment.succeeded(i) ? 1 : 0;
    return solved / N;
  }

  /// One GRPO update without clipping (the data are fresh): advantage = group-normalised success.
  void learn(Adam& adam, float rate) {
    std::vector<std::int64_t> rows;
    std::vector<float> d_log_prob;
    for (std::int64_t first = 0; first < N; first += group) {
      float mean = 0;
      for (std::int64_t i = first; i < first + group; ++i) mean += environment.succeeded(i) / float{group};
      const float spread = std::sqrt(mean * (1 - mean) * group / (group - 1)) + 1e-6F;
      for (std::int64_t i = first; i < first + group; ++i) {
        const float advantage = (environment.succeeded(i) - mean) / spread;
        for (std::int64_t t = 0; t < T; ++t) {
          if (t > 0 && batch->transition.ended(t - 1, i)) break;
          rows.push_back(t * N + i);
          d_log_prob.push_back(-advantage);
        }
      }
    }
    for (float& value : d_log_prob) value /= static_cast<float>(d_log_prob.size());
    std::vector<float> log_prob(rows.size()), entropy(rows.size()), zero(rows.size());
    dvla::Transition all = batch->transition;
    all.observation = dvla::cut_record(all.observation, [](auto f) { return f.rows(0, T).flat(); });
    const auto decision = dvla::cut_record(batch->decision, [](auto f) { return f.flat(); });
    model.forward(all.observation, decision, rows, log_prob, entropy);
    model.backward(d_log_prob, zero);
    adam.step(rate);
  }

  dvla::EnvironmentPool pool{std::size_t{4} << 20};
  dvla::Arena arena;
  dvla::ToyEnvironment environment;
  LinearModel model;
  dvla::OwnedRecord<dvla::Trajectory<dvla::testing::LinearDecision>> batch;
};

}  // namespace

TEST_CASE("LinearModel keeps the promises of a model") {
  dvla::ModelInputs inputs;
  inputs.observation.proprioception = 5;
  inputs.observation.instructions = {"go left", "go right", "stay"};
  inputs.action.dimensions = 2;
  inputs.chunk = 3;
  auto make = [&](std::uint64_t seed) { return LinearModel({.bins = 7, .chunk = 3}, inputs, seed); };
  for (const auto& fault : dvla::testing::check_model(make, inputs)) FAIL_CHECK(fault);
  // The same with a value head, and where one dimension is one of four categories.
  auto with_values = [&](std::uint64_t seed) {
    return dvla::testing::LinearValueModel({.bins = 7, .chunk = 3}, inputs, seed);
  };
  for (const auto& fault : dvla::testing::check_model(with_values, inputs)) FAIL_CHECK(fault);
  inputs.action.categories = {0, 4};
  for (const auto& fault : dvla::testing::check_model(make, inputs)) FAIL_CHECK(fault);
}

namespace {
/// A value head of which backward knows nothing.
struct Deaf : dvla::testing::LinearValueModel {
  using LinearValueModel::backward;
  using LinearValueModel::LinearValueModel;
  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy, std::span<const float>) {
    LinearValueModel::backward(d_log_prob, d_entropy);
  }
};
/// Values that forward does not agree with.
struct Forgetful : dvla::testing::LinearValueModel {
  using LinearValueModel::LinearValueModel;
  void values(const dvla::Observation& observation, std::span<const std::int64_t> rows,
              std::span<float> value) {
    LinearValueModel::values(observation, rows, value);
    for (float& each : value) each += 0.5F;
  }
};
/// Says nothing of its units; says that it uses them in another order.
struct Mute : LinearModel {
  using LinearModel::LinearModel;
  void hook_units(dvla::UnitHooks*) {}
};
struct Backwards : LinearModel {
  using LinearModel::LinearModel;
  struct Turned final : dvla::UnitHooks {
    void before_unit(std::size_t unit, dvla::Direction direction) override {
      hooks->before_unit(last - unit, direction);
    }
    void after_unit(std::size_t, dvla::Direction) override {}
    void gradient_ready(std::size_t unit) override { hooks->gradient_ready(unit); }
    dvla::UnitHooks* hooks = nullptr;
    std::size_t last = 0;
  } turned;
  void hook_units(dvla::UnitHooks* hooks) {
    turned.hooks = hooks;
    turned.last = units().size() - 1;
    LinearModel::hook_units(hooks == nullptr ? nullptr : &turned);
  }
};
/// An act that writes rows that it was not asked for.
struct Eager : LinearModel {
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    LinearModel::act(observation, rows, decoding, seed, decision, action);
    std::ranges::fill(action.at(0).span(), 0.0F);
  }
};
}  // namespace

TEST_CASE(
    "check_model finds values that are not the value head's, rows that were not asked for, wrong hooks") {
  dvla::ModelInputs inputs;
  inputs.observation = {.cameras = {}, .proprioception = 3, .instructions = {"go left", "go right"}};
  inputs.action.dimensions = 2;
  inputs.chunk = 3;
  const auto faults_of = [&]<class Model>(std::type_identity<Model>) {
    std::string all;
    for (const std::string& each : dvla::testing::check_model(
             [&](std::uint64_t seed) { return Model({.bins = 7, .chunk = 3}, inputs, seed); }, inputs))
      all += each + "\n";
    return all;
  };
  CHECK(faults_of(std::type_identity<Mute>{}).find("before_unit was not called for unit 0") !=
        std::string::npos);
  const std::string backwards = faults_of(std::type_identity<Backwards>{});
  CHECK(backwards.find("in ascending order forwards") != std::string::npos);
  CHECK(backwards.find("without an after_unit before it") != std::string::npos);
  CHECK(faults_of(std::type_identity<Deaf>{}).find("no gradient of the values") != std::string::npos);
  const std::string forgetful = faults_of(std::type_identity<Forgetful>{});
  CHECK(forgetful.find("other values than act stored") != std::string::npos);
  CHECK(forgetful.find("forward gives other values") != std::string::npos);
  CHECK(faults_of(std::type_identity<Eager>{}).find("rows that it was not asked for") != std::string::npos);
}

TEST_CASE("LinearModel learns the Toy task from sparse success alone, language included") {
  World world;
  Adam adam(world.model);
  auto success = [&](Decoding decoding) {
    double share = 0;
    for (std::uint64_t pass = 0; pass < 8; ++pass) share += world.play(decoding, 2000000 + pass, false) / 8;
    return share;
  };
  const double before = success(Decoding::sample);
  for (std::uint64_t iteration = 0; iteration < 800; ++iteration) {
    world.play(Decoding::sample, iteration, true);
    world.learn(adam, 0.05F);
  }
  const double after = success(Decoding::sample);
  MESSAGE("success " << before << " before, " << after << " after, by the mode " << success(Decoding::mode));
  CHECK(before < 0.6);
  CHECK(after > 0.93);
}

TEST_CASE("LinearModel clones the expert") {
  World world;
  Adam adam(world.model);
  std::vector<std::int64_t> rows(World::N);
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  double first = 0, last = 0;
  for (std::uint64_t step = 0; step < 500; ++step) {
    std::vector<dvla::Start> starts(World::N);
    for (std::size_t i = 0; i < starts.size(); ++i) starts[i].seed = dvla::mix_seed(step, i);
    const auto observation =
        dvla::cut_record(world.batch->transition.observation, [](auto f) { return f.at(0); });
    dvla::RowFailures failures(World::N);
    dvla::Rows all(rows, world.arena, failures);
    world.environment.reset(all, starts, observation);
    const Field<float> action = world.batch->transition.action.at(0);
    for (std::int64_t i = 0; i < World::N; ++i) world.environment.expert(i, action.at(i).at(0).span());
    last = world.model.imitate(observation, action, rows, 1.0);
    if (step == 0) first = last;
    adam.step(0.3F);
  }
  MESSAGE("loss " << first << " -> " << last);
  CHECK(last < 0.5 * first);
  CHECK(world.play(Decoding::mode, 3000000, false) > 0.9);
}

TEST_CASE("What does not fit is one sentence") {
  dvla::ModelInputs inputs;
  inputs.action.dimensions = 1;
  inputs.chunk = 1;
  CHECK_THROWS_AS(LinearModel({}, inputs, 1), dvla::ConfigError);
  World world;
  std::vector<float> none(1);
  CHECK_THROWS_AS(world.model.backward(none, none), dvla::Error);
}
