// A linear layer with, where a model is wrapped in LoRA, a low-rank adapter beside it (Hu et al., arXiv
// 2106.09685; names and initial values as in PEFT). Stateless but for the tensors it is given by
// model/parameters.hpp. Computes in its input's precision; where the processor has no instructions for
// bfloat16, products of such matrices are made in float32 and rounded, which is three times faster here.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "dvla/model/bf16_instructions.hpp"

namespace dvla {

namespace detail {
/// x W^T of bfloat16 by float32. The graph keeps what it was given, in bfloat16.
struct UpcastProduct : torch::autograd::Function<UpcastProduct> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    context->save_for_backward(
        {weight.requires_grad() ? x : at::Tensor(), x.requires_grad() ? weight : at::Tensor()});
    return product(x, weight);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor d_y = gradients[0].flatten(0, -2).to(at::kFloat);
    at::Tensor d_x, d_weight;
    if (saved[1].defined()) {
      std::vector<std::int64_t> shape(gradients[0].sizes().begin(), gradients[0].sizes().end());
      shape.back() = saved[1].size(1);
      d_x = d_y.mm(saved[1].to(at::kFloat)).to(at::kBFloat16).view(shape);
    }
    if (saved[0].defined()) d_weight = d_y.t().mm(saved[0].flatten(0, -2).to(at::kFloat)).to(at::kBFloat16);
    return {d_x, d_weight};
  }
  static at::Tensor product(const at::Tensor& x, const at::Tensor& weight) {
    return at::linear(x.to(at::kFloat), weight.to(at::kFloat)).to(at::kBFloat16);
  }
};

/// x W^T.
inline at::Tensor product(const at::Tensor& x, const at::Tensor& weight) {
  if (x.scalar_type() != at::kBFloat16 || !x.is_cpu() || bf16_instructions() != "none")
    return at::linear(x, weight);
  return at::GradMode::is_enabled() ? UpcastProduct::apply(x, weight) : UpcastProduct::product(x, weight);
}
}  // namespace detail

/// y = x W^T + b + scale * (x A^T) B^T, without what is not defined.
struct Linear {
  at::Tensor weight, bias;          ///< [out, in], [out]
  at::Tensor adapter_a, adapter_b;  ///< [rank, in], [out, rank]
  double scale = 0;                 ///< alpha / rank; 0: as without an adapter

  /// x: [.., in], the result [.., out].
  at::Tensor operator()(const at::Tensor& x) const {
    const at::Tensor y =
        x.scalar_type() == at::kFloat
            ? at::linear(x, like(weight, x), bias.defined() ? std::optional(like(bias, x)) : std::nullopt)
        : bias.defined() ? detail::product(x, weight) + bias
                         : detail::product(x, weight);
    return adapter_a.defined() && scale != 0 ? y + adapted(x) : y;
  }
  /// residual + the above, without a bias; x: [n, in], residual: [n, out].
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x) const {
    const at::Tensor y = x.scalar_type() == at::kFloat ? at::addmm(residual, x, weight.t())
                                                       : residual + detail::product(x, weight);
    return adapter_a.defined() && scale != 0 ? y + adapted(x) : y;
  }
  /// The layer that has `count` of its outputs, from `first` on: views of its tensors.
  Linear outputs(std::int64_t first, std::int64_t count) const {
    const auto rows = [&](const at::Tensor& of) {
      return of.defined() ? of.narrow(0, first, count) : at::Tensor();
    };
    return {rows(weight), rows(bias), adapter_a, rows(adapter_b), scale};
  }
  /// The layer of a convolution over patches that do not overlap: every tensor with its inputs in a row.
  Linear flat() const {
    const auto row = [](const at::Tensor& of) { return of.defined() ? of.flatten(1) : at::Tensor(); };
    return {row(weight), bias, row(adapter_a), row(adapter_b), scale};
  }

 private:
  at::Tensor adapted(const at::Tensor& x) const {
    return detail::product(detail::product(x, like(adapter_a, x)), like(adapter_b, x)) * scale;
  }
  static at::Tensor like(const at::Tensor& parameter, const at::Tensor& x) {
    return parameter.scalar_type() == x.scalar_type() ? parameter : parameter.to(x.scalar_type());
  }
};

}  // namespace dvla
