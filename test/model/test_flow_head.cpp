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
#include "dvla/model/flow_vla_knobs.hpp"

using namespace dvla;
using dvla::detail::FlowHeadMachinery;
using nlohmann::json;

namespace {

FlowHeadKnobs small() {
  FlowHeadKnobs knobs;
  knobs.chunk = 2;
  return knobs;
}

json golden() { return json::parse(std::ifstream(DVLA_TEST_DIR "/golden/model/golden.json")); }
bool near(double value, double wanted, double off = 1e-9) {
  return std::abs(value - wanted) <= off * std::max(1.0, std::abs(wanted));
}

/// Decisions under the velocity v = x - 0.3 + t.
struct Samples {
  explicit Samples(std::int64_t n, Decoding decoding = Decoding::sample, std::uint64_t seed = 1,
                   const FlowHeadKnobs& knobs = small())
      : head(knobs, {3}, 5),
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
  const json all = golden()["flow"];
  CHECK_EQ(all.size(), 54);
  for (const json& one : all) {
    const auto number = [&](const char* key) { return one[key].get<double>(); };
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

TEST_CASE("so they are under flow_cps, whose last step has no noise") {
  const json all = golden()["flow_cps"];
  CHECK_EQ(all.size(), 57);
  for (const json& one : all) {
    const auto number = [&](const char* key) { return one[key].get<double>(); };
    const int steps = one["steps"], index = one["index"];
    CAPTURE(steps);
    CAPTURE(index);
    const auto step = dvla::detail::cps_step(index, steps, number("noise"));
    CHECK(near(step.t, number("t")));
    CHECK(near(step.std, number("std")));
    CHECK(near(step.mean(number("x"), number("v")), number("mean")));
    CHECK_EQ(step.std == 0, index + 1 == steps);
    if (index + 1 == steps) {
      CHECK_EQ(step.log_prob(0, number("x"), number("v")), 0);
      CHECK_EQ(step.d_log_prob_d_v(0, number("x"), number("v")), 0);
      continue;
    }
    CHECK(near(step.log_prob(number("after"), number("x"), number("v")), number("log_prob")));
    CHECK(near(step.d_log_prob_d_v(number("after"), number("x"), number("v")), number("d_log_prob")));
  }
}

namespace {

/// pi0.5's and SmolVLA's head, with a network of one number.
struct Learned {
  explicit Learned(int steps)
      : head(knobs(steps), {1}, 5,
             dvla::detail::FlowSpace{.horizon = 1, .dimensions = 1, .noise_head = true}),
        decision(head.decision_layout({1}), *std::pmr::new_delete_resource()) {}
  static FlowVlaKnobs knobs(int steps) {
    FlowVlaKnobs knobs;
    knobs.chunk = knobs.horizon = 1;
    knobs.denoise_steps = steps;
    knobs.noise = FlowNoise::flow_noise;
    return knobs;
  }
  FlowHeadMachinery head;
  OwnedRecord<FlowDecision> decision;
};

}  // namespace

TEST_CASE("learned noise: widths, log-probabilities of whole chains, entropies and gradients are NumPy's") {
  const json all = golden()["flow_noise"];
  CHECK_EQ(all.size(), 4);
  for (const json& one : all) {
    const int steps = one["steps"];
    const auto K = static_cast<std::size_t>(steps);
    CAPTURE(steps);
    Learned learned(steps);
    CHECK_EQ(learned.head.outputs(), 2);
    CHECK_EQ(learned.head.noise_inputs(), 1);
    for (int i = 0; i <= steps; ++i) learned.decision->chain.at(0).at(i)[0] = one["chain"][i].get<float>();
    learned.decision->denoise_index[0] = steps;
    const std::vector<std::int64_t> rows{0};
    learned.head.load(*learned.decision, rows);
    REQUIRE_EQ(learned.head.times().size(), K);
    std::vector<float> output, gradient(2 * K), log_prob(1), entropy(1);
    for (std::size_t i = 0; i < K; ++i) {
      CHECK_EQ(learned.head.inputs()[i], one["chain"][i].get<float>());
      CHECK(near(learned.head.times()[i], 1 - static_cast<double>(i) / steps, 1e-7));
      output.push_back(one["v"][i].get<float>());
      output.push_back(one["z"][i].get<float>());
      const dvla::detail::LearnedNoise noise(one["z"][i].get<double>());
      CHECK(near(noise.std, one["std"][i].get<double>()));
      CHECK_GT(noise.std, 0.08);
      CHECK_LT(noise.std, 0.16);
    }
    learned.head.log_prob(output, log_prob, entropy);
    CHECK(near(log_prob[0], one["log_prob"].get<double>(), 1e-6));
    CHECK(near(entropy[0], one["entropy"].get<double>(), 1e-6));
    const std::vector<float> on{1}, off{0};
    for (const char* key : {"d_log_prob", "d_entropy"}) {
      const bool of_entropy = std::string(key) == "d_entropy";
      learned.head.gradient(output, of_entropy ? off : on, of_entropy ? on : off, gradient);
      for (std::size_t i = 0; i < K; ++i) {
        CHECK(near(gradient[2 * i], one[key][i].get<double>(), 1e-5));
        CHECK(near(gradient[2 * i + 1], one[key][K + i].get<double>(), 1e-5));
      }
    }
  }
}

TEST_CASE("learned noise is in every step, as wide as the network says, and recomputed exactly") {
  Learned learned(4);
  const std::vector<std::int64_t> rows{0};
  std::vector<float> storage(1), seen;
  const Field<float> action({1, 1, 1}, storage.data());
  std::vector<double> squares(4), widths;
  for (const float z : {-0.7f, 0.0f, 1.1f, 3.0f}) widths.push_back(dvla::detail::LearnedNoise(z).std);
  const auto network = [&](std::span<const float> x, std::span<const float> t) {
    seen.clear();
    for (std::size_t i = 0; i < x.size(); ++i) {
      seen.push_back(0.5f * x[i] + t[i]);
      seen.push_back(t[i] > 0.9f ? -0.7f : t[i] > 0.6f ? 0.0f : t[i] > 0.4f ? 1.1f : 3.0f);
    }
    return std::span<const float>(seen);
  };
  constexpr int draws = 4000;
  for (std::uint64_t seed = 0; seed < draws; ++seed) {
    learned.head.act(network, rows, Decoding::sample, seed, *learned.decision, action);
    for (int i = 0; i < 4; ++i) {
      const float x = learned.decision->chain.at(0).at(i)[0], t = 1 - static_cast<float>(i) / 4;
      const double off = learned.decision->chain.at(0).at(i + 1)[0] - (x - 0.25f * (0.5f * x + t));
      squares[static_cast<std::size_t>(i)] += off * off / draws;
    }
    if (seed > 20) continue;
    CHECK_EQ(learned.decision->denoise_index[0], 4);
    learned.head.load(*learned.decision, rows);
    std::vector<float> log_prob(1), entropy(1);
    learned.head.log_prob(network(learned.head.inputs(), learned.head.times()), log_prob, entropy);
    CHECK_EQ(log_prob[0], learned.decision->log_prob[0]);
  }
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::sqrt(squares[i]) == doctest::Approx(widths[i]).epsilon(0.05));
}

TEST_CASE("under ode every step follows the ODE when sampling too, and there is nothing to train on") {
  FlowHeadKnobs knobs = small();
  knobs.noise = FlowNoise::ode;
  Samples samples(2, Decoding::sample, 3, knobs);
  CHECK(samples.decision->chain.at(0).at(0)[0] != samples.decision->chain.at(1).at(0)[0]);
  for (int i = 0; i < 4; ++i) {
    const auto before = samples.decision->chain.at(1).at(i).span();
    const auto after = samples.decision->chain.at(1).at(i + 1).span();
    const std::vector<float> t{1 - static_cast<float>(i) / 4};
    const auto v = samples.velocity(before, t);
    for (std::size_t e = 0; e < 6; ++e) CHECK(near(after[e], before[e] - 0.25 * v[e], 1e-6));
  }
  CHECK_EQ(samples.decision->denoise_index[1], -1);
  CHECK_EQ(samples.decision->log_prob.at(1).span()[3], 0.0f);
  samples.head.load(*samples.decision, std::vector<std::int64_t>{1, 0});
  const auto v = samples.velocity(samples.head.inputs(), samples.head.times());
  std::vector<float> log_prob(12, 1.0f), entropy(12, 1.0f), gradient(12, 1.0f);
  samples.head.log_prob(v, log_prob, entropy);
  samples.head.gradient(v, std::vector<float>(12, 1.0f), std::vector<float>(12, 1.0f), gradient);
  const std::vector<float> none(12);
  CHECK_EQ(log_prob, none);
  CHECK_EQ(entropy, none);
  CHECK_EQ(gradient, none);
}

TEST_CASE("flow_cps draws its step from those that have noise, and recomputes it exactly") {
  FlowHeadKnobs knobs = small();
  knobs.noise = FlowNoise::flow_cps;
  std::set<std::int32_t> seen;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Samples samples(2, Decoding::sample, seed, knobs);
    seen.insert(samples.decision->denoise_index[0]);
    const std::vector<std::int64_t> rows{1, 0};
    samples.head.load(*samples.decision, rows);
    const auto v = samples.velocity(samples.head.inputs(), samples.head.times());
    std::vector<float> log_prob(12), entropy(12, 1.0f);
    samples.head.log_prob(v, log_prob, entropy);
    for (std::size_t i = 0; i < 12; ++i) {
      CHECK_EQ(log_prob[i], samples.decision->log_prob.at(rows[i / 6]).span()[i % 6]);
      CHECK_EQ(entropy[i], 0.0f);
    }
  }
  CHECK_EQ(seen, std::set<std::int32_t>{0, 1, 2});
}

TEST_CASE("noise that cannot be had is refused in a sentence") {
  const auto refuses = [](const char* why, auto change) {
    FlowHeadKnobs knobs = small();
    change(knobs);
    CHECK_THROWS_WITH_AS(FlowHeadMachinery(knobs, {3}, 5), why, ConfigError);
  };
  refuses("model.denoise_steps is 1; flow_cps has no noise in the last step, so it must be 2 or more",
          [](auto& knobs) { knobs.noise = FlowNoise::flow_cps, knobs.denoise_steps = 1; });
  refuses("model.noise_level is 1.5; under flow_cps it must be at most 1, where a step is noise alone",
          [](auto& knobs) { knobs.noise = FlowNoise::flow_cps, knobs.noise_level = 1.5f; });
  refuses(
      "model.noise is flow_noise, and this model has no head that learns it; choose flow_sde, flow_cps or "
      "ode",
      [](auto& knobs) { knobs.noise = FlowNoise::flow_noise; });
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
