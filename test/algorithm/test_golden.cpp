// The arithmetic of the policy gradients against numbers that NumPy computed independently:
// test/golden/algorithm/make_golden.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/algorithm/aggregation.hpp"
#include "dvla/algorithm/clip_loss.hpp"
#include "dvla/algorithm/gae.hpp"
#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/algorithm/normalise.hpp"
#include "dvla/algorithm/returns.hpp"
#include "dvla/algorithm/value_loss.hpp"

using nlohmann::json;
template <class Value>
using Values = std::vector<Value>;
using Flags = Values<std::uint8_t>;

namespace {

const json& golden() {
  static const json file = json::parse(std::ifstream(DVLA_TEST_DIR "/golden/algorithm/golden.json"));
  return file;
}

template <class Value>
Values<Value> read(const json& node, const char* key) {
  return node.at(key).get<Values<Value>>();
}

/// Made by RLinf's own functions: test/golden/algorithm/make_rlinf_golden.py.
const json& rlinf() {
  static const json file = json::parse(std::ifstream(DVLA_TEST_DIR "/golden/algorithm/rlinf.json"));
  return file;
}

/// Equal to 1e-6 of the larger of 1 and the expected number.
bool close(double have, double want, double tolerance = 1e-6) {
  return std::abs(have - want) <= tolerance * std::max(1.0, std::abs(want));
}

template <class Value>
void check_close(const Values<Value>& have, const json& want, double tolerance = 1e-6) {
  REQUIRE(have.size() == want.size());
  for (std::size_t i = 0; i < have.size(); ++i) {
    CAPTURE(i);
    CHECK_MESSAGE(close(static_cast<double>(have[i]), want[i].get<double>(), tolerance), have[i], " is not ",
                  want[i].dump());
  }
}

}  // namespace

TEST_CASE("loss masks, returns and chunk rewards agree with NumPy") {
  const json& data = golden().at("rollout");
  const dvla::RolloutExtents extents{data.at("T"), data.at("B"), data.at("C")};
  // NumPy knows one flag; here every other episode is truncated instead of terminated.
  Flags terminated = read<std::uint8_t>(data, "done"), truncated(terminated.size(), 0);
  for (std::size_t i = 0; i < terminated.size(); ++i)
    if (i / extents.chunk % extents.episodes % 2 == 1) std::swap(terminated[i], truncated[i]);
  const auto reward = read<float>(data, "reward");
  Flags action(extents.steps()), chunk(extents.rows());
  dvla::loss_mask(extents, dvla::RewardLevel::action, terminated, truncated, action);
  dvla::loss_mask(extents, dvla::RewardLevel::chunk, terminated, truncated, chunk);
  CHECK(action == read<std::uint8_t>(data, "mask_action"));
  CHECK(chunk == read<std::uint8_t>(data, "mask_chunk"));

  Values<float> returns(extents.episodes), rewards(extents.rows());
  dvla::episode_returns(extents, reward, terminated, truncated, returns);
  check_close(returns, data.at("returns"));
  dvla::chunk_rewards(extents, reward, action, rewards);
  check_close(rewards, data.at("chunk_reward"));

  const auto equal = dvla::Aggregation::trajectory_equal;
  Values<float> weight_action(extents.steps()), weight_chunk(extents.rows());
  dvla::loss_weights(equal, extents.episodes, extents.chunk, action, weight_action);
  dvla::loss_weights(equal, extents.episodes, 1, chunk, weight_chunk);
  check_close(weight_action, data.at("weight_action_equal"));
  check_close(weight_chunk, data.at("weight_chunk_equal"));
}

TEST_CASE("group advantages and reward filters agree with NumPy") {
  const json& data = golden().at("rollout");
  const std::size_t group = data.at("G"), episodes = data.at("B"), chunk = data.at("C");
  const auto returns = read<float>(data, "returns");
  const auto valid = read<std::uint8_t>(data, "valid");
  Values<float> advantage(episodes);
  dvla::group_advantage(group, returns, valid, advantage);
  check_close(advantage, data.at("advantage"));

  Values<float> by_action(data.at("mask_action").size()), by_chunk(data.at("mask_chunk").size());
  dvla::broadcast_advantage(advantage, chunk, read<std::uint8_t>(data, "mask_action"), by_action);
  dvla::broadcast_advantage(advantage, 1, read<std::uint8_t>(data, "mask_chunk"), by_chunk);
  check_close(by_action, data.at("advantage_action"));
  check_close(by_chunk, data.at("advantage_chunk"));

  Flags keep(episodes);
  const json& borders = data.at("filter");
  dvla::filter_rewards(group, borders.at("lower"), borders.at("upper"), read<float>(borders, "returns"),
                       read<std::uint8_t>(borders, "valid"), keep);
  CHECK(keep == read<std::uint8_t>(borders, "keep"));
  const json& real = data.at("filter_real");
  dvla::filter_rewards(group, real.at("lower"), real.at("upper"), returns, valid, keep);
  CHECK(keep == read<std::uint8_t>(real, "keep"));
}

namespace {

template <class Real, class Correction>
dvla::LossStats run_case(const json& data, const json& expected, const Correction& correction,
                         Values<Real>& gradient, Values<Real>& entropy_gradient) {
  using Level = dvla::LogProbLevel;
  const std::string level = expected.at("level");
  dvla::LossShape shape;
  shape.rows = data.at("T").get<std::size_t>() * data.at("B").get<std::size_t>();
  shape.chunk = data.at("C");
  shape.action_dim = data.at("A");
  shape.log_prob = level == "token" ? Level::token : level == "action" ? Level::action : Level::chunk;
  shape.reward =
      expected.at("reward_level") == "action" ? dvla::RewardLevel::action : dvla::RewardLevel::chunk;

  // Mask, weights and denominator are made here as a trainer makes them, then compared.
  const dvla::RolloutExtents extents{data.at("T"), data.at("B"), shape.chunk};
  const auto aggregation = expected.at("aggregation") == "masked_mean" ? dvla::Aggregation::masked_mean
                                                                       : dvla::Aggregation::trajectory_equal;
  Flags mask(shape.rows * shape.per_row());
  dvla::loss_mask(extents, shape.reward, read<std::uint8_t>(data, "done"), Flags(extents.steps(), 0), mask);
  Values<float> weight(mask.size());
  dvla::loss_weights(aggregation, extents.episodes, shape.per_row(), mask, weight);
  check_close(weight, expected.at("weight"));
  Values<std::uint32_t> rows(shape.rows);
  for (std::uint32_t row = 0; row < rows.size(); ++row) rows[row] = row;
  const double denominator = dvla::loss_denominator(aggregation, shape.per_row(), shape.units_per_weight(),
                                                    weight, rows, rows.size());
  CHECK(close(denominator, expected.at("denominator")));

  dvla::ClipKnobs knobs;
  knobs.dual_clip = expected.at("dual_clip");
  knobs.entropy_bonus = expected.at("entropy_bonus");
  if (!expected.at("log_ratio_min").is_null()) {
    knobs.log_ratio_min = expected.at("log_ratio_min");
    knobs.log_ratio_max = expected.at("log_ratio_max");
  }
  const auto current = read<Real>(data, "current"), behaviour = read<Real>(data, "behaviour");
  const auto proximal = read<Real>(data, "proximal"), entropy = read<Real>(data, "entropy");
  const auto advantage = read<Real>(expected, "advantage");
  const Values<Real> weights(weight.begin(), weight.end());
  const auto version = read<std::int64_t>(data, "version");
  gradient.assign(current.size(), 99);
  entropy_gradient.assign(current.size(), 99);
  return dvla::clip_loss<Correction, Real>(
      shape, {current, behaviour, proximal, entropy, advantage, weights, version, data.at("trained_version")},
      knobs, denominator, gradient, entropy_gradient, correction);
}

template <class Real>
void check_losses() {
  const json& data = golden().at("loss");
  for (const json& expected : data.at("cases")) {
    const std::string correction = expected.at("correction"), level = expected.at("level");
    CAPTURE(correction);
    CAPTURE(level);
    CAPTURE(expected.at("aggregation").get<std::string>());
    Values<Real> gradient, entropy_gradient;
    const double limit = expected.at("weight_limit");
    using Source = dvla::ProximalSource;
    const dvla::LossStats stats =
        correction == "uncorrected"
            ? run_case<Real>(data, expected, dvla::Uncorrected{}, gradient, entropy_gradient)
        : correction == "recomputed"
            ? run_case<Real>(data, expected, dvla::BasicDecoupledClip<Source::recomputed>{limit}, gradient,
                             entropy_gradient)
            : run_case<Real>(data, expected, dvla::BasicDecoupledClip<Source::interpolated>{limit}, gradient,
                             entropy_gradient);
    CHECK(close(stats.loss(), expected.at("loss")));
    check_close(gradient, expected.at("grad"));
    check_close(entropy_gradient, expected.at("grad_entropy"));
    CHECK(stats.units == expected.at("units").get<std::size_t>());
    CHECK(stats.dropped == expected.at("dropped").get<std::size_t>());
    CHECK(stats.clipped_low == expected.at("clipped_low").get<std::size_t>());
    CHECK(stats.clipped_high == expected.at("clipped_high").get<std::size_t>());
    CHECK(stats.dual_clipped == expected.at("dual_clipped").get<std::size_t>());
    CHECK(close(stats.ratio_mean(), expected.at("ratio_mean")));
    CHECK(close(stats.max_ratio_deviation, expected.at("max_ratio_deviation")));
    CHECK(close(stats.approx_kl(), expected.at("approx_kl")));
    CHECK(close(stats.anchor_weight_mean(), expected.at("anchor_weight_mean")));
    CHECK(close(stats.entropy, expected.at("entropy")));
  }
}

}  // namespace

TEST_CASE("loss, gradient and statistics agree with NumPy at every level, in double") {
  check_losses<double>();
}
TEST_CASE("loss, gradient and statistics agree with NumPy at every level, in float") {
  check_losses<float>();
}

TEST_CASE("ten AdamW steps with norm clipping agree with NumPy") {
  const json& data = golden().at("adamw");
  const json& k = data.at("knobs");
  const dvla::AdamWKnobs knobs{k.at("learning_rate"), k.at("beta1"),        k.at("beta2"),
                               k.at("epsilon"),       k.at("weight_decay"), k.at("max_grad_norm")};
  auto parameter = read<float>(data, "parameter");
  const auto gradients = read<float>(data, "gradients");
  const std::size_t count = parameter.size();
  Values<float> first(count), second(count);
  dvla::AdamWState state{parameter, first, second};
  for (std::size_t step = 0; step < 10; ++step) {
    const double norm = dvla::adamw_step(state, std::span(gradients).subspan(step * count, count), knobs);
    CHECK(close(norm, data.at("norms")[step]));
    check_close(parameter, data.at("steps")[step]);
  }
  CHECK(state.step == 10);
  check_close(first, data.at("first_moment"));
  check_close(second, data.at("second_moment"));
}

TEST_CASE("Generalised advantages, V-trace's targets and normalised advantages agree with NumPy") {
  const json& data = golden().at("values");
  const dvla::ElementLayout at{data.at("B"), data.at("R")};
  Values<dvla::EpisodeSpan> episodes;
  for (const json& each : data.at("episodes"))
    episodes.push_back({each[0], each[1], each[2], each[3].get<int>() == 1, each[4]});
  const auto reward = read<float>(data, "reward"), value = read<float>(data, "value");
  const auto mask = read<std::uint8_t>(data, "mask");
  Values<float> advantage(reward.size()), target(reward.size());
  dvla::gae(at, episodes, reward, value, data.at("gamma"), data.at("lambda"), advantage, target);
  check_close(advantage, data.at("advantage"));
  check_close(target, data.at("target"));
  Values<float> corrected(reward.size());
  dvla::v_trace(at, episodes, reward, value, read<float>(data, "log_ratio"), data.at("gamma"),
                data.at("lambda"), corrected);
  check_close(corrected, data.at("v_trace"));
  // On data of the trained weights V-trace's target is GAE's.
  const Values<float> same(reward.size(), 0.0F);
  dvla::v_trace(at, episodes, reward, value, same, data.at("gamma"), data.at("lambda"), corrected);
  check_close(corrected, data.at("target"));
  dvla::normalise(mask, advantage, dvla::Spread::unbiased, [](std::span<double>) {});
  check_close(advantage, data.at("normalised"));
  // Two trainers that share a batch get what one gets.
  Values<float> halves[2];
  Flags masks[2];
  for (std::size_t i = 0; i < mask.size(); ++i) {
    halves[i % 2].push_back(read<float>(data, "advantage")[i]);
    masks[i % 2].push_back(mask[i]);
  }
  std::vector<std::vector<double>> shared[2];
  for (const int round : {0, 1, 2})  // a round gathers what the next one's sums are made of
    for (const int half : {0, 1}) {
      Values<float> mine = halves[half];
      std::size_t call = 0;
      std::vector<std::vector<double>> given;
      dvla::normalise(masks[half], mine, dvla::Spread::unbiased, [&](std::span<double> sums) {
        given.emplace_back(sums.begin(), sums.end());
        if (shared[1 - half].size() > call)
          for (std::size_t k = 0; k < sums.size(); ++k) sums[k] += shared[1 - half][call][k];
        ++call;
      });
      shared[half] = given;
      if (round < 2) continue;
      for (std::size_t i = 0; i < mine.size(); ++i)
        CHECK(close(static_cast<double>(mine[i]),
                    data.at("normalised")[2 * i + static_cast<std::size_t>(half)].get<double>()));
    }
}

TEST_CASE("The clipped value loss and its slope agree with NumPy") {
  const json& data = golden().at("values").at("loss");
  const auto value = read<float>(data, "value"), weight = read<float>(data, "weight");
  for (const json& each : data.at("cases")) {
    CAPTURE(each.dump());
    Values<float> slope(value.size());
    dvla::LossStats stats;
    dvla::value_loss(value, read<float>(data, "old"), read<float>(data, "target"), weight,
                     {each.at("coefficient"), each.at("clip"), each.at("huber_delta")},
                     data.at("denominator"), slope, stats);
    CHECK(close(stats.value_loss, each.at("loss")));
    CHECK(stats.values == value.size() - 2);
    CHECK(stats.values_clipped == each.at("clipped"));
    check_close(slope, each.at("slope"));
  }
}

TEST_CASE("Leave-one-out advantages agree with NumPy") {
  const json& data = golden().at("values").at("leave_one_out");
  const auto returns = read<float>(data, "returns");
  Values<float> advantage(returns.size());
  const auto summary =
      dvla::leave_one_out_advantage(data.at("G"), returns, read<std::uint8_t>(data, "valid"), advantage);
  check_close(advantage, data.at("advantage"));
  CHECK(summary.groups == 3);
  CHECK(summary.informative == 1);  // one member is left of the second, and the third earned alike
}

TEST_CASE("GIPO, and a ratio of mean log-probabilities, agree with NumPy") {
  const json& data = golden().at("values").at("gipo");
  const auto current = read<float>(data, "current"), behaviour = read<float>(data, "behaviour"),
             advantage = read<float>(data, "advantage");
  const Values<float> weight(advantage.size(), 1.0F);
  for (const json& each : data.at("cases")) {
    CAPTURE(each.at("level"));
    const auto name = each.at("level").get<std::string>();
    const auto level = name == "token"    ? dvla::LogProbLevel::token
                       : name == "action" ? dvla::LogProbLevel::action
                       : name == "chunk"  ? dvla::LogProbLevel::chunk
                                          : dvla::LogProbLevel::sequence;
    const dvla::LossShape shape{advantage.size(), 2, 2, level, dvla::RewardLevel::chunk};
    dvla::LossInputs<float> inputs;
    inputs.current = current;
    inputs.behaviour = behaviour;
    inputs.advantage = advantage;
    inputs.weight = weight;
    dvla::GIPO gipo;
    gipo.sigma = each.at("sigma");
    Values<float> gradient(current.size());
    const auto stats =
        dvla::clip_loss<dvla::GIPO, float>(shape, inputs, {}, each.at("units"), gradient, {}, gipo);
    CHECK(close(stats.policy_loss, each.at("loss")));
    CHECK(stats.units == each.at("units"));
    CHECK(stats.clipped_low + stats.clipped_high == 0);
    check_close(gradient, each.at("grad"));
  }
}

TEST_CASE("Advantages and targets are RLinf's, to 1e-5") {
  const json& data = rlinf().at("gae");
  const std::size_t T = data.at("T"), B = data.at("B");
  const auto end = read<int>(data, "end");
  const auto final = read<float>(data, "final"), reward = read<float>(data, "reward"),
             value = read<float>(data, "value");
  const auto mask = read<std::uint8_t>(data, "mask");
  Values<dvla::EpisodeSpan> episodes;
  for (std::size_t b = 0; b < B; ++b)
    for (std::size_t t = 0, begin = 0; t < T; ++t)
      if (end[t * B + b] != 0) {
        episodes.push_back({b, begin, t + 1, end[t * B + b] == 2, static_cast<double>(final[t * B + b])});
        begin = t + 1;
      }
  Values<float> advantage(T * B), target(T * B);
  dvla::gae({B, 1}, episodes, reward, value, data.at("gamma"), data.at("lambda"), advantage, target);
  check_close(advantage, data.at("advantage"), 1e-5);
  check_close(target, data.at("target"), 1e-5);
  dvla::normalise(mask, advantage, dvla::Spread::unbiased, [](std::span<double>) {});
  const auto normalised = read<double>(data, "normalised");
  for (std::size_t i = 0; i < mask.size(); ++i)  // RLinf normalises the others along, and masks them later
    CHECK(close(static_cast<double>(advantage[i]), mask[i] != 0 ? normalised[i] : 0.0, 1e-5));
}

TEST_CASE("The losses of actor and critic, their slopes and the KL are RLinf's, to 1e-5") {
  const json& critic = rlinf().at("critic");
  const auto value = read<float>(critic, "value"), old = read<float>(critic, "old"),
             target = read<float>(critic, "target"), weight = read<float>(critic, "mask");
  const double rows = std::count(weight.begin(), weight.end(), 1.0F);
  Values<float> slope(value.size());
  for (const json& each : critic.at("cases")) {
    dvla::LossStats stats;
    dvla::value_loss(value, old, target, weight, {1, each.at("clip"), each.at("huber_delta")}, rows, slope,
                     stats);
    CHECK(close(stats.value_loss, each.at("loss"), 1e-5));
    check_close(slope, each.at("slope"), 1e-5);
  }
  const json& both = rlinf().at("actor_critic");
  const auto current = read<float>(both, "current"), behaviour = read<float>(both, "behaviour"),
             advantage = read<float>(both, "advantage");
  for (const json& each : both.at("cases")) {
    const auto name = each.at("level").get<std::string>();
    CAPTURE(name);
    const dvla::LossShape shape{both.at("N"), both.at("C"), both.at("A"),
                                name == "token_level"    ? dvla::LogProbLevel::token
                                : name == "action_level" ? dvla::LogProbLevel::action
                                                         : dvla::LogProbLevel::chunk,
                                dvla::RewardLevel::chunk};
    dvla::LossInputs<float> inputs;
    inputs.current = current;
    inputs.behaviour = behaviour;
    inputs.advantage = advantage;
    inputs.weight = weight;
    Values<float> gradient(current.size());
    // RLinf divides by rows at every level, however many units a row has.
    auto stats = dvla::clip_loss<dvla::Uncorrected, float>(shape, inputs, {}, rows, gradient);
    dvla::value_loss(value, old, target, weight, {1, 0.2, 10}, rows, slope, stats);
    CHECK(close(stats.loss(), each.at("loss"), 1e-5));
    check_close(gradient, each.at("grad"), 1e-5);
    check_close(slope, each.at("slope"), 1e-5);
  }
  const auto k3 = read<double>(rlinf().at("kl"), "k3");
  for (std::size_t i = 0; i < current.size(); ++i) {
    const auto here = static_cast<double>(current[i]), there = static_cast<double>(behaviour[i]);
    CHECK(close(dvla::detail::kl_unit(here, there).first, k3[i], 1e-5));
    const double h = 1e-5;
    CHECK(
        close((dvla::detail::kl_unit(here + h, there).first - dvla::detail::kl_unit(here - h, there).first) /
                  (2 * h),
              dvla::detail::kl_unit(here, there).second, 1e-6));
  }
}

TEST_CASE("REINFORCE++'s advantages, with and without a baseline, are RLinf's, to 1e-5") {
  const json& data = rlinf().at("reinforce_plus_plus");
  const auto returns = read<float>(data, "returns");
  const auto lengths = read<std::size_t>(data, "lengths");
  const std::size_t B = returns.size(), T = 5;
  Flags mask(T * B);
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i / B < lengths[i % B];
  for (const json& each : data.at("cases")) {
    Values<float> of_episode(B), advantage(T * B);
    if (each.at("baseline").get<bool>())
      dvla::centred_advantage(data.at("G"), returns, {}, of_episode);
    else
      of_episode = returns;
    dvla::broadcast_advantage(of_episode, 1, mask, advantage);
    dvla::normalise(mask, advantage, dvla::Spread::population, [](std::span<double>) {});
    check_close(advantage, each.at("advantage"), 1e-5);
  }
}
