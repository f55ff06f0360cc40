// dvla-test: torch
#include <ATen/ops/allclose.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <doctest/doctest.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <vector>

#include "dvla/model/layers/attention.hpp"

namespace layers = dvla::layers;

namespace {

/// What attention puts out, and the gradients of query, key and value.
template <class Attention>
std::vector<at::Tensor> all_of(Attention attention, std::vector<at::Tensor> in, const at::Tensor& mask,
                               const at::Tensor& slope) {
  for (at::Tensor& each : in) each = each.clone().requires_grad_(true);
  const at::Tensor out = attention(in[0], in[1], in[2], mask);
  torch::autograd::backward({out}, {slope});
  std::vector<at::Tensor> all{out.detach()};
  for (const at::Tensor& each : in) all.push_back(each.grad());
  return all;
}

}  // namespace

TEST_CASE("Attention by products is fused attention, with its gradients, however heads share keys") {
  for (const auto [h, g] : std::vector<std::array<std::int64_t, 2>>{{6, 6}, {6, 2}, {6, 1}})
    for (const bool masked : {false, true}) {
      CAPTURE(g);
      CAPTURE(masked);
      const std::int64_t n = 2, T = 5, S = 7, k = 8;
      // As heads_of() gives them: heads lie side by side in a token.
      const auto drawn = [&](std::int64_t heads, std::int64_t tokens) {
        return layers::heads_of(at::randn({n, tokens, heads * k}), k);
      };
      const std::vector<at::Tensor> in{drawn(h, T), drawn(g, S), drawn(g, S)};
      at::Tensor allowed = at::rand({n, T, S}) < 0.6;
      allowed.select(2, 0).fill_(true);
      const at::Tensor mask = masked ? layers::additive_mask(allowed, at::kFloat) : at::Tensor();
      const at::Tensor slope = at::randn({n, T, h * k});
      const auto fused = all_of(layers::attention, in, mask, slope);
      const auto own = all_of(layers::attention_by_products, in, mask, slope);
      for (std::size_t i = 0; i < own.size(); ++i) {
        CAPTURE(i);
        CHECK(at::allclose(own[i], fused[i], 1e-4, 1e-5));
      }
      if (!masked) continue;
      allowed.select(1, 0).fill_(false);  // a token that may see none attends to all alike
      const at::Tensor none =
          layers::attention_by_products(in[0], in[1], in[2], layers::additive_mask(allowed, at::kFloat));
      CHECK(at::allclose(none.select(1, 0).view({n, h, k}), in[2].mean(2).repeat_interleave(h / g, 1), 1e-4,
                         1e-5));
    }
}

TEST_CASE("In bfloat16 attention is that of float32, to the rounding of scores") {
  const auto drawn = [](std::int64_t heads, std::int64_t tokens) {
    return layers::heads_of(at::randn({2, tokens, heads * 16}), 16).to(at::kBFloat16);
  };
  const at::Tensor query = drawn(4, 9), key = drawn(2, 11), value = drawn(2, 11);
  at::Tensor allowed = at::rand({2, 9, 11}) < 0.6;
  allowed.select(2, 0).fill_(true);
  const at::Tensor slope = at::randn({2, 9, 4 * 16}).to(at::kBFloat16);
  const auto wide =
      all_of(layers::attention, {query.to(at::kFloat), key.to(at::kFloat), value.to(at::kFloat)},
             layers::additive_mask(allowed, at::kFloat), slope.to(at::kFloat));
  const auto rounded = all_of(layers::attention_by_products, {query, key, value},
                              layers::additive_mask(allowed, at::kBFloat16), slope);
  for (std::size_t i = 0; i < wide.size(); ++i) {
    CAPTURE(i);
    CHECK((rounded[i].scalar_type() == at::kBFloat16));
    CHECK((rounded[i].to(at::kFloat) - wide[i]).norm().item<double>() < 0.02 * wide[i].norm().item<double>());
  }
}
