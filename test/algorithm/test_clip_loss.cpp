#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "dvla/algorithm/aggregation.hpp"
#include "dvla/algorithm/clip_loss.hpp"
#include "dvla/algorithm/minibatch.hpp"
#include "dvla/core/random.hpp"

using dvla::Aggregation;
using dvla::LogProbLevel;
using dvla::RewardLevel;

namespace {

constexpr std::size_t chunk = 3, action_dim = 2, tokens = chunk * action_dim;

/// A random rollout of T = 4 decisions and B = 6 episodes, with one row fully masked.
template <class Real>
struct Problem {
  static constexpr std::size_t decisions = 4, episodes = 6;
  dvla::LossShape shape{decisions * episodes, chunk, action_dim, LogProbLevel::token, RewardLevel::chunk};
  std::vector<Real> current, behaviour, proximal, entropy, advantage, weight;
  std::vector<float> weight_single;
  std::vector<std::int64_t> version;
  Aggregation aggregation;

  Problem(LogProbLevel level, RewardLevel reward, Aggregation kind, std::uint64_t seed) : aggregation(kind) {
    shape.log_prob = level;
    shape.reward = reward;
    dvla::SplitMix64 random(seed);
    for (std::size_t i = 0; i < shape.rows * tokens; ++i) {
      behaviour.push_back(static_cast<Real>(-2 * random.uniform01()));
      current.push_back(behaviour.back() + static_cast<Real>(0.2 * random.normal()));
      proximal.push_back(behaviour.back() + static_cast<Real>(0.1 * random.normal()));
      entropy.push_back(static_cast<Real>(random.uniform01()));
    }
    std::vector<std::uint8_t> mask;
    for (std::size_t i = 0; i < shape.rows * shape.per_row(); ++i) {
      mask.push_back(i / shape.per_row() != 7 && random.uniform01() < 0.8);
      advantage.push_back(static_cast<Real>(random.normal()));
    }
    weight_single.resize(mask.size());
    dvla::loss_weights(aggregation, episodes, shape.per_row(), mask, weight_single);
    weight.assign(weight_single.begin(), weight_single.end());
    for (std::size_t row = 0; row < shape.rows; ++row)
      version.push_back(static_cast<std::int64_t>(random.below(5)));
  }

  std::vector<std::uint32_t> all_rows() const {
    std::vector<std::uint32_t> rows(shape.rows);
    std::iota(rows.begin(), rows.end(), 0U);
    return rows;
  }

  double denominator() const {
    return dvla::loss_denominator(aggregation, shape.per_row(), shape.units_per_weight(), weight_single,
                                  all_rows(), shape.rows);
  }

  template <class Correction>
  dvla::LossStats loss(const dvla::ClipKnobs& knobs, std::span<Real> gradient,
                       std::span<Real> entropy_gradient, const Correction& correction) const {
    return dvla::clip_loss<Correction, Real>(
        shape, {current, behaviour, proximal, entropy, advantage, weight, version, 5}, knobs, denominator(),
        gradient, entropy_gradient, correction);
  }
};

template <class Body>
void for_every_level(Body&& body) {
  for (const auto level : {LogProbLevel::token, LogProbLevel::action, LogProbLevel::chunk})
    for (const auto reward : {RewardLevel::action, RewardLevel::chunk})
      for (const auto aggregation : {Aggregation::masked_mean, Aggregation::trajectory_equal})
        if (!(level == LogProbLevel::chunk && reward == RewardLevel::action))
          body(level, reward, aggregation);
}

dvla::ClipKnobs full_knobs() {
  dvla::ClipKnobs knobs;
  knobs.dual_clip = 1.3;
  knobs.log_ratio_min = -0.6;
  knobs.log_ratio_max = 0.5;
  knobs.entropy_bonus = 0.01;
  return knobs;
}

/// One unit: A = C = 1, one row.
dvla::LossStats single(double ratio, double advantage, const dvla::ClipKnobs& knobs, double& slope) {
  const std::vector<double> current{std::log(ratio)}, zero{0.0}, one{1.0}, adv{advantage};
  std::vector<double> gradient(1);
  const dvla::LossStats stats = dvla::clip_loss<dvla::Uncorrected, double>(
      {1, 1, 1}, {current, zero, {}, {}, adv, one, {}}, knobs, 1.0, gradient);
  slope = gradient[0];
  return stats;
}

}  // namespace

TEST_CASE("the gradient equals central differences of the loss at every level") {
  const auto check = [](const auto& correction, const auto level, const auto reward, const auto aggregation) {
    Problem<double> problem(level, reward, aggregation, 11);
    const dvla::ClipKnobs knobs = full_knobs();
    std::vector<double> gradient(problem.current.size()), entropy_gradient(gradient.size()),
        scratch(gradient.size());
    problem.loss(knobs, gradient, entropy_gradient, correction);
    const auto difference = [&](double& value) {
      constexpr double h = 1e-6;
      const double saved = value;
      value = saved + h;
      const double above = problem.loss(knobs, scratch, scratch, correction).loss();
      value = saved - h;
      const double below = problem.loss(knobs, scratch, scratch, correction).loss();
      value = saved;
      return (above - below) / (2 * h);
    };
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      CHECK(std::abs(gradient[i] - difference(problem.current[i])) < 1e-9);
      CHECK(std::abs(entropy_gradient[i] - difference(problem.entropy[i])) < 1e-9);
    }
  };
  for_every_level([&](auto level, auto reward, auto aggregation) {
    check(dvla::Uncorrected{}, level, reward, aggregation);
    check(dvla::DecoupledClip{1.2}, level, reward, aggregation);
  });
}

TEST_CASE("interpolated proximal log-probs are constants to the gradient") {
  // So it equals the recomputed form, given the same proximal numbers.
  Problem<double> problem(LogProbLevel::action, RewardLevel::chunk, Aggregation::masked_mean, 5);
  for (std::size_t i = 0; i < problem.current.size(); ++i) {
    const double alpha = dvla::DecoupledClip::alpha(5 - problem.version[i / tokens]);
    problem.proximal[i] = problem.behaviour[i] + alpha * (problem.current[i] - problem.behaviour[i]);
  }
  std::vector<double> given(problem.current.size()), interpolated(given.size()), scratch(given.size());
  const auto a = problem.loss(full_knobs(), given, scratch, dvla::DecoupledClip{});
  const auto b = problem.loss(full_knobs(), interpolated, scratch,
                              dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>{});
  CHECK(a.loss() == doctest::Approx(b.loss()).epsilon(1e-12));
  for (std::size_t i = 0; i < given.size(); ++i) CHECK(std::abs(given[i] - interpolated[i]) < 1e-14);
}

namespace {

/// Cuts a problem into mini-batches of micro-batches as a trainer does and compares with one call on
/// everything.
template <class Real>
void check_accumulation(double tolerance) {
  for_every_level([&](auto level, auto reward, auto aggregation) {
    Problem<Real> problem(level, reward, aggregation, 23);
    const dvla::ClipKnobs knobs = full_knobs();
    const std::size_t size = problem.current.size(), per_row = problem.shape.per_row();
    std::vector<Real> whole(size), whole_entropy(size), parts(size), parts_entropy(size);
    const auto expected = problem.loss(knobs, whole, whole_entropy, dvla::DecoupledClip{});

    std::vector<std::uint8_t> mask(problem.weight.size());
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = problem.weight[i] != 0;
    dvla::MiniBatches batches(problem.shape.rows, {32, 8, 1});
    batches.draw(mask, per_row, 1);
    REQUIRE(batches.rows() < problem.shape.rows);  // a masked row was left out
    REQUIRE(batches.size() == 1);
    const double denominator = dvla::loss_denominator(aggregation, per_row, problem.shape.units_per_weight(),
                                                      problem.weight_single, batches.mini(0), batches.rows());
    CHECK(denominator == doctest::Approx(problem.denominator()).epsilon(1e-14));

    dvla::LossStats sum;
    for (std::size_t part = 0; part < batches.micros(0); ++part) {
      const auto rows = batches.micro(0, part);
      const auto pick = [&](const std::vector<Real>& source, std::size_t width) {
        std::vector<Real> out(rows.size() * width);
        dvla::gather_rows<Real>(source, width, rows, out);
        return out;
      };
      const auto current = pick(problem.current, tokens), behaviour = pick(problem.behaviour, tokens);
      const auto proximal = pick(problem.proximal, tokens), entropy = pick(problem.entropy, tokens);
      const auto advantage = pick(problem.advantage, per_row), weight = pick(problem.weight, per_row);
      std::vector<Real> gradient(current.size()), entropy_gradient(current.size());
      dvla::LossShape shape = problem.shape;
      shape.rows = rows.size();
      sum += dvla::clip_loss<dvla::DecoupledClip, Real>(
          shape, {current, behaviour, proximal, entropy, advantage, weight, {}}, knobs, denominator, gradient,
          entropy_gradient);
      for (std::size_t i = 0; i < rows.size(); ++i)
        for (std::size_t k = 0; k < tokens; ++k) {
          parts[rows[i] * tokens + k] += gradient[i * tokens + k];
          parts_entropy[rows[i] * tokens + k] += entropy_gradient[i * tokens + k];
        }
    }
    CHECK(sum.loss() == doctest::Approx(expected.loss()).epsilon(tolerance));
    CHECK(sum.units == expected.units);
    CHECK(sum.clipped_high == expected.clipped_high);
    CHECK(sum.approx_kl() == doctest::Approx(expected.approx_kl()).epsilon(1e-12));
    CHECK(sum.max_ratio_deviation == expected.max_ratio_deviation);
    for (std::size_t i = 0; i < size; ++i) {
      CHECK(std::abs(parts[i] - whole[i]) <= tolerance * std::abs(whole[i]));
      CHECK(std::abs(parts_entropy[i] - whole_entropy[i]) <= tolerance * std::abs(whole_entropy[i]));
    }
  });
}

}  // namespace

TEST_CASE("accumulated micro-batches give the gradient of the global batch, in double to 1e-12") {
  check_accumulation<double>(1e-12);
}
TEST_CASE("accumulated micro-batches give the gradient of the global batch, in float to 1e-6") {
  check_accumulation<float>(1e-6);
}

TEST_CASE("the four corners of the clip") {
  const dvla::ClipKnobs knobs;  // 0.8 .. 1.28
  double slope = 0;
  CHECK(single(1.5, 2, knobs, slope).loss() ==
        doctest::Approx(-2 * 1.28));  // good, already likelier: clipped
  CHECK(slope == 0);
  CHECK(single(0.5, 2, knobs, slope).loss() == doctest::Approx(-2 * 0.5));  // good, less likely: pulled back
  CHECK(slope == doctest::Approx(-2 * 0.5));
  CHECK(single(0.5, -2, knobs, slope).loss() ==
        doctest::Approx(2 * 0.8));  // bad, already less likely: clipped
  CHECK(slope == 0);
  CHECK(single(1.5, -2, knobs, slope).loss() == doctest::Approx(2 * 1.5));  // bad, likelier: pushed down
  CHECK(slope == doctest::Approx(2 * 1.5));
  CHECK(single(1.5, 2, knobs, slope).clip_fraction_high() == 1);
  CHECK(single(0.5, -2, knobs, slope).clip_fraction_low() == 1);
}

TEST_CASE("the dual clip bounds the loss of bad actions only") {
  dvla::ClipKnobs knobs;
  knobs.dual_clip = 3;
  double slope = 0;
  const dvla::LossStats bad = single(10, -2, knobs, slope);
  CHECK(bad.loss() == doctest::Approx(6));
  CHECK(bad.dual_clip_fraction() == 1);
  CHECK(slope == 0);
  CHECK(single(2.9, -2, knobs, slope).loss() == doctest::Approx(5.8));
  CHECK(single(0.1, 2, knobs, slope).loss() == doctest::Approx(-0.2));
  CHECK(single(10, 2, knobs, slope).loss() == doctest::Approx(-2.56));
}

TEST_CASE("equal policies give ratio 1, no divergence, no clipping, and the plain policy gradient") {
  Problem<float> problem(LogProbLevel::token, RewardLevel::chunk, Aggregation::masked_mean, 2);
  problem.current = problem.behaviour;
  std::vector<float> gradient(problem.current.size());
  const auto stats = problem.loss({}, gradient, {}, dvla::Uncorrected{});
  CHECK(stats.max_ratio_deviation == 0);
  CHECK(stats.approx_kl() == 0);
  CHECK(stats.clip_fraction_low() + stats.clip_fraction_high() == 0);
  for (std::size_t i = 0; i < gradient.size(); ++i)
    CHECK(gradient[i] == doctest::Approx(-problem.advantage[i / tokens] * problem.weight[i / tokens] /
                                         problem.denominator()));
}

TEST_CASE("what stands in masked rows does not matter") {
  Problem<double> problem(LogProbLevel::action, RewardLevel::action, Aggregation::trajectory_equal, 8);
  std::vector<double> before(problem.current.size()), after(before.size()), scratch(before.size());
  const double loss = problem.loss(full_knobs(), before, scratch, dvla::DecoupledClip{}).loss();
  for (std::size_t i = 0; i < problem.current.size(); ++i)
    if (problem.weight[i / action_dim] == 0) {
      problem.current[i] = problem.entropy[i] = std::numeric_limits<double>::quiet_NaN();
      problem.proximal[i] = std::numeric_limits<double>::infinity();
    }
  CHECK(problem.loss(full_knobs(), after, scratch, dvla::DecoupledClip{}).loss() == loss);
  CHECK(before == after);
}

TEST_CASE("a NaN in a row that counts is not hidden") {
  double slope = 0;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(single(nan, 1, {}, slope).loss()));
  CHECK(std::isnan(slope));
  CHECK(std::isnan(single(nan, 0, {}, slope).max_ratio_deviation));
}

TEST_CASE("an overflowing ratio is clipped for a good action and bounded by the dual clip for a bad one") {
  dvla::ClipKnobs knobs;
  knobs.dual_clip = 3;
  double slope = 1;
  const double infinite = std::numeric_limits<double>::infinity();
  CHECK(single(infinite, 1, knobs, slope).loss() == doctest::Approx(-1.28));
  CHECK(slope == 0);
  CHECK(single(infinite, -1, knobs, slope).loss() == 3);
  CHECK(slope == 0);
}

TEST_CASE("what does not fit is refused in words") {
  const std::vector<float> values(6), per_step(3);
  std::vector<float> gradient(6);
  const std::vector<std::int64_t> version{9};
  const auto call = [&](dvla::LossShape shape, const dvla::ClipKnobs& knobs, double denominator) {
    dvla::clip_loss<dvla::Uncorrected, float>(shape, {values, values, {}, {}, per_step, per_step, {}}, knobs,
                                              denominator, gradient);
  };
  const dvla::LossShape good{1, 3, 2, LogProbLevel::action, RewardLevel::action};
  CHECK_NOTHROW(call(good, {}, 1));
  dvla::LossShape mixed = good;
  mixed.log_prob = LogProbLevel::chunk;
  CHECK_THROWS_AS(call(mixed, {}, 1), dvla::ConfigError);
  CHECK_THROWS_AS(call(good, {}, 0), dvla::Error);
  dvla::LossShape larger = good;
  larger.rows = 2;
  CHECK_THROWS_AS(call(larger, {}, 1), dvla::Error);
  dvla::ClipKnobs knobs;
  knobs.dual_clip = 0.5;
  CHECK_THROWS_AS(call(good, knobs, 1), dvla::ConfigError);
  knobs = {};
  knobs.clip_low = 1;
  CHECK_THROWS_AS(call(good, knobs, 1), dvla::ConfigError);

  using Interpolated = dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>;
  CHECK_THROWS_WITH_AS(
      (dvla::clip_loss<Interpolated, float>(good, {values, values, {}, {}, per_step, per_step, version, 7},
                                            {}, 1, gradient)),
      "clip_loss: row 0 was sampled by version 9, which is newer than the trained version 7.", dvla::Error);
}
