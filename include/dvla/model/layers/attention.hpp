// Attention of several heads, through torch's scaled_dot_product_attention or, in bfloat16 on a CPU with instructions for it,
// by products of its own; and the masks that it takes.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "dvla/model/bf16_instructions.hpp"

namespace dvla::layers {

/// What masked scores get added in pi0's published code: a token that may see none attends to all alike, where
/// minus infinity would make NaN.
inline constexpr double masked_score = -2.3819763e38;

/// allowed: [n or 1, T, S], bool. The mask that attention() takes, [n or 1, 1, T, S].
inline at::Tensor additive_mask(const at::Tensor& allowed, at::ScalarType type) {
  const auto options = allowed.options().dtype(type);
  return at::where(allowed, at::scalar_tensor(0, options), at::scalar_tensor(masked_score, options))
      .unsqueeze(1);
}

/// [n, T, h * k] as [n, h, T, k].
inline at::Tensor heads_of(const at::Tensor& x, std::int64_t head_width) {
  return x.view({x.size(0), x.size(1), -1, head_width}).transpose(1, 2);
}

/// attention() with all scores, [n, h, T, S], at once, rounded to the inputs' precision as in the references; heads that share a key are
/// rows of one product.
inline at::Tensor attention_by_products(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, const at::Tensor& mask) {
  const auto n = query.size(0), h = query.size(1), T = query.size(2), k = query.size(3), g = key.size(1),
             S = key.size(2);
  const at::Tensor added = mask.defined() ? mask.expand({n, h, T, S}).reshape({n * g, h / g * T, S})
                                          : at::zeros({1, 1, 1}, query.options());
  const at::Tensor scores =
      at::baddbmm(added, query.reshape({n * g, h / g * T, k}), key.reshape({n * g, S, k}).transpose(1, 2),
                  mask.defined() ? 1 : 0, 1 / std::sqrt(static_cast<double>(k)));
  const at::Tensor mixed = at::bmm(at::softmax(scores, -1), value.reshape({n * g, S, k}));
  return mixed.view({n, h, T, k}).transpose(1, 2).flatten(2);
}

/// query: [n, h, T, k]; key and value: [n, g, S, k], h a multiple of g, each shared by h / g heads that follow one
/// another. `mask` is added to the scores, [n or 1, 1, T, S], unless it is undefined. The result is [n, T, h * k].
inline at::Tensor attention(const at::Tensor& query, at::Tensor key, at::Tensor value,
                            const at::Tensor& mask) {
  // Torch's fused kernel for a CPU takes 1.7 to 5 times as long with AVX-512's (docs/numbers.md).
  if (query.scalar_type() == at::kBFloat16 && query.is_cpu() && bf16_instructions() != "none")
    return attention_by_products(query, key, value, mask);
  const std::int64_t shared = query.size(1) / key.size(1);
  const auto spread = [&](const at::Tensor& x) {
    const auto n = x.size(0), g = x.size(1), S = x.size(2), k = x.size(3);
    return g == 1 ? x.expand({n, shared, S, k})
                  : x.unsqueeze(2).expand({n, g, shared, S, k}).reshape({n, g * shared, S, k});
  };
  if (shared > 1) {
    key = spread(key);
    value = spread(value);
  }
  const at::Tensor mixed = at::scaled_dot_product_attention(
      query, key, value, mask.defined() ? std::optional(mask) : std::nullopt, 0.0, false);
  return mixed.transpose(1, 2).flatten(2);
}

/// x: [n, ..], each of its rows m / n times, one behind the other: [m, ..]. What a decision's evaluations share.
inline at::Tensor repeated(const at::Tensor& x, std::int64_t m) {
  if (!x.defined() || x.size(0) == m) return x;
  std::vector<std::int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.insert(sizes.begin() + 1, m / x.size(0));
  return x.unsqueeze(1).expand(sizes).flatten(0, 1);
}

}  // namespace dvla::layers
