// A linear layer with, where a model is wrapped in LoRA, a low-rank adapter beside it (Hu et al., arXiv
// 2106.09685; names and initial values as in PEFT). Stateless but for the tensors it is given by
// model/parameters.hpp. Computes in its input's precision.
#pragma once

#include <ATen/ops/addmm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <optional>

namespace dvla {

/// y = x W^T + b + scale * (x A^T) B^T, without what is not defined.
struct Linear {
  at::Tensor weight, bias;          ///< [out, in], [out]
  at::Tensor adapter_a, adapter_b;  ///< [rank, in], [out, rank]
  double scale = 0;                 ///< alpha / rank

  /// x: [.., in], the result [.., out].
  at::Tensor operator()(const at::Tensor& x) const {
    const at::Tensor y =
        at::linear(x, like(weight, x), bias.defined() ? std::optional(like(bias, x)) : std::nullopt);
    if (!adapter_a.defined()) return y;
    const at::Tensor low = at::linear(x, like(adapter_a, x)), up = like(adapter_b, x).t();
    return at::addmm(y.flatten(0, -2), low.flatten(0, -2), up, 1, scale).view_as(y);
  }
  /// residual + the above, without a bias; x: [n, in], residual: [n, out].
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x) const {
    const at::Tensor y = at::addmm(residual, x, weight.t());
    return adapter_a.defined() ? at::addmm(y, x.mm(adapter_a.t()), adapter_b.t(), 1, scale) : y;
  }

 private:
  static at::Tensor like(const at::Tensor& parameter, const at::Tensor& x) {
    return parameter.scalar_type() == x.scalar_type() ? parameter : parameter.to(x.scalar_type());
  }
};

}  // namespace dvla
