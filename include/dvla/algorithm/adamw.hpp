// AdamW (Loshchilov and Hutter, arXiv 1711.05101) on spans of float, and clipping by the global gradient
// norm. The operations and their order are torch.optim.AdamW's and torch.nn.utils.clip_grad_norm_'s, so the
// results agree to float rounding. The state is three spans and a counter, which is what a checkpoint saves.
// Does not own memory, allocate, or know parameter groups: for shards or several tensors add up squared_norm
// first, then give every part the same scale and step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "dvla/algorithm/extents.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"

namespace dvla {

struct AdamWKnobs {
  double learning_rate = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  ///< decoupled: parameters shrink by learning_rate * weight_decay a step
  double max_grad_norm = 1.0;  ///< of the global gradient; 0: no clipping

  void validate() const {
    const auto expect = [](bool good, const char* name, double value, const char* range) {
      if (!good)
        throw ConfigError("AdamW: " + std::string(name) + " is " + detail::number_text(value) +
                          "; it must be " + range + ".");
    };
    expect(std::isfinite(learning_rate) && learning_rate >= 0, "learning_rate", learning_rate,
           "finite and at least 0");
    expect(beta1 >= 0 && beta1 < 1, "beta1", beta1, "in [0, 1)");
    expect(beta2 >= 0 && beta2 < 1, "beta2", beta2, "in [0, 1)");
    expect(epsilon > 0, "epsilon", epsilon, "above 0");
    expect(std::isfinite(weight_decay) && weight_decay >= 0, "weight_decay", weight_decay,
           "finite and at least 0");
    expect(max_grad_norm >= 0, "max_grad_norm", max_grad_norm, "at least 0 (0: no clipping)");
  }
};

/// Views of one parameter tensor or of all of them in one buffer; moments begin at 0, all three have one
/// size.
struct AdamWState {
  std::span<float> parameter;
  std::span<float> first_moment;
  std::span<float> second_moment;
  std::int64_t step = 0;  ///< optimiser steps taken
};

namespace detail {
/// values = sqrt(values), Count a multiple of 4. std::sqrt may set errno, which keeps compilers from
/// vectorising it; both forms are correctly rounded, hence equal.
template <std::size_t Count>
inline void sqrt_block(float (&values)[Count]) {
  static_assert(Count % 4 == 0);
#if defined(__SSE__)
  for (std::size_t i = 0; i < Count; i += 4) _mm_storeu_ps(values + i, _mm_sqrt_ps(_mm_loadu_ps(values + i)));
#else
  for (float& value : values) value = std::sqrt(value);
#endif
}
}  // namespace detail

/// Sum of squares in double. The order of addition is fixed (eight interleaved sums), so the result is the
/// same in every run and at every vector width. NaN or infinite exactly if an element is: float squares can't
/// overflow it.
inline double squared_norm(std::span<const float> gradient) {
  constexpr std::size_t lanes = 8;
  double sums[lanes] = {};
  const std::size_t whole = gradient.size() / lanes * lanes;
  for (std::size_t i = 0; i < whole; i += lanes)
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const double value = gradient[i + lane];
      sums[lane] += value * value;
    }
  for (std::size_t i = whole; i < gradient.size(); ++i)
    sums[i - whole] += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

/// The factor that brings a gradient of this norm down to max_norm: min(1, max_norm / (norm + 1e-6)); 1 if
/// max_norm is 0. Throws Error if the norm is not finite, naming the step (counted from 0): a NaN must not
/// reach the weights.
inline double clip_scale(double norm, double max_norm, std::int64_t step) {
  if (!std::isfinite(norm))
    throw Error(
        "The gradient of optimiser step " + std::to_string(step) + " has norm " + detail::number_text(norm) +
        ", so it holds a NaN or an infinity and was not applied: look for a diverged loss, or lower the "
        "learning rate.");
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

/// One optimiser step with gradient * scale; advances state.step.
inline void adamw_update(AdamWState& state, std::span<const float> gradient, const AdamWKnobs& knobs,
                         double scale = 1.0) {
  const std::size_t count = gradient.size();
  detail::expect_size("adamw_update: parameter", state.parameter.size(), count);
  detail::expect_size("adamw_update: first_moment", state.first_moment.size(), count);
  detail::expect_size("adamw_update: second_moment", state.second_moment.size(), count);
  const auto step = static_cast<double>(++state.step);
  const double correction2 = std::sqrt(1 - std::pow(knobs.beta2, step));

  const auto grad_scale = static_cast<float>(scale);
  const auto decay = static_cast<float>(1 - knobs.learning_rate * knobs.weight_decay);
  const auto rate1 = static_cast<float>(1 - knobs.beta1);
  const auto beta2 = static_cast<float>(knobs.beta2);
  const auto rate2 = static_cast<float>(1 - knobs.beta2);
  const auto root_correction2 = static_cast<float>(correction2);
  const auto epsilon = static_cast<float>(knobs.epsilon);
  const auto step_size = static_cast<float>(knobs.learning_rate / (1 - std::pow(knobs.beta1, step)));

  // In blocks, so that the plain loops on both sides of the square root vectorise.
  constexpr std::size_t block = 32;
  const auto update = [&](const float* __restrict g, float* __restrict p, float* __restrict m,
                          float* __restrict v, std::size_t n) {
    float root[block] = {};
    for (std::size_t j = 0; j < n; ++j) {
      const float value = g[j] * grad_scale;
      m[j] += rate1 * (value - m[j]);
      v[j] = v[j] * beta2 + rate2 * value * value;
      root[j] = v[j];
    }
    detail::sqrt_block(root);
    for (std::size_t j = 0; j < n; ++j)
      p[j] = p[j] * decay - step_size * (m[j] / (root[j] / root_correction2 + epsilon));
  };
  const std::size_t whole = count / block * block;
  for (std::size_t i = 0; i < whole; i += block)
    update(gradient.data() + i, state.parameter.data() + i, state.first_moment.data() + i,
           state.second_moment.data() + i, block);
  if (whole < count)
    update(gradient.data() + whole, state.parameter.data() + whole, state.first_moment.data() + whole,
           state.second_moment.data() + whole, count - whole);
}

/// Norm, check, clip, step: the whole optimiser step for parameters in one buffer. Returns the norm before
/// clipping. Throws Error on a gradient that is not finite and then leaves the state as it was.
inline double adamw_step(AdamWState& state, std::span<const float> gradient, const AdamWKnobs& knobs) {
  const double norm = std::sqrt(squared_norm(gradient));
  adamw_update(state, gradient, knobs, clip_scale(norm, knobs.max_grad_norm, state.step));
  return norm;
}

}  // namespace dvla
