// The network of SmolVLA (Shukor et al., arXiv 2506.01844): the first half of SmolVLM2 (SigLIP, a connector and a SmolLM2) reads
// images, a prompt and the state, the prefix; an action expert of as many layers and three quarters of the width turns noisy
// actions into a velocity, the suffix. Every second layer is a joint one: the expert's keys and values stand behind the prefix's,
// as in pi0. In the others the expert looks at the prefix alone, whose keys and values it makes its own from the language
// model's of that layer. So the prefix is run once, and a denoising step runs the expert over its keys and values.
// Actions see those before them, and not those behind. Reference: lerobot's modeling_smolvla.py and smolvlm_with_expert.py
// (0.6.1); what of them is reproduced although one would not expect it is said where it is done, with file and line.
//
// Reinforcement learning may put two heads beside it, as beside pi0.5 (model/pi0_network.hpp): a noise head, and a value head that
// reads the prefix. pi0's reads what the expert makes, as a mean over the steps of a denoising chain, which neither an update, that
// makes one step again, nor an observation without a chain can give. No code that trains SmolVLA so is public: the mean is that of
// the valid tokens, whose number is not padding's.
//
// Units: SigLIP's embedding and layers; its norm, the connector, the word embedding and the state's projection; what turns
// actions and time into tokens; a layer of SmolLM2 and the expert's of the same number; the expert's norm, the projection to
// actions and the noise head. With a value head one more: what it alone reads, which is SmolLM2's last layer but for its keys and
// values, and the norm at the end, and the head itself.
//
// What nobody reads is not computed: the prefix of the last layer but for its keys and values, a camera that no row has, and,
// in a denoising step, the keys and values that the expert makes of the prefix's, which prefix() has made.
//
// Legend: n rows, V views, S prefix tokens, H horizon, D action dimensions, d and e widths of language model and expert, m rows of
// the suffix: n, or several of each decision, one behind the other.
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
#include "dvla/model/layers/patches.hpp"
#include "dvla/model/layers/time_features.hpp"
#include "dvla/model/parameters.hpp"
#include "dvla/model/parts/apart_mlp.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/parts/siglip.hpp"

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

class SmolVlaNetwork {
 public:
  /// What a decision is made from.
  struct Inputs {
    std::vector<at::Tensor> images;  ///< V of [n, 3, image, image], float32 in [-1, 1]
    at::Tensor image_mask;           ///< [n, V], bool: which rows have them
    at::Tensor tokens, token_mask;   ///< [n, up to text], int64 and bool
    at::Tensor state;                ///< [n, states], float32
  };
  /// What the rest of the language model's last layer is computed of: its stream, the same normalised, keys and values.
  struct Ending {
    at::Tensor x, in, key, value;
  };
  /// What the suffix sees of it, and with a value head what that does.
  struct Prefix {
    /// Keys and values, [n, g, S, k]: of a joint layer the language model's, of another the expert's own.
    std::vector<std::pair<at::Tensor, at::Tensor>> layers;
    at::Tensor valid;  ///< [n, S], bool
    Ending ending{};
  };
  /// Is told of activations by name, as the recorded ones are called (test/golden/model); for comparisons.
  using Watch = std::function<void(const std::string&, const at::Tensor&)>;

  /// Declares everything and makes no tensor; `all` must outlive this. `expert_alone`: the vision-language model is frozen;
  /// the state's projection still trains (modeling_smolvla.py:544), so what the prefix holds does not stay.
  SmolVlaNetwork(const SmolVlaShape& shape, Parameters& all, bool expert_alone = false,
                 const ValueHead& value = {})
      : shape_(shape), all_(all), judges_(value.values > 0), expert_alone_(expert_alone) {
    declare(expert_alone, value);
  }

  const SmolVlaShape& shape() const { return shape_; }
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
    at::Tensor s = embed_suffix(x, times);
    const SeenBySuffix seen = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      s = suffix_layer(i, s, prefix.layers[i], seen);
    }
    all_.before(end_unit());
    return end(s);
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
    at::Tensor s = embed_suffix(actions, times);
    all_.after(suffix_unit(), {s});
    const Seen by_prefix = seen_by_prefix(prefix.valid, x.scalar_type());
    const SeenBySuffix by_suffix = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const bool last = i + 1 == layers_.size(), ends = last && values != nullptr;
      const auto made = all_.layer(
          layer_unit(i),
          [this, i, last, ends, by_prefix, by_suffix](const auto& in) {
            at::Tensor stream = in[0];
            Ending ending;
            const auto kv = prefix_layer(i, stream, by_prefix, ends ? &ending : nullptr);
            std::vector all{suffix_layer(i, in[1], kv, by_suffix)};
            if (ends) all.insert(all.end(), {ending.in, ending.key, ending.value});
            if (!last) all.push_back(stream);
            return all;
          },
          {x, s},
          // Beside a frozen language model the prefix is the same whatever trains.
          expert_alone_ && !x.requires_grad() ? 1 : Parameters::none);
      s = made[0];
      if (ends) prefix.ending = {x, made[1], made[2], made[3]};
      if (!last) x = made[1];
    }
    all_.before(end_unit());
    const at::Tensor v = end(s);
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
  /// What tokens of one part see: where they stand, and what they must not look at.
  struct Seen {
    layers::Rotary rotary;
    at::Tensor mask;
  };
  struct SeenBySuffix {
    Seen joint, across;
  };

  std::size_t text_unit() const { return vision_.units(); }
  std::size_t suffix_unit() const { return vision_.units() + 1; }
  std::size_t layer_unit(std::size_t i) const { return vision_.units() + 2 + i; }
  std::size_t end_unit() const { return layer_unit(layers_.size()); }
  std::size_t value_unit() const { return end_unit() + 1; }
  bool joint(std::size_t i) const { return shape_.joint(static_cast<std::int64_t>(i)); }
  bool last(std::size_t i) const { return i + 1 == layers_.size(); }
  void see(const std::string& name, const at::Tensor& value) const {
    if (watch_) watch_(name, value);
  }

  void declare(bool expert_alone, const ValueHead& value) {
    const std::string both = "model.vlm_with_expert.", tower = both + "vlm.model.vision_model",
                      language = both + "vlm.model.text_model", expert = both + "lm_expert";
    const std::int64_t d = shape_.language.width, e = shape_.expert.width, D = shape_.actions,
                       shuffled = shape_.vision.width * shape_.shuffle * shape_.shuffle,
                       kv = shape_.language.kv_heads * shape_.language.head_width;
    all_.freeze(expert_alone);
    vision_.declare(all_, tower, shape_.vision);
    all_.begin_unit();
    vision_.declare_end(all_, tower);
    all_.declare_linear(both + "vlm.model.connector.modality_projection.proj", d, shuffled, connector_,
                        parts::matrix(shuffled));
    all_.declare(language + ".embed_tokens.weight", {shape_.vocabulary, d}, words_,
                 {0, 1 / std::sqrt(static_cast<double>(d))});
    all_.freeze(false);
    all_.declare_linear("model.state_proj", d, shape_.states, state_in_, parts::matrix(shape_.states), true);
    all_.begin_unit();
    all_.declare_linear("model.action_in_proj", e, D, action_in_, parts::matrix(D), true);
    all_.declare_linear("model.action_time_mlp_in", e, 2 * e, time_in_, parts::matrix(2 * e), true);
    all_.declare_linear("model.action_time_mlp_out", e, e, time_out_, parts::matrix(e), true);
    layers_.resize(static_cast<std::size_t>(shape_.language.layers));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::string at = ".layers." + std::to_string(i);
      all_.begin_unit();
      all_.freeze(expert_alone);
      if (last(i))
        layers_[i].language.declare_keys(all_, language + at, shape_.language);
      else
        layers_[i].language.declare(all_, language + at, shape_.language);
      all_.freeze(false);
      // Across, keys and values are projected twice: by the language model, then by the expert
      // (smolvlm_with_expert.py:127).
      layers_[i].expert.declare(all_, expert + at, shape_.expert, joint(i) ? 0 : kv);
    }
    all_.begin_unit();
    expert_norm_.declare(all_, expert + ".norm", shape_.expert);
    all_.declare_linear("model.action_out_proj", D, e, action_out_, parts::matrix(e), true);
    if (!shape_.noise.empty())
      noise_head_.declare(all_, "noise_head", e, shape_.noise, D, {.activation = &at::tanh, .stream = 2});
    if (judges_) all_.begin_unit();
    all_.freeze(expert_alone || !judges_);  // nobody else reads what the language model ends with
    layers_.back().language.declare_rest(all_, language + ".layers." + std::to_string(layers_.size() - 1),
                                         shape_.language);
    language_norm_.declare(all_, language + ".norm", shape_.language);
    all_.freeze(false);
    if (judges_)
      value_head_.declare(all_, "value_head", d, shape_.value, value.values, {.activation = &at::relu},
                          value.group);
  }

  /// The prefix's tokens [n, S, d] in the precision that the language model computes in, and its mask; no keys yet.
  std::pair<at::Tensor, Prefix> embed_prefix(const Inputs& inputs) const {
    std::vector<at::Tensor> tokens, valid;
    const std::int64_t n = inputs.tokens.size(0);
    const std::vector<std::int64_t> there = parts::SigLip::present(inputs.image_mask);
    // The tower has the weights' precision (smolvlm_with_expert.py:208), in which pi0.5's has float32. A patch's position is
    // looked up by its fraction of a side (modeling_smolvlm.py:126), which at the published 32 patches a side is its own
    // place.
    at::Tensor x =
        vision_.through(all_, inputs.images, there, precision(),
                        [&](const std::string& name, const at::Tensor& value) { see(name, value); });
    all_.before(text_unit());
    const double root = std::sqrt(static_cast<double>(shape_.language.width));
    if (x.defined()) {
      x = vision_.end(x);
      see("vision.output", x);
      x = connector_(layers::blocks_of_patches(x, shape_.vision.image / shape_.vision.patch, shape_.shuffle));
      see("connector", x);
      // Images are scaled as words are, by a root that is rounded to their precision (modeling_smolvla.py:585) ..
      x = x * at::scalar_tensor(root, x.options());
      for (std::size_t i = 0; i < there.size(); ++i) {
        tokens.push_back(x.narrow(0, static_cast<std::int64_t>(i) * n, n));
        valid.push_back(inputs.image_mask.select(1, there[i]).unsqueeze(1).expand({n, x.size(1)}));
      }
    }
    // .. and the words' is not (modeling_smolvla.py:611). The state is not scaled.
    tokens.push_back(at::embedding(words_, inputs.tokens) * root);
    valid.push_back(inputs.token_mask);
    tokens.push_back(state_in_(inputs.state).unsqueeze(1).to(precision()));
    valid.push_back(at::ones({n, 1}, inputs.token_mask.options()));
    const at::Tensor all = at::cat(tokens, 1);
    see("prefix.embedding", all);
    all_.after(text_unit(), {all});
    return {all, Prefix{.layers = {}, .valid = at::cat(valid, 1)}};
  }

  /// The suffix's tokens [n, H, e]: an action and the time, mixed. Rounded here; in the reference the first residual
  /// that is added to them in place rounds them (smolvlm_with_expert.py:485).
  at::Tensor embed_suffix(const at::Tensor& actions, const at::Tensor& times) const {
    all_.before(suffix_unit());
    const at::Tensor noisy = action_in_(actions);
    const at::Tensor time =
        layers::time_features(times, shape_.expert.width, shape_.shortest_period, shape_.longest_period);
    const at::Tensor spread = time.unsqueeze(1).expand({-1, noisy.size(1), -1});
    const at::Tensor all = time_out_(at::silu(time_in_(at::cat({noisy, spread}, 2)))).to(precision());
    see("suffix.embedding", all);
    return all;
  }

  // The reference puts float32's lowest number in the place of masked scores (smolvlm_with_expert.py:549); what
  // additive_mask() adds has the same softmax, that of a token which may see none included. Rotations are made in
  // float32 and rounded (smolvlm_with_expert.py:48, 64).

  /// Images and words see one another, the state sees all. A token stands at its place among the valid ones, those
  /// before the first at -1 (modeling_smolvla.py:748).
  Seen seen_by_prefix(const at::Tensor& valid, at::ScalarType type) const {
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
  SeenBySuffix seen_by_suffix(const at::Tensor& valid_prefix, const at::Tensor& s) const {
    const std::int64_t n = s.size(0), T = s.size(1);
    const at::Tensor valid = layers::repeated(valid_prefix, n);
    const at::Tensor places = at::arange(T, valid.options().dtype(at::kLong)).unsqueeze(0);
    const at::Tensor earlier = at::ones({T, T}, valid.options()).tril();
    const at::Tensor allowed = at::cat(
        {valid.unsqueeze(1).expand({n, T, valid.size(1)}), earlier.unsqueeze(0).expand({n, T, T})}, 2);
    const auto rotary = [&](const at::Tensor& of) {
      return layers::rotary(of, shape_.expert.head_width, shape_.expert.theta, at::kFloat);
    };
    return {
        {rotary(valid.sum(1, /*keepdim=*/true) + places), layers::additive_mask(allowed, s.scalar_type())},
        {rotary(places), layers::additive_mask(valid.unsqueeze(1), s.scalar_type())}};
  }

  /// The language model's layer i: what the expert sees of it, and `x` is the residual stream behind it, but for the
  /// last layer's, which at most a value head reads: in its place there is `ending`, if it is asked for.
  std::pair<at::Tensor, at::Tensor> prefix_layer(std::size_t i, at::Tensor& x, const Seen& seen,
                                                 Ending* ending) const {
    const auto& [language, expert] = layers_[i];
    const bool read = !last(i) || watch_;
    const auto own = language.project(x, seen.rotary, {}, shape_.language, !read);
    if (last(i) && ending != nullptr) *ending = {x, own.in, own.key, own.value};
    if (read) {
      const at::Tensor mixed = layers::attention(own.query, own.key, own.value, seen.mask);
      x = language.finish(x, mixed, {}, {}, shape_.language);
      see("prefix.layer." + std::to_string(i), x);
    }
    // Across, the expert makes its keys of keys that are rotated already (smolvlm_with_expert.py:361).
    return joint(i) ? std::pair(own.key, own.value) : expert.made_of(own.key, own.value, shape_.expert);
  }
  /// The rest of the language model's last layer, and the values [n, V] of it.
  at::Tensor judged(const Ending& ending, const at::Tensor& valid, const Seen& seen) const {
    all_.before(value_unit());
    const parts::DecoderLayer& layer = layers_.back().language;
    const at::Tensor query = layer.ask_later(ending.in, seen.rotary, shape_.language);
    const at::Tensor mixed = layers::attention(query, ending.key, ending.value, seen.mask);
    const at::Tensor x = layer.finish(ending.x, mixed, {}, {}, shape_.language);
    const at::Tensor read = layers::masked_mean(language_norm_(x, {}, shape_.language).first, valid);
    see("value.input", read);
    const at::Tensor values = value_head_(read);
    all_.after(value_unit(), {values});
    return values;
  }
  /// The expert's layer i behind the prefix's keys and values.
  at::Tensor suffix_layer(std::size_t i, const at::Tensor& s, const std::pair<at::Tensor, at::Tensor>& prefix,
                          const SeenBySuffix& by_suffix) const {
    const parts::DecoderLayer& layer = layers_[i].expert;
    const at::Tensor keys = layers::repeated(prefix.first, s.size(0)),
                     values = layers::repeated(prefix.second, s.size(0));
    at::Tensor mixed;
    if (joint(i)) {
      const auto own = layer.project(s, by_suffix.joint.rotary, {}, shape_.expert);
      mixed = layers::attention(own.query, at::cat({keys, own.key}, 2), at::cat({values, own.value}, 2),
                                by_suffix.joint.mask);
    } else {
      const auto own = layer.ask(s, by_suffix.across.rotary, {}, shape_.expert);
      mixed = layers::attention(own.query, keys, values, by_suffix.across.mask);
    }
    const at::Tensor y = layer.finish(s, mixed, {}, {}, shape_.expert);
    see("suffix.layer." + std::to_string(i), y);
    return y;
  }
  at::Tensor end(const at::Tensor& s) const {
    const at::Tensor y = expert_norm_(s, {}, shape_.expert).first;
    see("suffix.norm", y);
    const at::Tensor read = y.to(at::kFloat);
    return shape_.noise.empty() ? action_out_(read) : at::cat({action_out_(read), noise_head_(read)}, 2);
  }
  at::ScalarType precision() const { return words_.scalar_type(); }

  SmolVlaShape shape_;
  Parameters& all_;
  bool judges_;        ///< there is a value head
  bool expert_alone_;  ///< the vision-language model is frozen
  parts::SigLip vision_;
  Linear connector_, state_in_, action_in_, action_out_, time_in_, time_out_;
  at::Tensor words_;
  std::vector<Layer> layers_;
  parts::DecoderNorm language_norm_, expert_norm_;
  parts::ApartMlp value_head_, noise_head_;
  Watch watch_;
};

}  // namespace dvla::detail

template <std::same_as<dvla::detail::SmolVlaShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::views, &K::text, &K::horizon, &K::actions, &K::states, &K::vocabulary, &K::shuffle,
                    &K::joint_every, &K::shortest_period, &K::longest_period, &K::vision, &K::language,
                    &K::expert, &K::value, &K::noise> {};
