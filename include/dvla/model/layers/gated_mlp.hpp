// The gated MLP of Gemma, Llama and SmolLM.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/knobs.hpp"
#include "dvla/model/linear.hpp"

namespace dvla::layers {

enum class Activation : std::uint8_t { gelu, gelu_tanh, silu };

inline at::Tensor activated(const at::Tensor& x, Activation by) {
  if (by == Activation::silu) return at::silu(x);
  return at::gelu(x, by == Activation::gelu ? "none" : "tanh");
}

/// down(activation(gate(x)) * up(x)).
inline at::Tensor gated_mlp(const at::Tensor& x, const Linear& gate, const Linear& up, const Linear& down,
                            Activation by) {
  return down(activated(gate(x), by) * up(x));
}

}  // namespace dvla::layers

template <>
inline constexpr auto dvla::enum_names<dvla::layers::Activation> =
    std::to_array<std::string_view>({"gelu", "gelu_tanh", "silu"});
