// What the networks of pi0.5, pi0 and SmolVLA have in common. A vision-language model (SigLIP and a decoder) reads images and a
// prompt, the prefix; an action expert, a smaller decoder of as many layers, turns noisy actions into a velocity, the suffix. Prefix
// tokens see the prefix, suffix tokens see both. In a joint layer the expert's keys and values stand behind the prefix's in one
// attention; in a layer across (SmolVLA) the expert looks at the prefix alone, whose keys and values it makes its own from the
// language model's of that layer. So the prefix is run once, and a denoising step runs the expert over its keys and values.
//
// Reinforcement learning may put two heads beside it: a value head that reads the prefix (the language model's last output, as a mean
// over tokens), and a noise head that reads what the velocity is made of and says how wide a step's noise is.
//
// Units: SigLIP's embedding and layers; its norm, the projector and the word embedding; what turns actions and time into tokens;
// a layer of the language model and the expert's of the same number; the expert's norm, the projection to actions and the noise
// head. With a value head one more: what it alone reads, which is the language model's last layer but for its keys and values,
// and the norm at the end, and the head itself.
//
// What nobody reads is not computed: the prefix of the last layer but for its keys and values, a camera that no row has, and, in a
// denoising step, the keys and values that the expert makes of the prefix's, which prefix() has made.
//
// Legend: n rows, V views, S prefix tokens, H horizon, D action dimensions, T suffix tokens, d and e widths of language model and
// expert, h and g their heads and those with keys, k a head's width, m rows of the suffix: n, or several of each decision, one behind
// the other.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dvla/model/layers/masked_mean.hpp"
#include "dvla/model/layers/time_features.hpp"
#include "dvla/model/parameters.hpp"
#include "dvla/model/parts/apart_mlp.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/parts/siglip.hpp"
#include "dvla/model/watched.hpp"

namespace dvla::detail {

/// `Shape` has the members that Pi0Shape and SmolVlaShape share. A network derives from it, declares its parameters in its constructor
/// (declare_tower, declare_words, the suffix's unit, declare_layers) and says what differs.
template <class Shape>
class FlowNetwork : public Watched {
 public:
  /// What a decision is made from.
  struct Inputs {
    std::vector<at::Tensor> images;  ///< V of [n, 3, image, image], float32 in [-1, 1]
    at::Tensor image_mask;           ///< [n, V], bool: which rows have them
    at::Tensor tokens, token_mask;   ///< [n, up to text], int64 and bool
    at::Tensor state;                ///< [n, numbers of the state], float32; not pi0.5's
  };
  /// What the rest of the language model's last layer is computed of: its stream, the same normalised, keys and values.
  struct Ending {
    at::Tensor x, in, key, value;
  };
  /// What the suffix sees of it, and with a value head what that does.
  struct Prefix {
    /// Keys and values, [n, g, S, k]: of a joint layer the language model's, of one across the expert's own.
    std::vector<std::pair<at::Tensor, at::Tensor>> layers;
    at::Tensor valid;  ///< [n, S], bool
    at::Tensor state;  ///< as in Inputs
    Ending ending{};
    at::Tensor read{};  ///< [n, d], float32: in place of the ending, where settled() has made it
  };

  const Shape& shape() const { return shape_; }

  Prefix prefix(const Inputs& inputs) const {
    auto [x, prefix] = begin_prefix(inputs);
    const Seen seen = seen_by_prefix(prefix.valid, x.scalar_type());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      prefix.layers.push_back(prefix_layer(i, x, seen, judges_ ? &prefix.ending : nullptr));
      all_.after(layer_unit(i), {});
    }
    return prefix;
  }

  /// The velocity [m, H, D], float32, at the actions x [m, H, D] and times [m], float32; with a noise head [m, H, 2 D]: behind a
  /// step's velocities what it says of their noise, of any size.
  at::Tensor velocity(const Prefix& prefix, const at::Tensor& x, const at::Tensor& times) const {
    auto [s, condition] = begin_suffix(x, times, prefix.state);
    const SeenBySuffix seen = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      s = suffix_layer(i, s, condition, prefix.layers[i], seen);
    }
    return end(s, condition);
  }

  /// What stays the same whatever trains beside a frozen vision-language model: of what a value head reads the mean.
  Prefix settled(Prefix prefix) const {
    if (!judges_) return prefix;
    all_.before(value_unit());
    prefix.read = read_by_values(prefix);
    prefix.ending = {};
    all_.after(value_unit(), {});
    return prefix;
  }

  /// Values [n, V], float32. Only with a value head.
  at::Tensor values(const Prefix& prefix) const {
    all_.before(value_unit());
    const at::Tensor read = prefix.read.defined() ? prefix.read : read_by_values(prefix);
    see("value.input", read);
    const at::Tensor values = value_head_(read);
    all_.after(value_unit(), {values});
    return values;
  }
  /// The same as a pass of its own, each unit that it needs used once.
  at::Tensor values(const Inputs& inputs) const { return values(prefix(inputs)); }

  /// Both, layer by layer, for a backward pass: each unit is used once. `values`: where they go, if they are asked for.
  at::Tensor forward(const Inputs& inputs, const at::Tensor& actions, const at::Tensor& times,
                     at::Tensor* values = nullptr) const {
    auto [x, prefix] = begin_prefix(inputs);
    auto [s, condition] = begin_suffix(actions, times, inputs.state);
    const Seen by_prefix = seen_by_prefix(prefix.valid, x.scalar_type());
    const SeenBySuffix by_suffix = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const bool ends = last(i) && values != nullptr;
      const auto made = all_.layer(
          layer_unit(i),
          [this, i, ends, by_prefix, by_suffix](const auto& in) {
            at::Tensor stream = in[0];
            Ending ending;
            const auto kv = prefix_layer(i, stream, by_prefix, ends ? &ending : nullptr);
            std::vector all{suffix_layer(i, in[1], in.size() > 2 ? in[2] : at::Tensor(), kv, by_suffix)};
            if (ends) all.insert(all.end(), {ending.in, ending.key, ending.value});
            if (!last(i)) all.push_back(stream);
            return all;
          },
          condition.defined() ? std::vector{x, s, condition} : std::vector{x, s},
          // Beside a frozen language model the prefix is the same whatever trains.
          expert_alone_ && !x.requires_grad() ? 1 : Parameters::none);
      s = made[0];
      if (ends) prefix.ending = {x, made[1], made[2], made[3]};
      if (!last(i)) x = made[1];
    }
    return end_pass(s, condition, prefix, values);
  }
  /// The same over a prefix that was made before, beside a frozen vision-language model, whose own units are passed by.
  at::Tensor forward(const Prefix& prefix, const at::Tensor& actions, const at::Tensor& times,
                     at::Tensor* values = nullptr) const {
    for (std::size_t unit = 0; unit <= text_unit(); ++unit) all_.pass_by(unit);
    auto [s, condition] = begin_suffix(actions, times, prefix.state);
    const SeenBySuffix seen = seen_by_suffix(prefix.valid, s);
    for (std::size_t i = 0; i < layers_.size(); ++i)
      s = all_.layer(
          layer_unit(i),
          [this, i, kv = prefix.layers[i], seen](const auto& in) {
            return std::vector{suffix_layer(i, in[0], in.size() > 1 ? in[1] : at::Tensor(), kv, seen)};
          },
          condition.defined() ? std::vector{s, condition} : std::vector{s})[0];
    return end_pass(s, condition, prefix, values);
  }
  /// A backward pass of such a forward begins, of one that gave values or of one that gave none.
  void backward_begins(bool of_values) const {
    all_.backward_begins(judges_ && !of_values ? value_unit() : Parameters::none);
  }

 protected:
  /// What tokens of one part see: where they stand, and what they must not look at. `asks`: which of them ask for anything,
  /// [n, 1, T, 1], or undefined: all.
  struct Seen {
    layers::Rotary rotary;
    at::Tensor mask, asks{};
  };
  /// Those of the suffix, in joint layers and in others.
  struct SeenBySuffix {
    Seen joint, across{};
  };
  /// Tokens that stand side by side, each [n, some, d], and which of them are valid, [n, some], bool.
  struct Tokens {
    std::vector<at::Tensor> all, valid;
  };

  /// `all` must outlive this. `expert_alone`: the vision-language model is frozen.
  FlowNetwork(const Shape& shape, Parameters& all, bool expert_alone, const ValueHead& value)
      : shape_(shape), all_(all), judges_(value.values > 0), expert_alone_(expert_alone) {}
  ~FlowNetwork() = default;

  // ---- Declaring, in this order; makes no tensor
  /// The vision tower `name`; what is declared from here on is the text's unit.
  void declare_tower(const std::string& name) {
    all_.freeze(expert_alone_);
    vision_.declare(all_, name, shape_.vision);
    all_.begin_unit();
    vision_.declare_end(all_, name);
  }
  /// The last of the vision-language model in the text's unit.
  void declare_words(const std::string& language) {
    const std::int64_t d = shape_.language.width;
    all_.declare(language + ".embed_tokens.weight", {shape_.vocabulary, d}, words_,
                 {0, 1 / std::sqrt(static_cast<double>(d))});
    all_.freeze(false);
  }
  /// Everything behind the suffix's unit. `head`: before the name of what makes actions.
  void declare_layers(const std::string& language, const std::string& expert, const std::string& head,
                      const ValueHead& value) {
    const std::int64_t d = shape_.language.width, e = shape_.expert.width, D = shape_.actions;
    layers_.resize(static_cast<std::size_t>(shape_.language.layers));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::string at = ".layers." + std::to_string(i);
      all_.begin_unit();
      all_.freeze(expert_alone_);
      if (last(i))
        layers_[i].language.declare_keys(all_, language + at, shape_.language);
      else
        layers_[i].language.declare(all_, language + at, shape_.language);
      all_.freeze(false);
      // Across, keys and values are projected twice: by the language model, then by the expert.
      layers_[i].expert.declare(all_, expert + at, shape_.expert,
                                joint(i) ? 0 : shape_.language.kv_heads * shape_.language.head_width);
    }
    all_.begin_unit();
    expert_norm_.declare(all_, expert + ".norm", shape_.expert);
    all_.declare_linear(head + "action_out_proj", D, e, action_out_, parts::matrix(e), true);
    if (!shape_.noise.empty())
      noise_head_.declare(all_, "noise_head", e, shape_.noise, D, {.activation = &at::tanh, .stream = 2});
    if (judges_) all_.begin_unit();
    all_.freeze(expert_alone_ || !judges_);  // nobody else reads what the language model ends with
    layers_.back().language.declare_rest(all_, language + ".layers." + std::to_string(layers_.size() - 1),
                                         shape_.language);
    language_norm_.declare(all_, language + ".norm", shape_.language);
    all_.freeze(false);
    if (judges_)
      value_head_.declare(all_, "value_head", d, shape_.value, value.values, {.activation = &at::relu},
                          value.group);
  }

  // ---- What networks share of their embeddings
  /// Tokens of the views that any row has, in the precision that the language model computes in: what `project` makes of the
  /// tower's features, which are computed in `type`. The text's unit is used from here on.
  template <class Project>
  Tokens image_tokens(const Inputs& inputs, at::ScalarType type, Project project) const {
    Tokens tokens;
    const std::vector<std::int64_t> there = parts::SigLip::present(inputs.image_mask);
    at::Tensor x =
        vision_.through(all_, inputs.images, there, type,
                        [&](const std::string& name, const at::Tensor& value) { see(name, value); });
    all_.before(text_unit());
    if (!x.defined()) return tokens;
    x = vision_.end(x);
    see("vision.output", x);
    x = project(x);
    const std::int64_t n = inputs.tokens.size(0);
    for (std::size_t i = 0; i < there.size(); ++i) {
      tokens.all.push_back(x.narrow(0, static_cast<std::int64_t>(i) * n, n).to(precision()));
      tokens.valid.push_back(inputs.image_mask.select(1, there[i]).unsqueeze(1).expand({n, x.size(1)}));
    }
    return tokens;
  }
  /// [m, e], float32.
  at::Tensor time_features(const at::Tensor& times) const {
    return layers::time_features(times, shape_.expert.width, shape_.shortest_period, shape_.longest_period);
  }
  /// The MLP of the suffix's unit: of the time, or of actions and the time.
  at::Tensor mixed(const at::Tensor& x) const { return time_out_(at::silu(time_in_(x))); }
  /// Actions and the time, mixed: [m, H, e], float32.
  at::Tensor timed_actions(const at::Tensor& actions, const at::Tensor& times) const {
    const at::Tensor noisy = action_in_(actions), time = time_features(times);
    return mixed(at::cat({noisy, time.unsqueeze(1).expand({-1, noisy.size(1), -1})}, 2));
  }
  at::ScalarType precision() const { return words_.scalar_type(); }

  Shape shape_;
  Parameters& all_;
  bool judges_;  ///< there is a value head
  at::Tensor words_;
  Linear action_in_, time_in_, time_out_;

 private:
  // ---- What differs
  /// Made of image_tokens() and the text.
  virtual Tokens prefix_tokens(const Inputs& inputs) const = 0;
  /// Those of the suffix [m, T, e], in the precision that the expert computes in, and what its norms adapt to, [m, e] in float32,
  /// or nothing.
  virtual std::pair<at::Tensor, at::Tensor> suffix_tokens(const at::Tensor& actions, const at::Tensor& times,
                                                          const at::Tensor& state) const = 0;
  virtual bool joint(std::size_t /*layer*/) const { return true; }
  virtual Seen seen_by_prefix(const at::Tensor& valid, at::ScalarType type) const = 0;
  /// s: [m, T, e].
  virtual SeenBySuffix seen_by_suffix(const at::Tensor& valid_prefix, const at::Tensor& s) const = 0;
  /// Which of the prefix's tokens the mean counts that a value head reads.
  virtual at::Tensor counted(const at::Tensor& valid) const = 0;

  struct Layer {
    parts::DecoderLayer language, expert;
  };

  std::size_t text_unit() const { return vision_.units(); }
  std::size_t suffix_unit() const { return vision_.units() + 1; }
  std::size_t layer_unit(std::size_t i) const { return vision_.units() + 2 + i; }
  std::size_t end_unit() const { return layer_unit(layers_.size()); }
  std::size_t value_unit() const { return end_unit() + 1; }
  bool last(std::size_t i) const { return i + 1 == layers_.size(); }

  /// The prefix's tokens [n, S, d], and what is known of it before it has keys.
  std::pair<at::Tensor, Prefix> begin_prefix(const Inputs& inputs) const {
    const Tokens tokens = prefix_tokens(inputs);
    const at::Tensor x = at::cat(tokens.all, 1);
    see("prefix.embedding", x);
    all_.after(text_unit(), {x});
    return {x, Prefix{.layers = {}, .valid = at::cat(tokens.valid, 1), .state = inputs.state}};
  }
  std::pair<at::Tensor, at::Tensor> begin_suffix(const at::Tensor& actions, const at::Tensor& times,
                                                 const at::Tensor& state) const {
    all_.before(suffix_unit());
    auto made = suffix_tokens(actions, times, state);
    see("suffix.embedding", made.first);
    all_.after(suffix_unit(), {made.first, made.second});
    return made;
  }

  static at::Tensor attended(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const Seen& seen) {
    return layers::attention(seen.asks.defined() ? query * seen.asks : query, key, value, seen.mask);
  }
  /// The language model's layer i: what the expert sees of it, and `x` is the residual stream behind it, but for the last
  /// layer's, which at most a value head reads: in its place there is `ending`, if it is asked for.
  std::pair<at::Tensor, at::Tensor> prefix_layer(std::size_t i, at::Tensor& x, const Seen& seen,
                                                 Ending* ending) const {
    const auto& [language, expert] = layers_[i];
    const bool read = !last(i) || watched();
    const auto own = language.project(x, seen.rotary, {}, shape_.language, !read);
    if (last(i) && ending != nullptr) *ending = {x, own.in, own.key, own.value};
    if (read) {
      const at::Tensor mixed = attended(own.query, own.key, own.value, seen);
      x = language.finish(x, mixed, {}, {}, shape_.language);
      see("prefix.layer." + std::to_string(i), x);
    }
    return joint(i) ? std::pair(own.key, own.value) : expert.made_of(own.key, own.value, shape_.expert);
  }
  /// The rest of the language model's last layer, and the mean [n, d] over tokens of what it puts out.
  at::Tensor read_by_values(const Prefix& prefix) const {
    const Seen seen = seen_by_prefix(prefix.valid, precision());
    const Ending& ending = prefix.ending;
    const parts::DecoderLayer& layer = layers_.back().language;
    const at::Tensor query = layer.ask_later(ending.in, seen.rotary, shape_.language);
    const at::Tensor mixed = attended(query, ending.key, ending.value, seen);
    const at::Tensor x = layer.finish(ending.x, mixed, {}, {}, shape_.language);
    return layers::masked_mean(language_norm_(x, {}, shape_.language).first, counted(prefix.valid));
  }
  /// The expert's layer i behind the prefix's keys and values.
  at::Tensor suffix_layer(std::size_t i, const at::Tensor& s, const at::Tensor& condition,
                          const std::pair<at::Tensor, at::Tensor>& prefix,
                          const SeenBySuffix& by_suffix) const {
    const parts::DecoderLayer& layer = layers_[i].expert;
    const Seen& seen = joint(i) ? by_suffix.joint : by_suffix.across;
    const auto own = joint(i) ? layer.project(s, seen.rotary, condition, shape_.expert)
                              : layer.ask(s, seen.rotary, condition, shape_.expert);
    const auto seen_all = [&](const at::Tensor& of_prefix, const at::Tensor& of_suffix) {
      const at::Tensor before = layers::repeated(of_prefix, s.size(0));
      return joint(i) ? at::cat({before, of_suffix}, 2) : before;
    };
    const at::Tensor mixed = layers::attention(own.query, seen_all(prefix.first, own.key),
                                               seen_all(prefix.second, own.value), seen.mask);
    const at::Tensor y = layer.finish(s, mixed, own.gate, condition, shape_.expert);
    see("suffix.layer." + std::to_string(i), y);
    return y;
  }
  /// Of the actions' tokens, the last ones.
  at::Tensor end(const at::Tensor& s, const at::Tensor& condition) const {
    all_.before(end_unit());
    const at::Tensor y = expert_norm_(s, condition, shape_.expert).first;  // its gate is for nothing
    see("suffix.norm", y);
    const at::Tensor read = y.narrow(1, y.size(1) - shape_.horizon, shape_.horizon).to(at::kFloat);
    const at::Tensor v =
        shape_.noise.empty() ? action_out_(read) : at::cat({action_out_(read), noise_head_(read)}, 2);
    all_.after(end_unit(), {v});
    return v;
  }
  at::Tensor end_pass(const at::Tensor& s, const at::Tensor& condition, const Prefix& prefix,
                      at::Tensor* values) const {
    const at::Tensor v = end(s, condition);
    if (values != nullptr)
      *values = this->values(prefix);
    else if (judges_)
      all_.pass_by(value_unit());
    return v;
  }

  bool expert_alone_;  ///< the vision-language model is frozen
  parts::SigLip vision_;
  std::vector<Layer> layers_;
  parts::DecoderNorm language_norm_, expert_norm_;
  Linear action_out_;
  parts::ApartMlp value_head_, noise_head_;
};

}  // namespace dvla::detail
