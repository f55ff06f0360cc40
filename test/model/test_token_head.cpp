// The token head's arithmetic against NumPy (test/golden/model/make_golden.py), and its sampling.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "dvla/model/token_head.hpp"

using namespace dvla;
using dvla::detail::TokenHeadMachinery;
using nlohmann::json;

namespace {

TokenHeadKnobs knobs_of(int bins, float temperature) {
  TokenHeadKnobs knobs;
  knobs.chunk = 1;
  knobs.bins = bins;
  knobs.temperature = temperature;
  return knobs;
}

/// Samples `n` decisions from the same logits.
struct Samples {
  Samples(const std::vector<float>& one, float temperature, std::int64_t n, Decoding decoding,
          std::uint64_t seed)
      : head(knobs_of(static_cast<int>(one.size()), temperature), {1}, 0),
        decision(head.decision_layout({n}), *std::pmr::new_delete_resource()),
        values(static_cast<std::size_t>(n)),
        action({n, 1, 1}, values.data()) {
    for (std::int64_t i = 0; i < n; ++i) logits.insert(logits.end(), one.begin(), one.end());
    const auto evaluate = [&](std::span<const float>, std::span<const float>) {
      return std::span<const float>(logits);
    };
    std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    head.act(evaluate, rows, decoding, seed, *decision, action);
  }
  TokenHeadMachinery head;
  OwnedRecord<TokenDecision> decision;
  std::vector<float> logits, values;
  Field<float> action;
};

}  // namespace

TEST_CASE("log-probabilities, entropies, gradients and bin centres are NumPy's to 1e-6") {
  const json golden = json::parse(std::ifstream(DVLA_TEST_DIR "/golden/model/golden.json"));
  for (const json& one : golden["token"]) {
    const int bins = one["bins"];
    CAPTURE(bins);
    TokenHeadMachinery head(knobs_of(bins, one["temperature"]), {1}, 0);
    const std::vector<float> logits = one["logits"];
    const auto expected = one["log_prob"].get<std::vector<double>>();
    std::vector<float> gradient(logits.size());
    float log_prob = 0, entropy = 0;
    for (std::int32_t token = 0; token < bins; ++token) {
      float unused = 0;
      TokenDecision decision{Field<std::int32_t>({1, 1, 1}, &token), Field<float>({1, 1, 1}, &unused)};
      head.load(decision, std::vector<std::int64_t>{0});
      head.log_prob(logits, {&log_prob, 1}, {&entropy, 1});
      const double wanted = expected[static_cast<std::size_t>(token)];
      CHECK_LE(std::abs(static_cast<double>(log_prob) - wanted), 1e-6 * std::max(1.0, std::abs(wanted)));
      CHECK_LE(std::abs(static_cast<double>(entropy) - one["entropy"].get<double>()), 2e-6);
      if (token != one["token"]) continue;
      const float on = 1, off = 0;
      for (const bool of_log_prob : {true, false}) {
        head.gradient(logits, {of_log_prob ? &on : &off, 1}, {of_log_prob ? &off : &on, 1}, gradient);
        const json& slopes = one[of_log_prob ? "d_log_prob" : "d_entropy"];
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          CHECK_LE(std::abs(static_cast<double>(gradient[i]) - slopes[i].get<double>()), 1e-6);
        }
      }
      const float centre = head.bin_centre(static_cast<std::size_t>(token));
      CHECK_LE(std::abs(static_cast<double>(centre) - one["centre"].get<double>()), 1e-6);
      CHECK_EQ(head.bin_of(centre), static_cast<std::size_t>(token));
    }
  }
}

TEST_CASE("tokens are drawn as often as their probability says") {
  const std::vector<float> logits{0.0f, 1.0f, -1.0f, 2.0f};
  constexpr std::int64_t n = 40000;
  Samples samples(logits, 0.7f, n, Decoding::sample, 9);
  std::vector<double> seen(4, 0.0);
  for (const std::int32_t token : samples.decision->tokens.span())
    seen[static_cast<std::size_t>(token)] += 1.0 / n;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) / 0.7);
  for (std::size_t i = 0; i < 4; ++i) {
    const double p = std::exp(static_cast<double>(logits[i]) / 0.7) / sum;
    CHECK_LE(std::abs(seen[i] - p), 4 * std::sqrt(p * (1 - p) / n));
  }
}

TEST_CASE("the mode is the most probable token, executed at its bin's centre") {
  Samples samples({0.5f, -1.0f, 3.0f, 1.0f}, 1.0f, 3, Decoding::mode, 1);
  for (std::int64_t i = 0; i < 3; ++i) {
    CHECK_EQ(samples.decision->tokens[i], 2);
    CHECK_EQ(samples.action[i], doctest::Approx(0.25));
  }
}

TEST_CASE("expert actions outside [-1, 1] fall into the outermost bins") {
  const TokenHeadMachinery head(knobs_of(32, 1), {1}, 0);
  CHECK_EQ(head.bin_of(-7), 0);
  CHECK_EQ(head.bin_of(-1), 0);
  CHECK_EQ(head.bin_of(1), 31);
  CHECK_EQ(head.bin_of(std::numeric_limits<float>::infinity()), 31);
}

TEST_CASE("logits that are not finite are refused, large ones are not") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK_NOTHROW(Samples({1e30f, -1e30f}, 1, 1, Decoding::sample, 1));
  CHECK_THROWS_AS(Samples({1.0f, std::nanf("")}, 1, 1, Decoding::sample, 1), Error);
  CHECK_THROWS_AS(Samples({infinity, 0.0f}, 1, 1, Decoding::mode, 1), Error);
}
