// Norms, on tensors that are given: LayerNorm, and RMSNorm plain, as Gemma has it (1 + weight) and adaptive, as the action
// expert of pi0.5 has it (scale, shift and gate from a condition). Variance and scale are float32 whatever the
// input is, as in the references (docs/vla_models.md); the result has the input's precision.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/square.h>

#include <utility>

namespace dvla::layers {

/// x: [.., d]; weight and bias: [d]. Statistics and result in x's precision, as torch has them.
inline at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                             double eps) {
  const auto type = x.scalar_type();
  return at::layer_norm(x, {x.size(-1)}, weight.to(type), bias.to(type), eps);
}

/// x / rms(x), in float32.
inline at::Tensor normalised(const at::Tensor& x, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  return wide * at::rsqrt(at::mean(at::square(wide), {-1}, /*keepdim=*/true) + eps);
}

/// x: [.., d]; weight: [d], `offset` is added to it: 1 in Gemma, 0 in Llama.
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset) {
  return (normalised(x, eps) * (weight.to(at::kFloat) + offset)).to(x.scalar_type());
}

/// x: [n, T, d]; modulation: [n, 3 d], scale, shift and gate. The result, and the gate [n, 1, d] of what is added to
/// the residual stream.
inline std::pair<at::Tensor, at::Tensor> adaptive_rms_norm(const at::Tensor& x, const at::Tensor& modulation,
                                                           double eps) {
  const auto parts = modulation.unsqueeze(1).chunk(3, -1);
  const at::Tensor y = normalised(x, eps) * (1 + parts[0].to(at::kFloat)) + parts[1].to(at::kFloat);
  return {y.to(x.scalar_type()), parts[2].to(x.scalar_type())};
}

}  // namespace dvla::layers
