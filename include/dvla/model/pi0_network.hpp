// The networks of pi0.5 and pi0 (Physical Intelligence; arXiv 2504.16054, 2410.24164): PaliGemma (SigLIP and a Gemma) and an action
// expert (model/flow_network.hpp), whose layers are all joint ones.
// pi0.5: the time goes into the expert's norms, the state stands in the prompt. pi0: the state is a token of the suffix, the time
// is mixed into the actions' tokens. Reference: openpi's pi0_pytorch.py and lerobot's modeling_pi05.py; what of them is reproduced
// although one would not expect it stands in docs/vla_models.md.
//
// The heads of reinforcement learning are RLinf's (openpi_action_model.py); its value head (value_after_vlm) reads the mean over the
// cameras that are there and all of the text, its padding included.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/silu.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/members.hpp"
#include "dvla/model/flow_network.hpp"

namespace dvla::detail {

/// All extents. The defaults are those of the published checkpoints.
struct Pi0Shape {
  bool state_token = false;  ///< pi0; pi0.5 has none
  std::int64_t views = 3, text = 200, horizon = 50, actions = 32;
  std::int64_t vocabulary = 257152;
  double shortest_period = 4e-3, longest_period = 4;
  parts::VisionShape vision{.width = 1152, .layers = 27, .heads = 16, .mlp = 4304, .image = 224, .patch = 14};
  parts::DecoderShape language{.width = 2048,
                               .layers = 18,
                               .mlp = 16384,
                               .heads = 8,
                               .kv_heads = 1,
                               .head_width = 256,
                               .activation = layers::Activation::gelu_tanh,
                               .norm_offset = 1};
  parts::DecoderShape expert{.width = 1024,
                             .layers = 18,
                             .mlp = 4096,
                             .heads = 8,
                             .kv_heads = 1,
                             .head_width = 256,
                             .activation = layers::Activation::gelu_tanh,
                             .norm_offset = 1,
                             .condition = 1024};
  std::vector<std::int64_t> value{1024, 512, 256};  ///< widths within a value head, where one is asked for
  std::vector<std::int64_t> noise{};                ///< within a noise head; empty: there is none
};

class Pi0Network final : public FlowNetwork<Pi0Shape> {
 public:
  /// Declares everything and makes no tensor; `all` must outlive this. `expert_alone`: the vision-language model is frozen.
  Pi0Network(const Pi0Shape& shape, Parameters& all, bool expert_alone = false, const ValueHead& value = {})
      : FlowNetwork(shape, all, expert_alone, value) {
    const std::string inner = "paligemma_with_expert.", language = inner + "paligemma.model.language_model";
    const std::int64_t e = shape.expert.width, D = shape.actions;
    declare_tower(inner + "paligemma.model.vision_tower.vision_model");
    all.declare_linear(inner + "paligemma.model.multi_modal_projector.linear", shape.language.width,
                       shape.vision.width, projector_, parts::matrix(shape.vision.width), true);
    declare_words(language);
    all.begin_unit();
    all.declare_linear("action_in_proj", e, D, action_in_, parts::matrix(D), true);
    if (shape.state_token) all.declare_linear("state_proj", e, D, state_in_, parts::matrix(D), true);
    const std::string mlp = shape.state_token ? "action_time_mlp_" : "time_mlp_";
    const std::int64_t mlp_in = shape.state_token ? 2 * e : e;
    all.declare_linear(mlp + "in", e, mlp_in, time_in_, parts::matrix(mlp_in), true);
    all.declare_linear(mlp + "out", e, e, time_out_, parts::matrix(e), true);
    declare_layers(language, inner + "gemma_expert.model", "", value);
  }

 private:
  Tokens prefix_tokens(const Inputs& inputs) const override {
    // The tower computes in float32 whatever the rest does, as the reference's.
    Tokens tokens = image_tokens(inputs, at::kFloat, [&](const at::Tensor& features) {
      const at::Tensor x = projector_(features);
      see("projector", x);
      return x;
    });
    // Gemma scales its words, in its own precision.
    const at::Tensor words = at::embedding(words_, inputs.tokens);
    tokens.all.push_back(
        words * at::scalar_tensor(std::sqrt(static_cast<double>(shape_.language.width)), words.options()));
    tokens.valid.push_back(inputs.token_mask);
    return tokens;
  }
  std::pair<at::Tensor, at::Tensor> suffix_tokens(const at::Tensor& actions, const at::Tensor& times,
                                                  const at::Tensor& state) const override {
    if (shape_.state_token) {
      const at::Tensor first = layers::repeated(state_in_(state).unsqueeze(1), actions.size(0));
      return {at::cat({first, timed_actions(actions, times)}, 1).to(precision()), at::Tensor()};
    }
    const at::Tensor condition = at::silu(mixed(time_features(times)));
    see("time_condition", condition);
    return {action_in_(actions).to(precision()), condition};
  }
  /// Every valid token of the prefix, at its place among them. The others get the mean of all, which a value head reads: the
  /// reference has it by masking all alike, which torch's fused attention gives no right gradient; here they ask for nothing.
  Seen seen_by_prefix(const at::Tensor& valid, at::ScalarType type) const override {
    const at::Tensor places = at::cumsum(valid, 1) - 1;
    at::Tensor allowed = valid.unsqueeze(1) & valid.unsqueeze(2), asks;
    if (judges_) {
      allowed = allowed | valid.logical_not().unsqueeze(2);
      asks = valid.unsqueeze(1).unsqueeze(3).to(type);
    }
    return {layers::rotary(places, shape_.language.head_width, shape_.language.theta, type),
            layers::additive_mask(allowed, type), asks};
  }
  /// Those, and the suffix: the actions all of it, pi0's state only itself. Places go on from the prefix's.
  SeenBySuffix seen_by_suffix(const at::Tensor& valid_prefix, const at::Tensor& s) const override {
    const std::int64_t m = s.size(0), T = s.size(1);
    const at::Tensor valid = layers::repeated(valid_prefix, m);
    const at::Tensor places =
        valid.sum(1, /*keepdim=*/true) + at::arange(T, valid.options().dtype(at::kLong));
    at::Tensor own = at::ones({m, T, T}, valid.options());
    if (shape_.state_token) own.select(1, 0).narrow(1, 1, T - 1).fill_(false);
    const at::Tensor allowed = at::cat({valid.unsqueeze(1).expand({m, T, valid.size(1)}), own}, 2);
    return {{layers::rotary(places, shape_.expert.head_width, shape_.expert.theta, s.scalar_type()),
             layers::additive_mask(allowed, s.scalar_type())}};
  }
  at::Tensor counted(const at::Tensor& valid) const override {
    at::Tensor all = valid.clone();
    all.narrow(1, all.size(1) - shape_.text, shape_.text).fill_(true);
    return all;
  }

  Linear projector_, state_in_;
};

}  // namespace dvla::detail

template <std::same_as<dvla::detail::Pi0Shape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::state_token, &K::views, &K::text, &K::horizon, &K::actions, &K::vocabulary,
                    &K::shortest_period, &K::longest_period, &K::vision, &K::language, &K::expert, &K::value,
                    &K::noise> {};
