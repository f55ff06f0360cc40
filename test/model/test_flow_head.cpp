// The flow head's arithmetic against NumPy (test/golden/model/make_golden.py), and the chain it samples.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <vector>

#include "dvla/model/flow_head.hpp"

using namespace dvla;
using dvla::detail::FlowHeadMachinery;
using nlohmann::json;

namespace {

FlowHeadKnobs small() {
  FlowHeadKnobs knobs;
  knobs.chunk = 2;
  return knobs;
}

/// Decisions under the velocity v = x - 0.3 + t.
struct Samples {
  explicit Samples(std::int64_t n, Decoding decoding = Decoding::sample, std::uint64_t seed = 1)
      : head(small(), {3}, 5),
        decision(head.decision_layout({n}), *std::pmr::new_delete_resource()),
        values(static_cast<std::size_t>(n * 6)),
        action({n, 2, 3}, values.data()) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    head.act([&](auto x, auto t) { return velocity(x, t); }, rows, decoding, seed, *decision, action);
  }
  std::span<const float> velocity(std::span<const float> x, std::span<const float> t) {
    output.resize(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) output[i] = x[i] - 0.3f + t[i / 6];
    return output;
  }
  FlowHeadMachinery head;
  OwnedRecord<FlowDecision> decision;
  std::vector<float> values, output;
  Field<float> action;
};

}  // namespace

TEST_CASE("mean, std, log-probability and gradient of every step are NumPy's to 1e-9") {
  const json golden = json::parse(std::ifstream(DVLA_TEST_DIR "/golden/model/golden.json"));
  for (const json& one : golden["flow"]) {
    const auto number = [&](const char* key) { return one[key].get<double>(); };
    const auto near = [](double value, double wanted) {
      return std::abs(value - wanted) <= 1e-9 * std::max(1.0, std::abs(wanted));
    };
    const int steps = one["steps"], index = one["index"];
    CAPTURE(steps);
    CAPTURE(index);
    const auto step = dvla::detail::sde_step(index, steps, number("noise"));
    CHECK(near(step.t, number("t")));
    CHECK(near(step.std, number("std")));
    CHECK(near(step.mean(number("x"), number("v")), number("mean")));
    CHECK(near(step.log_prob(number("after"), number("x"), number("v")), number("log_prob")));
    CHECK(near(step.d_log_prob_d_v(number("after"), number("x"), number("v")), number("d_log_prob")));
    CHECK(near(dvla::detail::ode_step(index, steps).mean(number("x"), number("v")), number("ode_mean")));
  }
}

TEST_CASE("one step of the chain is stochastic, the same for the whole call, and every step gets its turn") {
  std::set<std::int32_t> seen;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Samples samples(3, Decoding::sample, seed);
    const std::int32_t noisy = samples.decision->denoise_index[0];
    seen.insert(noisy);
    for (std::int64_t row = 0; row < 3; ++row) {
      CHECK_EQ(samples.decision->denoise_index[row], noisy);
      for (int i = 0; i < 4; ++i) {
        const auto before = samples.decision->chain.at(row).at(i).span();
        const auto after = samples.decision->chain.at(row).at(i + 1).span();
        const std::vector<float> t{1 - static_cast<float>(i) / 4};
        const auto v = samples.velocity(before, t);
        for (std::size_t e = 0; e < 6; ++e) {
          const double ode = dvla::detail::ode_step(i, 4).mean(before[e], v[e]);
          const bool follows = std::abs(static_cast<double>(after[e]) - ode) < 1e-5;
          CHECK_EQ(follows, i != noisy);
        }
      }
    }
  }
  CHECK_EQ(seen, std::set<std::int32_t>{0, 1, 2, 3});
}

TEST_CASE("the executed action is the chain's end, clipped to [-1, 1]; the chain is not clipped") {
  Samples samples(200);
  bool beyond = false;
  for (std::int64_t row = 0; row < 200; ++row) {
    const auto end = samples.decision->chain.at(row).at(4).span();
    for (std::size_t e = 0; e < 6; ++e) {
      CHECK_EQ(samples.action.at(row).span()[e], std::clamp(end[e], -1.0f, 1.0f));
      beyond = beyond || std::abs(end[e]) > 1;
    }
  }
  CHECK(beyond);
}

TEST_CASE("stored log-probabilities are recomputed exactly, with entropy 0") {
  Samples samples(5);
  const std::vector<std::int64_t> rows{4, 0, 2};
  samples.head.load(*samples.decision, rows);
  const auto v = samples.velocity(samples.head.inputs(), samples.head.times());
  std::vector<float> log_prob(18), entropy(18, 1.0f);
  samples.head.log_prob(v, log_prob, entropy);
  for (std::size_t i = 0; i < 18; ++i) {
    CHECK_EQ(log_prob[i], samples.decision->log_prob.at(rows[i / 6]).span()[i % 6]);
    CHECK_EQ(entropy[i], 0.0f);
  }
}

TEST_CASE("the mode follows the ODE, and has no log-probability to train on") {
  Samples samples(2, Decoding::mode), other(2, Decoding::mode, 77);
  for (std::int64_t row = 0; row < 2; ++row)
    for (std::int64_t e = 0; e < 6; ++e) {  // whatever the row and the seed
      CHECK_EQ(samples.decision->chain.at(row).at(0).span()[static_cast<std::size_t>(e)], 0.0f);
      CHECK_EQ(samples.action[6 * row + e], samples.action[e]);
      CHECK_EQ(samples.action[6 * row + e], other.action[e]);
    }
  CHECK_EQ(samples.decision->denoise_index[1], -1);
  CHECK_EQ(samples.decision->log_prob.at(1).span()[3], 0.0f);
  CHECK_THROWS_WITH_AS(
      samples.head.load(*samples.decision, std::vector<std::int64_t>{1}),
      "FlowHead: row 1 has denoise index -1, which is not in [0, 4); only sampled decisions of the "
      "same knobs have log-probabilities",
      Error);
}

TEST_CASE(
    "imitation interpolates between the expert's action and noise at times of 0.999 Beta(1.5, 1) + 0.001") {
  Samples samples(1);
  std::vector<float> expert(4000 * 6, 0.25f);
  std::vector<std::int64_t> rows(4000);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i);
  samples.head.load_imitation(Field<float>({4000, 2, 3}, expert.data()), rows);
  const auto x = samples.head.inputs(), t = samples.head.times();
  double mean = 0;
  for (const float time : t) {
    CHECK_GE(time, 0.001f);
    CHECK_LE(time, 1.0f);
    mean += static_cast<double>(time) / 4000;
  }
  CHECK_LE(std::abs(mean - (0.999 * 0.6 + 0.001)), 0.015);  // Beta(1.5, 1) has mean 0.6
  // Target = eps - a and x_t = t eps + (1 - t) a give x_t - t * target = a: a velocity of that target has
  // loss 0.
  std::vector<float> velocity(x.size()), gradient(x.size());
  for (std::size_t e = 0; e < x.size(); ++e) velocity[e] = (x[e] - 0.25f) / t[e / 6];
  CHECK_LE(samples.head.imitation(velocity, 1.0, gradient), 1e-5);
}
