// Attention of several heads, through torch's scaled_dot_product_attention, and the masks that it takes.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/where.h>

#include <cstdint>
#include <optional>
#include <vector>

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

/// query: [n, h, T, k]; key and value: [n, g, S, k], h a multiple of g, each shared by h / g heads that follow one
/// another. `mask` is added to the scores, [n or 1, 1, T, S], unless it is undefined. The result is [n, T, h * k].
inline at::Tensor attention(const at::Tensor& query, at::Tensor key, at::Tensor value,
                            const at::Tensor& mask) {
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
