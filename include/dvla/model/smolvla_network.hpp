// The network of SmolVLA (Shukor et al., arXiv 2506.01844): the first half of SmolVLM2 (SigLIP, a connector and a SmolLM2), which
// reads the state, too, and an action expert of three quarters of its width (model/flow_network.hpp). Every second layer is a joint
// one; across, the expert makes its keys of keys that are rotated already (lerobot's smolvlm_with_expert.py:361).
// Actions see those before them, and not those behind. Reference: lerobot's modeling_smolvla.py and smolvlm_with_expert.py
// (0.6.1); what of them is reproduced although one would not expect it is said where it is done, with file and line.
//
// pi0's value head in reinforcement learning reads what the expert makes, as a mean over the steps of a denoising chain, which neither
// an update, that makes one step again, nor an observation without a chain can give. No code that trains SmolVLA so is public: here it
// reads the mean of the valid tokens of the prefix, whose number is not padding's.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/members.hpp"
#include "dvla/model/flow_network.hpp"
#include "dvla/model/layers/patches.hpp"

namespace dvla::detail {

/// All extents. The defaults are those of the published checkpoints.
struct SmolVlaShape {
  std::int64_t views = 3, text = 48, horizon = 50, actions = 32, states = 32;
  std::int64_t vocabulary = 49280;
  std::int64_t shuffle = 4;      ///< patches a side that become one token
  std::int64_t joint_every = 2;  ///< layers 0, joint_every, 2 * joint_every .. are joint ones; 0: none is
  double shortest_period = 4e-3, longest_period = 4;
  parts::VisionShape vision{.width = 768, .layers = 12, .heads = 12, .mlp = 3072, .image = 512, .patch = 16};
  // The positions' base is the policy's own 10000 and not the language model's 100000 (smolvlm_with_expert.py:41).
  parts::DecoderShape language{.width = 960,
                               .layers = 16,
                               .mlp = 2560,
                               .heads = 15,
                               .kv_heads = 5,
                               .head_width = 64,
                               .norm_eps = 1e-5};
  parts::DecoderShape expert{.width = 720,
                             .layers = 16,
                             .mlp = 2048,
                             .heads = 15,
                             .kv_heads = 5,
                             .head_width = 64,
                             .norm_eps = 1e-5};
  std::vector<std::int64_t> value{512, 256, 128};  ///< widths within a value head, where one is asked for
  std::vector<std::int64_t> noise{};               ///< within a noise head; empty: there is none
  std::int64_t image_tokens() const { return vision.tokens() / (shuffle * shuffle); }
  bool joint(std::int64_t layer) const { return joint_every > 0 && layer % joint_every == 0; }
};

class SmolVlaNetwork final : public FlowNetwork<SmolVlaShape> {
 public:
  /// Declares everything and makes no tensor; `all` must outlive this. `expert_alone`: the vision-language model is frozen;
  /// the state's projection still trains (modeling_smolvla.py:544), so what the prefix holds does not stay.
  SmolVlaNetwork(const SmolVlaShape& shape, Parameters& all, bool expert_alone = false,
                 const ValueHead& value = {})
      : FlowNetwork(shape, all, expert_alone, value) {
    const std::string both = "model.vlm_with_expert.", language = both + "vlm.model.text_model";
    const std::int64_t d = shape.language.width, e = shape.expert.width, D = shape.actions,
                       shuffled = shape.vision.width * shape.shuffle * shape.shuffle;
    declare_tower(both + "vlm.model.vision_model");
    all.declare_linear(both + "vlm.model.connector.modality_projection.proj", d, shuffled, connector_,
                       parts::matrix(shuffled));
    declare_words(language);
    all.declare_linear("model.state_proj", d, shape.states, state_in_, parts::matrix(shape.states), true);
    all.begin_unit();
    all.declare_linear("model.action_in_proj", e, D, action_in_, parts::matrix(D), true);
    all.declare_linear("model.action_time_mlp_in", e, 2 * e, time_in_, parts::matrix(2 * e), true);
    all.declare_linear("model.action_time_mlp_out", e, e, time_out_, parts::matrix(e), true);
    declare_layers(language, both + "lm_expert", "model.", value);
  }

 private:
  Tokens prefix_tokens(const Inputs& inputs) const override {
    const double root = std::sqrt(static_cast<double>(shape_.language.width));
    // The tower has the weights' precision (smolvlm_with_expert.py:208), in which pi0.5's has float32. A patch's position is
    // looked up by its fraction of a side (modeling_smolvlm.py:126), which at the published 32 patches a side is its own
    // place.
    Tokens tokens = image_tokens(inputs, precision(), [&](const at::Tensor& features) {
      const at::Tensor x = connector_(
          layers::blocks_of_patches(features, shape_.vision.image / shape_.vision.patch, shape_.shuffle));
      see("connector", x);
      // Images are scaled as words are, by a root that is rounded to their precision (modeling_smolvla.py:585) ..
      return x * at::scalar_tensor(root, x.options());
    });
    // .. and the words' is not (modeling_smolvla.py:611). The state is not scaled.
    tokens.all.push_back(at::embedding(words_, inputs.tokens) * root);
    tokens.valid.push_back(inputs.token_mask);
    tokens.all.push_back(state_in_(inputs.state).unsqueeze(1).to(precision()));
    tokens.valid.push_back(at::ones({inputs.tokens.size(0), 1}, inputs.token_mask.options()));
    return tokens;
  }
  /// Rounded here; in the reference the first residual that is added to them in place rounds them
  /// (smolvlm_with_expert.py:485).
  std::pair<at::Tensor, at::Tensor> suffix_tokens(const at::Tensor& actions, const at::Tensor& times,
                                                  const at::Tensor& /*state*/) const override {
    return {timed_actions(actions, times).to(precision()), at::Tensor()};
  }
  bool joint(std::size_t i) const override { return shape_.joint(static_cast<std::int64_t>(i)); }

  // The reference puts float32's lowest number in the place of masked scores (smolvlm_with_expert.py:549); what
  // additive_mask() adds has the same softmax, that of a token which may see none included. Rotations are made in
  // float32 and rounded (smolvlm_with_expert.py:48, 64).

  /// Images and words see one another, the state sees all. A token stands at its place among the valid ones, those
  /// before the first at -1 (modeling_smolvla.py:748).
  Seen seen_by_prefix(const at::Tensor& valid, at::ScalarType type) const override {
    const at::Tensor places = at::cumsum(valid, 1) - 1;
    const at::Tensor allowed = valid.unsqueeze(1) & valid.unsqueeze(2);
    const std::int64_t before = valid.size(1) - 1;
    allowed.narrow(1, 0, before).select(2, before).fill_(false);
    return {layers::rotary(places, shape_.language.head_width, shape_.language.theta, at::kFloat),
            layers::additive_mask(allowed, type)};
  }
  /// The prefix, and in joint layers the suffix up to oneself: each action opens a block of its own
  /// (modeling_smolvla.py:682). There places go on from the prefix's; across they begin at 0 anew, although the
  /// prefix's keys are rotated by theirs (smolvlm_with_expert.py:373).
  SeenBySuffix seen_by_suffix(const at::Tensor& valid_prefix, const at::Tensor& s) const override {
    const std::int64_t m = s.size(0), T = s.size(1);
    const at::Tensor valid = layers::repeated(valid_prefix, m);
    const at::Tensor places = at::arange(T, valid.options().dtype(at::kLong)).unsqueeze(0);
    const at::Tensor earlier = at::ones({T, T}, valid.options()).tril();
    const at::Tensor allowed = at::cat(
        {valid.unsqueeze(1).expand({m, T, valid.size(1)}), earlier.unsqueeze(0).expand({m, T, T})}, 2);
    const auto rotary = [&](const at::Tensor& of) {
      return layers::rotary(of, shape_.expert.head_width, shape_.expert.theta, at::kFloat);
    };
    return {
        {rotary(valid.sum(1, /*keepdim=*/true) + places), layers::additive_mask(allowed, s.scalar_type())},
        {rotary(places), layers::additive_mask(valid.unsqueeze(1), s.scalar_type())}};
  }
  at::Tensor counted(const at::Tensor& valid) const override { return valid; }

  Linear connector_, state_in_;
};

}  // namespace dvla::detail

template <std::same_as<dvla::detail::SmolVlaShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::views, &K::text, &K::horizon, &K::actions, &K::states, &K::vocabulary, &K::shuffle,
                    &K::joint_every, &K::shortest_period, &K::longest_period, &K::vision, &K::language,
                    &K::expert, &K::value, &K::noise> {};
