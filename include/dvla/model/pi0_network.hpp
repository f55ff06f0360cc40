// The network of pi0.5 and pi0 (Physical Intelligence; arXiv 2504.16054, 2410.24164): PaliGemma (SigLIP and a Gemma) reads
// images and a prompt, the prefix; an action expert, a smaller Gemma of as many layers, turns noisy actions into a velocity, the
// suffix. Both have a layer's keys and values side by side in one attention: prefix tokens see the prefix, suffix
// tokens see both. So the prefix is run once, and a denoising step runs the expert over its keys and values.
// pi0.5: the time goes into the expert's norms, the state stands in the prompt. pi0: the state is a token, the time is mixed
// into the actions' tokens. Reference: openpi's pi0_pytorch.py and lerobot's modeling_pi05.py; what of them is reproduced
// although one would not expect it stands in docs/vla_models.md.
//
// Reinforcement learning may put two heads beside it, both as RLinf has them (openpi_action_model.py): a value head that reads
// the prefix (value_after_vlm: Gemma's last output, the mean over the cameras that are there and all of the text, its padding
// included), and a noise head that reads what the velocity is made of and says how wide a step's noise is.
//
// Units: SigLIP's embedding and layers; its norm, the projector and the word embedding; what turns actions, time and state into
// tokens; a layer of Gemma and the expert's of the same number; the expert's norm, the projection to actions and the noise head.
// With a value head one more: what it alone reads, which is Gemma's last layer but for its keys and values, and the norm at
// the end, and the head itself.
//
// What nobody reads is not computed: the prefix of the last layer but for its keys and values, and a camera that no row has.
//
// Legend: n rows, V views, S prefix tokens, H horizon, D action dimensions, T suffix tokens (H, and one more in pi0), m rows of the
// suffix: n, or several of each decision, one behind the other.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/members.hpp"
#include "dvla/model/layers/masked_mean.hpp"
#include "dvla/model/layers/time_features.hpp"
#include "dvla/model/parameters.hpp"
#include "dvla/model/parts/apart_mlp.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/parts/siglip.hpp"

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

class Pi0Network {
 public:
  /// What a decision is made from.
  struct Inputs {
    std::vector<at::Tensor> images;  ///< V of [n, 3, image, image], float32 in [-1, 1]
    at::Tensor image_mask;           ///< [n, V], bool: which rows have them
    at::Tensor tokens, token_mask;   ///< [n, text], int64 and bool
    at::Tensor state;                ///< [n, D], float32; pi0 alone
  };
  /// What the rest of Gemma's last layer is computed of: its stream, the same normalised, keys and values.
  struct Ending {
    at::Tensor x, in, key, value;
  };
  /// What the suffix sees of it, and with a value head what that does.
  struct Prefix {
    std::vector<std::pair<at::Tensor, at::Tensor>> layers;  ///< keys and values, [n, g, S, k]
    at::Tensor valid;                                       ///< [n, S], bool
    at::Tensor state;                                       ///< as in Inputs
    Ending ending{};
  };
  /// Is told of activations by name, as the recorded ones are called (test/golden/model); for comparisons.
  using Watch = std::function<void(const std::string&, const at::Tensor&)>;

  /// Declares everything and makes no tensor; `all` must outlive this. `expert_alone`: the vision-language model is frozen.
  Pi0Network(const Pi0Shape& shape, Parameters& all, bool expert_alone = false, const ValueHead& value = {})
      : shape_(shape), all_(all), judges_(value.values > 0), expert_alone_(expert_alone) {
    declare(expert_alone, value);
  }

  const Pi0Shape& shape() const { return shape_; }
  void watch(Watch watch) { watch_ = std::move(watch); }

  Prefix prefix(const Inputs& inputs) const {
    auto [x, prefix] = embed_prefix(inputs);
    const Seen seen = seen_by_prefix(prefix.valid, x.scalar_type());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      prefix.layers.push_back(prefix_layer(i, x, seen, judges_ ? &prefix.ending : nullptr));
    }
    return prefix;
  }

  /// The velocity [m, H, D], float32, at the actions x [m, H, D] and times [m], float32; with a noise head [m, H, 2 D]: behind a
  /// step's velocities what it says of their noise, of any size.
  at::Tensor velocity(const Prefix& prefix, const at::Tensor& x, const at::Tensor& times) const {
    auto [s, condition] = embed_suffix(x, times, prefix.state);
    const Seen seen = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      s = suffix_layer(i, s, condition, prefix.layers[i], seen);
    }
    all_.before(end_unit());
    return end(s, condition);
  }

  /// Values [n, V], float32. Only with a value head.
  at::Tensor values(const Prefix& prefix) const {
    return judged(prefix.ending, prefix.valid, seen_by_prefix(prefix.valid, precision()));
  }
  /// The same as a pass of its own, each unit that it needs used once.
  at::Tensor values(const Inputs& inputs) const {
    auto [x, prefix] = embed_prefix(inputs);
    const Seen seen = seen_by_prefix(prefix.valid, x.scalar_type());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      (void)prefix_layer(i, x, seen, &prefix.ending);
      all_.after(layer_unit(i), {});
    }
    return judged(prefix.ending, prefix.valid, seen);
  }

  /// Both, layer by layer, for a backward pass: each unit is used once. `values`: where they go, if they are asked for.
  at::Tensor forward(const Inputs& inputs, const at::Tensor& actions, const at::Tensor& times,
                     at::Tensor* values = nullptr) const {
    auto [x, prefix] = embed_prefix(inputs);
    auto [s, condition] = embed_suffix(actions, times, inputs.state);
    all_.after(suffix_unit(), {s, condition});
    const Seen by_prefix = seen_by_prefix(prefix.valid, x.scalar_type()),
               by_suffix = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const bool last = i + 1 == layers_.size(), ends = last && values != nullptr;
      const auto made = all_.layer(
          layer_unit(i),
          [this, i, last, ends, by_prefix, by_suffix](const auto& in) {
            at::Tensor stream = in[0];
            Ending ending;
            const auto kv = prefix_layer(i, stream, by_prefix, ends ? &ending : nullptr);
            std::vector all{suffix_layer(i, in[1], in[2], kv, by_suffix)};
            if (ends) all.insert(all.end(), {ending.in, ending.key, ending.value});
            if (!last) all.push_back(stream);
            return all;
          },
          {x, s, condition},
          // Beside a frozen language model the prefix is the same whatever trains.
          expert_alone_ && !x.requires_grad() ? 1 : Parameters::none);
      s = made[0];
      if (ends) prefix.ending = {x, made[1], made[2], made[3]};
      if (!last) x = made[1];
    }
    all_.before(end_unit());
    const at::Tensor v = end(s, condition);
    all_.after(end_unit(), {v});
    if (values != nullptr)
      *values = judged(prefix.ending, prefix.valid, by_prefix);
    else if (judges_)
      all_.pass_by(value_unit());
    return v;
  }
  /// A backward pass of such a forward begins, of one that gave values or of one that gave none.
  void backward_begins(bool of_values) const {
    all_.backward_begins(judges_ && !of_values ? value_unit() : Parameters::none);
  }

 private:
  struct Layer {
    parts::DecoderLayer language, expert;
  };
  /// What tokens of one part see: where they stand, and what they must not look at. `asks`: which of them ask for anything,
  /// [n, 1, T, 1], or undefined: all.
  struct Seen {
    layers::Rotary rotary;
    at::Tensor mask, asks{};
  };

  std::size_t text_unit() const { return vision_.units(); }
  std::size_t suffix_unit() const { return vision_.units() + 1; }
  std::size_t layer_unit(std::size_t i) const { return vision_.units() + 2 + i; }
  std::size_t end_unit() const { return layer_unit(layers_.size()); }
  std::size_t value_unit() const { return end_unit() + 1; }
  void see(const std::string& name, const at::Tensor& value) const {
    if (watch_) watch_(name, value);
  }

  void declare(bool expert_alone, const ValueHead& value) {
    const std::string inner = "paligemma_with_expert.",
                      tower = inner + "paligemma.model.vision_tower.vision_model",
                      language = inner + "paligemma.model.language_model",
                      expert = inner + "gemma_expert.model";
    const std::int64_t d = shape_.language.width, e = shape_.expert.width, D = shape_.actions;
    all_.freeze(expert_alone);
    vision_.declare(all_, tower, shape_.vision);
    all_.begin_unit();
    vision_.declare_end(all_, tower);
    all_.declare_linear(inner + "paligemma.model.multi_modal_projector.linear", d, shape_.vision.width,
                        projector_, parts::matrix(shape_.vision.width), true);
    all_.declare(language + ".embed_tokens.weight", {shape_.vocabulary, d}, words_,
                 {0, 1 / std::sqrt(static_cast<double>(d))});
    all_.freeze(false);
    all_.begin_unit();
    all_.declare_linear("action_in_proj", e, D, action_in_, parts::matrix(D), true);
    if (shape_.state_token) {
      all_.declare_linear("state_proj", e, D, state_in_, parts::matrix(D), true);
      all_.declare_linear("action_time_mlp_in", e, 2 * e, time_in_, parts::matrix(2 * e), true);
      all_.declare_linear("action_time_mlp_out", e, e, time_out_, parts::matrix(e), true);
    } else {
      all_.declare_linear("time_mlp_in", e, e, time_in_, parts::matrix(e), true);
      all_.declare_linear("time_mlp_out", e, e, time_out_, parts::matrix(e), true);
    }
    layers_.resize(static_cast<std::size_t>(shape_.language.layers));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.begin_unit();
      all_.freeze(expert_alone);
      const std::string at = ".layers." + std::to_string(i);
      if (i + 1 < layers_.size())
        layers_[i].language.declare(all_, language + at, shape_.language);
      else
        layers_[i].language.declare_keys(all_, language + at, shape_.language);
      all_.freeze(false);
      layers_[i].expert.declare(all_, expert + at, shape_.expert);
    }
    all_.begin_unit();
    expert_norm_.declare(all_, expert + ".norm", shape_.expert);
    all_.declare_linear("action_out_proj", D, e, action_out_, parts::matrix(e), true);
    if (!shape_.noise.empty())
      noise_head_.declare(all_, "noise_head", e, shape_.noise, D, {.activation = &at::tanh, .stream = 2});
    if (judges_) all_.begin_unit();
    all_.freeze(expert_alone || !judges_);  // nobody else reads what Gemma ends with
    layers_.back().language.declare_rest(all_, language + ".layers." + std::to_string(layers_.size() - 1),
                                         shape_.language);
    language_norm_.declare(all_, language + ".norm", shape_.language);
    all_.freeze(false);
    if (judges_)
      value_head_.declare(all_, "value_head", d, shape_.value, value.values, {.activation = &at::relu},
                          value.group);
  }

  /// The prefix's tokens [n, S, d] in the precision that Gemma computes in, and its mask; no keys yet.
  std::pair<at::Tensor, Prefix> embed_prefix(const Inputs& inputs) const {
    std::vector<at::Tensor> tokens, valid;
    const std::vector<std::int64_t> there = parts::SigLip::present(inputs.image_mask);
    // The tower computes in float32 whatever the rest does, as the reference's.
    at::Tensor x =
        vision_.through(all_, inputs.images, there, at::kFloat,
                        [&](const std::string& name, const at::Tensor& value) { see(name, value); });
    all_.before(text_unit());
    if (x.defined()) {
      x = vision_.end(x);
      see("vision.output", x);
      x = projector_(x);
      see("projector", x);
      const auto n = inputs.tokens.size(0);
      for (std::size_t i = 0; i < there.size(); ++i) {
        tokens.push_back(x.narrow(0, static_cast<std::int64_t>(i) * n, n).to(precision()));
        valid.push_back(inputs.image_mask.select(1, there[i]).unsqueeze(1).expand({n, x.size(1)}));
      }
    }
    // Gemma scales its words, in its own precision.
    const at::Tensor words = at::embedding(words_, inputs.tokens);
    tokens.push_back(
        words * at::scalar_tensor(std::sqrt(static_cast<double>(shape_.language.width)), words.options()));
    valid.push_back(inputs.token_mask);
    Prefix prefix{.layers = {}, .valid = at::cat(valid, 1), .state = inputs.state};
    const at::Tensor all = at::cat(tokens, 1);
    see("prefix.embedding", all);
    all_.after(text_unit(), {all});
    return {all, prefix};
  }

  /// The suffix's tokens [n, T, e], and what the expert's norms adapt to, [n, e] in float32, or nothing.
  std::pair<at::Tensor, at::Tensor> embed_suffix(const at::Tensor& actions, const at::Tensor& times,
                                                 const at::Tensor& state) const {
    all_.before(suffix_unit());
    const at::Tensor time =
        layers::time_features(times, shape_.expert.width, shape_.shortest_period, shape_.longest_period);
    const auto mixed = [&](const at::Tensor& x) { return time_out_(at::silu(time_in_(x))); };
    const at::Tensor noisy = action_in_(actions);
    if (shape_.state_token) {
      const at::Tensor spread = time.unsqueeze(1).expand({-1, noisy.size(1), -1});
      const at::Tensor tokens = mixed(at::cat({noisy, spread}, 2));
      const at::Tensor all =
          at::cat({layers::repeated(state_in_(state).unsqueeze(1), noisy.size(0)), tokens}, 1)
              .to(precision());
      see("suffix.embedding", all);
      return {all, at::Tensor()};
    }
    const at::Tensor condition = at::silu(mixed(time)), all = noisy.to(precision());
    see("suffix.embedding", all);
    see("time_condition", condition);
    return {all, condition};
  }

  /// Every valid token of the prefix, at its place among them. The others get the mean of all, which a value head reads: the
  /// reference has it by masking all alike, which torch's fused attention gives no right gradient; here they ask for nothing.
  Seen seen_by_prefix(const at::Tensor& valid, at::ScalarType type) const {
    const at::Tensor places = at::cumsum(valid, 1) - 1;
    at::Tensor allowed = valid.unsqueeze(1) & valid.unsqueeze(2), asks;
    if (judges_) {
      allowed = allowed | valid.logical_not().unsqueeze(2);
      asks = valid.unsqueeze(1).unsqueeze(3).to(type);
    }
    return {layers::rotary(places, shape_.language.head_width, shape_.language.theta, type),
            layers::additive_mask(allowed, type), asks};
  }
  static at::Tensor attended(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const Seen& seen) {
    return layers::attention(seen.asks.defined() ? query * seen.asks : query, key, value, seen.mask);
  }
  /// Those, and the suffix: the actions all of it, pi0's state only itself. Places go on from the prefix's.
  Seen seen_by_suffix(const at::Tensor& valid_prefix, const at::Tensor& s) const {
    const std::int64_t n = s.size(0), T = s.size(1);
    const at::Tensor valid = layers::repeated(valid_prefix, n);
    const at::Tensor places =
        valid.sum(1, /*keepdim=*/true) + at::arange(T, valid.options().dtype(at::kLong));
    at::Tensor own = at::ones({n, T, T}, valid.options());
    if (shape_.state_token) own.select(1, 0).narrow(1, 1, T - 1).fill_(false);
    const at::Tensor allowed = at::cat({valid.unsqueeze(1).expand({n, T, valid.size(1)}), own}, 2);
    return {layers::rotary(places, shape_.expert.head_width, shape_.expert.theta, s.scalar_type()),
            layers::additive_mask(allowed, s.scalar_type())};
  }

  /// Gemma's layer i: its keys and values, and `x` is the residual stream behind it, but for the last layer's, which at most a
  /// value head reads: in its place there is `ending`, if it is asked for.
  std::pair<at::Tensor, at::Tensor> prefix_layer(std::size_t i, at::Tensor& x, const Seen& seen,
                                                 Ending* ending) const {
    const parts::DecoderLayer& layer = layers_[i].language;
    const bool last = i + 1 == layers_.size(), read = !last || watch_;
    const auto own = layer.project(x, seen.rotary, {}, shape_.language, !read);
    if (last && ending != nullptr) *ending = {x, own.in, own.key, own.value};
    if (read) {
      const at::Tensor mixed = attended(own.query, own.key, own.value, seen);
      x = layer.finish(x, mixed, {}, {}, shape_.language);
      see("prefix.layer." + std::to_string(i), x);
    }
    return {own.key, own.value};
  }
  /// The rest of Gemma's last layer, and the values [n, V] of it.
  at::Tensor judged(const Ending& ending, const at::Tensor& valid, const Seen& seen) const {
    all_.before(value_unit());
    const parts::DecoderLayer& layer = layers_.back().language;
    const at::Tensor query = layer.ask_later(ending.in, seen.rotary, shape_.language);
    const at::Tensor mixed = attended(query, ending.key, ending.value, seen);
    const at::Tensor x = layer.finish(ending.x, mixed, {}, {}, shape_.language);
    at::Tensor counted = valid.clone();
    counted.narrow(1, counted.size(1) - shape_.text, shape_.text).fill_(true);
    const at::Tensor read = layers::masked_mean(language_norm_(x, {}, shape_.language).first, counted);
    see("value.input", read);
    const at::Tensor values = value_head_(read);
    all_.after(value_unit(), {values});
    return values;
  }
  /// The expert's layer i behind the prefix's keys and values.
  at::Tensor suffix_layer(std::size_t i, const at::Tensor& s, const at::Tensor& condition,
                          const std::pair<at::Tensor, at::Tensor>& prefix, const Seen& seen) const {
    const parts::DecoderLayer& layer = layers_[i].expert;
    const auto own = layer.project(s, seen.rotary, condition, shape_.expert);
    const std::int64_t m = s.size(0);
    const at::Tensor mixed =
        layers::attention(own.query, at::cat({layers::repeated(prefix.first, m), own.key}, 2),
                          at::cat({layers::repeated(prefix.second, m), own.value}, 2), seen.mask);
    const at::Tensor y = layer.finish(s, mixed, own.gate, condition, shape_.expert);
    see("suffix.layer." + std::to_string(i), y);
    return y;
  }
  at::Tensor end(const at::Tensor& s, const at::Tensor& condition) const {
    const at::Tensor y = expert_norm_(s, condition, shape_.expert).first;  // its gate is for nothing
    see("suffix.norm", y);
    const at::Tensor read = y.narrow(1, y.size(1) - shape_.horizon, shape_.horizon).to(at::kFloat);
    return shape_.noise.empty() ? action_out_(read) : at::cat({action_out_(read), noise_head_(read)}, 2);
  }
  at::ScalarType precision() const { return words_.scalar_type(); }

  Pi0Shape shape_;
  Parameters& all_;
  bool judges_;        ///< there is a value head
  bool expert_alone_;  ///< the vision-language model is frozen
  parts::SigLip vision_;
  Linear projector_, action_in_, action_out_, state_in_, time_in_, time_out_;
  at::Tensor words_;
  std::vector<Layer> layers_;
  parts::DecoderNorm language_norm_, expert_norm_;
  parts::ApartMlp value_head_, noise_head_;
  Watch watch_;
};

}  // namespace dvla::detail

template <std::same_as<dvla::detail::Pi0Shape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::state_token, &K::views, &K::text, &K::horizon, &K::actions, &K::vocabulary,
                    &K::shortest_period, &K::longest_period, &K::vision, &K::language, &K::expert, &K::value,
                    &K::noise> {};
