// The mean of some of a row's tokens, in float32: what a value head reads of a prefix.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/sum.h>

namespace dvla::layers {

/// x: [n, T, d]; counted: [n, T], bool, at least one of each row. The result is [n, d], float32.
inline at::Tensor masked_mean(const at::Tensor& x, const at::Tensor& counted) {
  const at::Tensor weights = counted.to(at::kFloat).unsqueeze(2);
  return (x.to(at::kFloat) * weights).sum(1) / weights.sum(1);
}

}  // namespace dvla::layers
