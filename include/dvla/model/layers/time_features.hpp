// The time of a denoising step as sines and cosines, as pi0 and SmolVLA have it.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>

#include <cstdint>
#include <numbers>

namespace dvla::layers {

/// times: [n], in [0, 1]. [n, width], float32: sines, then cosines, at periods from `shortest` to `longest`, evenly in their
/// logarithm. In float64 up to there, as the references have it.
inline at::Tensor time_features(const at::Tensor& times, std::int64_t width, double shortest,
                                double longest) {
  const at::Tensor place = at::linspace(0, 1, width / 2, times.options().dtype(at::kDouble));
  const at::Tensor period = shortest * at::pow(longest / shortest, place);
  const at::Tensor angle = times.to(at::kDouble).unsqueeze(-1) * (2 * std::numbers::pi / period);
  return at::cat({at::sin(angle), at::cos(angle)}, -1).to(at::kFloat);
}

}  // namespace dvla::layers
