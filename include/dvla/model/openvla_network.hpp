// The networks of OpenVLA (Kim et al., arXiv 2406.09246) and of OpenVLA-OFT (arXiv 2502.19645), which have the same weights' names: two
// vision towers, DINOv2 and SigLIP, whose features lie side by side; a projector; a Llama that reads
//
//   [BOS] [patches of every view] [state, where there is one] [rest of the prompt] [actions] [STOP, in OpenVLA-OFT]
//
// and puts out action tokens, 256 of its vocabulary. What a token puts out is the token that follows: the first action's is
// the last prompt token's output.
// OpenVLA-OFT (`parallel`): the actions' inputs are zeros, every token sees every other, one pass puts all of them out.
// OpenVLA: the actions' inputs are those before them, and no token sees a later one: teacher-forced by forward(),
// one after the other by begin() and next(), over the keys and values of what came before.
// Reference: openvla-oft's modeling_prismatic.py and its fork of Transformers, and RLinf's for reinforcement learning; what of
// them is reproduced although one would not expect it stands in docs/vla_models.md.
//
// Reinforcement learning may put a value head beside it, as RLinf has it (openvla_oft_action_model.py): it reads what the last prompt
// token puts out, which the first action's is made of.
//
// Units: DINOv2's embedding and blocks, SigLIP's; the projectors and the word embedding; Llama's layers; its norm, the
// projection to words and the regression head, where there is one; the value head, where there is one.
//
// What nobody reads is not computed: the towers' last blocks, logits but for the action tokens at the places of actions, and
// at other places the last layer but for its keys and values. Parameters that no pass reads are frozen and have no adapters: those of the
// towers' ends (parts/timm_vit.hpp), and beside a regression head the projection to words.
//
// Legend: n rows, V views, P patches a view, L prompt tokens, C control steps a chunk, A action dimensions, E = C * A, S tokens
// that Llama reads, d its width, h its heads, k their width.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/knobs.hpp"
#include "dvla/core/members.hpp"
#include "dvla/model/parameters.hpp"
#include "dvla/model/parts/apart_mlp.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/parts/mlp.hpp"
#include "dvla/model/parts/regression_head.hpp"
#include "dvla/model/parts/timm_vit.hpp"
#include "dvla/model/watched.hpp"

namespace dvla::detail {

/// Where a token stands, for its rotary embedding: among the valid ones (RLinf), or in the sequence, padding counted (Transformers,
/// where nobody says; the authors' code has no padding before what is read, which is the same).
enum class TokenPlaces : std::uint8_t { among_valid, in_sequence };

/// All extents. The defaults are those of the published checkpoints.
struct OpenVlaShape {
  bool parallel = true;  ///< OpenVLA-OFT
  /// OpenVLA-OFT: a STOP token behind the actions, which all others see. The authors' code has it, RLinf's drops it.
  bool stop = true;
  TokenPlaces places = TokenPlaces::among_valid;
  std::int64_t views = 1, dimensions = 7, chunk = 8;
  std::int64_t state = 0;  ///< numbers of the robot's state that make a token; 0: none
  bool regression =
      false;  ///< OpenVLA-OFT: actions are numbers that a head makes of what Llama puts out, not tokens
  /// Words, the last `unused` of which only fill up; the action tokens are the `bins` before those.
  std::int64_t vocabulary = 32064, unused = 64, bins = 256, stop_token = 2;
  parts::VitShape dinov2{.width = 1024,
                         .layers = 24,
                         .heads = 16,
                         .mlp = 4096,
                         .image = 224,
                         .patch = 14,
                         .class_token = true,
                         .registers = 4,
                         .layer_scale = 1e-5};
  parts::VitShape siglip{
      .width = 1152, .layers = 27, .heads = 16, .mlp = 4304, .image = 224, .patch = 14, .pooling_head = true};
  /// Llama-2-7B, with the eps of Transformers' LlamaConfig, 1e-6, where a checkpoint's text_config has none.
  parts::DecoderShape language{
      .width = 4096, .layers = 32, .mlp = 11008, .heads = 32, .kv_heads = 32, .head_width = 128};
  std::vector<std::int64_t> value{512, 128};  ///< widths within a value head, where one is asked for

  std::int64_t actions() const { return chunk * dimensions; }
  std::int64_t first_action_token() const { return vocabulary - unused - bins; }
};

class OpenVlaNetwork : public Watched {
 public:
  /// What a decision is made from.
  struct Inputs {
    /// [n, 6 V, image, image]: of each view three channels normalised for DINOv2, then three for SigLIP.
    at::Tensor pixels;
    at::Tensor tokens;      ///< [n, L], int64: BOS, and a prompt; padding may stand anywhere behind BOS
    at::Tensor token_mask;  ///< [n, L], bool: false where padding is; undefined: there is none
    at::Tensor state;       ///< [n, state], normalised
  };
  /// Of every action token that is put out, in order: its logits [n, E, bins], float32, and what they are made of,
  /// [n, E, d]. With a regression head its actions [n, C, A], float32, and no logits. Values [n, V], float32, if they are asked for.
  struct Outputs {
    at::Tensor logits, hidden, actions, values{};
  };
  /// What an action token that is decoded sees: keys and values of all before it, [n, h, S + E - 1, k] by layer, of which
  /// `length` are there.
  struct Context {
    std::vector<std::pair<at::Tensor, at::Tensor>> layers;
    at::Tensor valid;  ///< [n, S + E - 1], bool, or undefined: all
    at::Tensor place;  ///< [n or 1, 1], of the next
    std::int64_t length = 0;
  };

  /// Declares everything and makes no tensor; `all` must outlive this.
  OpenVlaNetwork(const OpenVlaShape& shape, Parameters& all, const ValueHead& value = {})
      : shape_(shape), all_(all), judges_(value.values > 0) {
    declare(value);
  }

  const OpenVlaShape& shape() const { return shape_; }

  /// OpenVLA-OFT's pass. OpenVLA: the same with the action tokens [n, E], int64, given, as ids of words. `judge`: values are asked
  /// for, which only a network with a value head has.
  Outputs forward(const Inputs& inputs, const at::Tensor& actions = {}, bool judge = false) const {
    const std::int64_t E = shape_.actions();
    // The last action's own input would come behind all that is read: an onlooker alone sees it.
    const at::Tensor given = shape_.parallel || watched() ? actions : actions.narrow(1, 0, E - 1);
    const auto [x, valid] = embed(inputs, given);
    Outputs outputs = decode(x, valid, read_at(inputs, E), nullptr);
    if (judge)
      outputs.values = values(outputs);
    else if (judges_)
      all_.pass_by(value_unit());
    return outputs;
  }
  /// Of such a pass's outputs, which did not ask for them. In a pass of its own it is the last unit's.
  at::Tensor values(const Outputs& outputs) const {
    all_.before(value_unit());
    const at::Tensor values = value_head_(outputs.hidden.select(1, 0));
    all_.after(value_unit(), {values});
    return values;
  }
  /// A backward pass of a forward begins, of one that gave values or of one that gave none.
  void backward_begins(bool of_values) const {
    all_.backward_begins(judges_ && !of_values ? value_unit() : Parameters::none);
  }

  /// OpenVLA: reads the prompt; what the first action token is drawn from, with E = 1, and what the others see.
  std::pair<Outputs, Context> begin(const Inputs& inputs) const {
    const auto [x, valid] = embed(inputs, {});
    const std::int64_t more = shape_.actions() - 1;
    Context context;
    context.length = x.size(1);
    if (valid.defined()) context.valid = at::cat({valid, at::ones({x.size(0), more}, valid.options())}, 1);
    context.place = places(valid, x).select(1, -1).unsqueeze(1) + 1;
    const std::int64_t sizes[] = {x.size(0), shape_.language.kv_heads, context.length + more,
                                  shape_.language.head_width};
    for (std::int64_t i = 0; i < shape_.language.layers; ++i)
      context.layers.emplace_back(at::empty(sizes, x.options()), at::empty(sizes, x.options()));
    Outputs outputs = decode(x, valid, read_at(inputs, 1), &context);
    return {std::move(outputs), std::move(context)};
  }
  /// The next one's, behind `action` [n], int64, the id of the one before it. Without a graph.
  Outputs next(Context& context, const at::Tensor& action) const {
    all_.before(text_unit());
    at::Tensor x = at::embedding(words_, action.unsqueeze(1));
    all_.after(text_unit(), {});
    const std::int64_t at = context.length++;
    Seen seen{
        layers::rotary(context.place, shape_.language.head_width, shape_.language.theta, x.scalar_type()),
        {}};
    context.place = context.place + 1;
    if (context.valid.defined())
      seen.mask =
          layers::additive_mask(context.valid.narrow(1, 0, context.length).unsqueeze(1), x.scalar_type());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.before(layer_unit(i));
      const auto own = layers_[i].project(x, seen.rotary, {}, shape_.language);
      auto& [keys, values] = context.layers[i];
      keys.narrow(2, at, 1).copy_(own.key);
      values.narrow(2, at, 1).copy_(own.value);
      const at::Tensor mixed = layers::attention(own.query, keys.narrow(2, 0, context.length),
                                                 values.narrow(2, 0, context.length), seen.mask);
      x = layers_[i].finish(x, mixed, {}, {}, shape_.language);
      all_.after(layer_unit(i), {});
    }
    all_.before(end_unit());
    Outputs outputs = end(x);
    all_.after(end_unit(), {});
    return outputs;
  }

 private:
  /// What tokens see: where they stand, and what they must not look at.
  struct Seen {
    layers::Rotary rotary;
    at::Tensor mask;
  };

  std::size_t siglip_unit() const { return dinov2_.units(); }
  std::size_t text_unit() const { return siglip_unit() + siglip_.units(); }
  std::size_t layer_unit(std::size_t i) const { return text_unit() + 1 + i; }
  std::size_t end_unit() const { return layer_unit(layers_.size()); }
  std::size_t value_unit() const { return end_unit() + 1; }

  void declare(const ValueHead& value) {
    const std::int64_t d = shape_.language.width, seen = shape_.dinov2.width + shape_.siglip.width;
    if (shape_.dinov2.tokens() != shape_.siglip.tokens())
      throw ConfigError("OpenVLA: its vision towers must have equally many patches");
    dinov2_.declare(all_, "vision_backbone.featurizer", shape_.dinov2);
    siglip_.declare(all_, "vision_backbone.fused_featurizer", shape_.siglip);
    all_.begin_unit();
    projector_.declare(all_, "projector", {seen, 4 * seen, d, d});
    if (shape_.state > 0) state_projector_.declare(all_, "proprio_projector", {shape_.state, d, d});
    all_.declare("language_model.model.embed_tokens.weight", {shape_.vocabulary, d}, words_, {0, 0.02});
    layers_.resize(static_cast<std::size_t>(shape_.language.layers));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      all_.begin_unit();
      layers_[i].declare(all_, "language_model.model.layers." + std::to_string(i), shape_.language);
    }
    all_.begin_unit();
    norm_.declare(all_, "language_model.model.norm", shape_.language);
    const bool frozen = all_.frozen();
    all_.freeze(frozen || shape_.regression);  // nobody reads words then
    all_.declare_linear("language_model.lm_head", shape_.vocabulary, d, to_words_, parts::matrix(d));
    all_.freeze(frozen);
    if (shape_.regression) head_.declare(all_, "action_head.model", d, shape_.dimensions);
    if (!judges_) return;
    all_.begin_unit();
    value_head_.declare(all_, "value_head", d, shape_.value, value.values,
                        {.activation = [](const at::Tensor& x) { return at::gelu(x); }, .last_bias = false},
                        value.group);
  }

  /// Features of images [n, 3, image, image], through the units from `unit` on. [n, P, width]
  at::Tensor features(const parts::TimmVit& tower, std::size_t unit, const std::string& name,
                      const at::Tensor& images) const {
    all_.before(unit);
    at::Tensor x = tower.embed(images);
    see(name + ".embedding", x);
    all_.after(unit, {x});
    for (std::size_t i = 0; i < tower.computed_layers(); ++i) {
      x = all_.layer(++unit, [&tower, i](const auto& in) { return std::vector{tower.layer(i, in[0])}; },
                     {x})[0];
      see(name + ".layer." + std::to_string(i), x);
    }
    return tower.features(x);
  }

  /// What Llama reads, [n, S, d], and which of it is valid, [n, S] or undefined: all. `actions`: ids that stand behind the
  /// prompt, or undefined.
  std::pair<at::Tensor, at::Tensor> embed(const Inputs& inputs, const at::Tensor& actions) const {
    const std::int64_t n = inputs.tokens.size(0), L = inputs.tokens.size(1), V = shape_.views;
    const at::Tensor pixels = inputs.pixels.to(precision());
    const at::Tensor images = pixels.reshape({n * V, 2, 3, pixels.size(2), pixels.size(3)});
    const at::Tensor seen =
        at::cat({features(dinov2_, 0, "featurizer", images.select(1, 0)),
                 features(siglip_, siglip_unit(), "fused_featurizer", images.select(1, 1))},
                2);
    all_.before(text_unit());
    const at::Tensor side_by_side = seen.view({n, V * seen.size(1), seen.size(2)});
    see("patches", side_by_side);
    const at::Tensor patches = projector_(side_by_side);
    see("projector", patches);
    const at::Tensor words = at::embedding(words_, inputs.tokens);
    // Behind the first token (openvla-oft modeling_prismatic.py:474), which must be BOS: RLinf moves it there, before the
    // padding (processing_prismatic.py:151).
    std::vector<at::Tensor> all{words.narrow(1, 0, 1), patches};
    if (shape_.state > 0) all.push_back(state_projector_(inputs.state.to(precision())).unsqueeze(1));
    const std::int64_t before = patches.size(1) + std::ssize(all) - 2;
    all.push_back(words.narrow(1, 1, L - 1));
    std::int64_t behind = 0;
    const auto add = [&](const at::Tensor& what) {
      all.push_back(what);
      behind += what.size(1);
    };
    if (!shape_.parallel && actions.defined()) add(at::embedding(words_, actions));
    if (shape_.parallel) {
      // Nothing, not a placeholder's embedding (openvla-oft modeling_prismatic.py:891).
      add(at::zeros({n, shape_.actions(), shape_.language.width}, words.options()));
      // The authors' (openvla-oft modeling_prismatic.py:743), not RLinf's (openvla_oft_action_model.py:85).
      if (shape_.stop)
        add(at::embedding(words_, at::full({n, 1}, shape_.stop_token, inputs.tokens.options())));
    }
    at::Tensor valid;
    if (const at::Tensor& mask = inputs.token_mask; mask.defined()) {
      const auto ones = [&](std::int64_t count) { return at::ones({n, count}, mask.options()); };
      valid = at::cat({mask.narrow(1, 0, 1), ones(before), mask.narrow(1, 1, L - 1), ones(behind)}, 1);
    }
    const at::Tensor x = at::cat(all, 1);
    see("embedding", x);
    all_.after(text_unit(), {x});
    return {x, valid};
  }

  /// Where in the sequence the outputs stand that make action tokens, [n, count]: one before the actions themselves, from the last
  /// prompt token on (openvla-oft modeling_prismatic.py:985, 931).
  at::Tensor read_at(const Inputs& inputs, std::int64_t count) const {
    const std::int64_t n = inputs.tokens.size(0), L = inputs.tokens.size(1);
    const std::int64_t before = shape_.views * shape_.dinov2.tokens() + (shape_.state > 0 ? 1 : 0);
    const auto options = inputs.tokens.options();
    const at::Tensor place = at::arange(L, options);
    const at::Tensor last = inputs.token_mask.defined()
                                ? (place * inputs.token_mask).amax({1}, /*keepdim=*/true)
                                : place.narrow(0, L - 1, 1).unsqueeze(0).expand({n, 1});
    const at::Tensor actions = at::arange(before + L, before + L + count - 1, options);
    return at::cat({last + before, actions.unsqueeze(0).expand({n, count - 1})}, 1);
  }

  /// [n or 1, S], int64.
  at::Tensor places(const at::Tensor& valid, const at::Tensor& x) const {
    if (valid.defined() && shape_.places == TokenPlaces::among_valid) return at::cumsum(valid, 1) - 1;
    return at::arange(x.size(1), x.options().dtype(at::kLong)).unsqueeze(0);
  }
  /// What the tokens at `at` see, [n or 1, T].
  Seen seen_at(const at::Tensor& at, const at::Tensor& valid, const at::Tensor& x) const {
    const at::Tensor all = places(valid, x);
    const at::Tensor own = all.expand({at.size(0), all.size(1)}).gather(1, at);
    // Keys alone are masked: padding sees what the others see (the last row of the mask for all; fork of Transformers,
    // modeling_llama.py:721).
    at::Tensor allowed;
    if (valid.defined()) allowed = valid.unsqueeze(1);
    if (!shape_.parallel) {
      const at::Tensor causal = at::arange(x.size(1), at.options()) <= at.unsqueeze(-1);
      allowed = allowed.defined() ? allowed & causal : causal;
    }
    return {layers::rotary(own, shape_.language.head_width, shape_.language.theta, x.scalar_type()),
            allowed.defined() ? layers::additive_mask(allowed, x.scalar_type()) : at::Tensor()};
  }

  /// Llama, over `x` [n, S, d]. What is put out at `read`, [n, T]. Keys and values are kept in `context`, if there is one.
  Outputs decode(at::Tensor x, const at::Tensor& valid, const at::Tensor& read, Context* context) const {
    const at::Tensor everywhere = at::arange(x.size(1), read.options()).unsqueeze(0);
    const Seen seen =
        seen_at(valid.defined() ? everywhere.expand({x.size(0), x.size(1)}) : everywhere, valid, x);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      // Of the last layer only what is read.
      const bool part = i + 1 == layers_.size() && !watched();
      const Seen own_seen = part ? seen_at(read, valid, x) : seen;
      x = all_.layer(layer_unit(i),
                     [this, i, part, read, own_seen, seen, context](const auto& in) {
                       const parts::DecoderLayer& layer = layers_[i];
                       const at::Tensor own = part ? at_places(in[0], read) : in[0];
                       const auto made = project(layer, own, in[0], own_seen.rotary, seen.rotary);
                       if (context != nullptr) {
                         context->layers[i].first.narrow(2, 0, made.key.size(2)).copy_(made.key);
                         context->layers[i].second.narrow(2, 0, made.value.size(2)).copy_(made.value);
                       }
                       const at::Tensor mixed =
                           layers::attention(made.query, made.key, made.value, own_seen.mask);
                       return std::vector{layer.finish(own, mixed, made.gate, {}, shape_.language)};
                     },
                     {x})[0];
      see("layer." + std::to_string(i), x);
    }
    all_.before(end_unit());
    if (watched()) {
      see("norm", norm_(x, {}, shape_.language).first);
      x = at_places(x, read);
    }
    const Outputs outputs = end(x);
    all_.after(end_unit(), {outputs.logits, outputs.hidden, outputs.actions});
    return outputs;
  }
  /// Keys and values of `whole`, [n, S, d], and queries of `x`, which is that or some of its tokens.
  parts::DecoderLayer::Projected project(const parts::DecoderLayer& layer, const at::Tensor& x,
                                         const at::Tensor& whole, const layers::Rotary& own,
                                         const layers::Rotary& all) const {
    const parts::DecoderShape& shape = shape_.language;
    if (x.is_same(whole)) return layer.project(x, all, {}, shape);
    const auto heads = [&](const Linear& by, const at::Tensor& in) {
      return layers::heads_of(by(in), shape.head_width);
    };
    const at::Tensor in = layer.attention_norm(whole, {}, shape).first,
                     asking = layer.attention_norm(x, {}, shape).first;
    return {layers::rotated(heads(layer.query, asking), own), layers::rotated(heads(layer.key, in), all),
            heads(layer.value, in), at::Tensor()};
  }
  static at::Tensor at_places(const at::Tensor& x, const at::Tensor& places) {
    return x.gather(1, places.unsqueeze(-1).expand({-1, -1, x.size(2)}));
  }
  Outputs end(const at::Tensor& x) const {
    const at::Tensor hidden = norm_(x, {}, shape_.language).first;
    if (shape_.regression)
      return {{}, hidden, head_(hidden.reshape({x.size(0), shape_.chunk, -1})).to(at::kFloat)};
    const Linear to_actions = to_words_.outputs(shape_.first_action_token(), shape_.bins);
    return {to_actions(hidden).to(at::kFloat), hidden, {}};
  }
  at::ScalarType precision() const { return words_.scalar_type(); }

  OpenVlaShape shape_;
  Parameters& all_;
  bool judges_;  ///< there is a value head
  parts::TimmVit dinov2_, siglip_;
  parts::Mlp projector_, state_projector_;
  at::Tensor words_;
  std::vector<parts::DecoderLayer> layers_;
  parts::DecoderNorm norm_;
  Linear to_words_;
  parts::RegressionHead head_;
  parts::ApartMlp value_head_;
};

}  // namespace dvla::detail

template <>
inline constexpr auto dvla::enum_names<dvla::detail::TokenPlaces> =
    std::to_array<std::string_view>({"among_valid", "in_sequence"});
template <std::same_as<dvla::detail::OpenVlaShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::parallel, &K::stop, &K::places, &K::views, &K::dimensions, &K::chunk, &K::state,
                    &K::regression, &K::vocabulary, &K::unused, &K::bins, &K::stop_token, &K::dinov2,
                    &K::siglip, &K::language, &K::value> {};
