// Rotary position embedding, first half against second half of a head's features (Su et al., arXiv 2104.09864, in the form of
// Gemma's and Llama's published code). Angles are float32, their sine and cosine rounded to what a model says.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>

#include <cstdint>

namespace dvla::layers {

/// Of positions: cosine and sine, [n, 1, T, k].
struct Rotary {
  at::Tensor cos, sin;
};

/// positions: [n, T], int64; k even. Made once for all layers.
inline Rotary rotary(const at::Tensor& positions, std::int64_t head_width, double theta,
                     at::ScalarType type) {
  const auto options = positions.options().dtype(at::kFloat);
  const at::Tensor frequency =
      1 / at::pow(theta, at::arange(0, head_width, 2, options) / static_cast<double>(head_width));
  const at::Tensor half = positions.to(at::kFloat).unsqueeze(-1) * frequency;
  const at::Tensor angle = at::cat({half, half}, -1).unsqueeze(1);
  return {at::cos(angle).to(type), at::sin(angle).to(type)};
}

/// x: [n, h, T, k]. Sums are made in the wider precision of the two, the result is x's.
inline at::Tensor rotated(const at::Tensor& x, const Rotary& by) {
  const auto halves = x.chunk(2, -1);
  return (x * by.cos + at::cat({-halves[1], halves[0]}, -1) * by.sin).to(x.scalar_type());
}

}  // namespace dvla::layers
