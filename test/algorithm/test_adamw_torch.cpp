// dvla-test: torch
// (Torch has a CHECK macro of its own, hence DOCTEST_CHECK.)
// AdamW and gradient clipping against LibTorch's own.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cmath>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/random.hpp"

TEST_CASE("fifty steps with clipping equal torch::optim::AdamW to float rounding") {
  constexpr std::int64_t count = 1003;
  dvla::SplitMix64 random(5);
  std::vector<float> parameter(count), gradient(count), first(count), second(count);
  for (float& value : parameter) value = static_cast<float>(random.normal());
  torch::Tensor reference = torch::from_blob(parameter.data(), {count}).clone().requires_grad_();
  dvla::AdamWKnobs knobs;
  knobs.learning_rate = 0.003;
  knobs.weight_decay = 0.1;
  knobs.max_grad_norm = 30;
  torch::optim::AdamW optimiser({reference}, torch::optim::AdamWOptions(0.003).weight_decay(0.1));
  dvla::AdamWState state{parameter, first, second};
  for (int step = 0; step < 50; ++step) {
    for (float& value : gradient) value = static_cast<float>(random.normal());
    reference.mutable_grad() = torch::from_blob(gradient.data(), {count}).clone();
    const double expected_norm = torch::nn::utils::clip_grad_norm_({reference}, 30.0);
    optimiser.step();
    DOCTEST_CHECK(dvla::adamw_step(state, gradient, knobs) == doctest::Approx(expected_norm).epsilon(1e-6));
  }
  const auto expected = reference.detach();
  double largest = 0;
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max<double>(largest,
                               std::abs(parameter[static_cast<std::size_t>(i)] - expected[i].item<float>()));
  MESSAGE("largest difference after 50 steps: ", largest);
  DOCTEST_CHECK(largest < 2e-6);
}
