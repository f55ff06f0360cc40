// The body of models that turn noise into actions (pi0.5, SmolVLA): from an observation to the inputs of their networks, and what
// NetworkModel asks of a network. Needs torch.
//
// A Family is a Wording (prompts.hpp) and has `slots` for cameras, `Network`, `shape(knobs)`, `names()` of published weights,
// `image(frames, side, pictures)`, `pictures(config)`: whose a folder's are, `image_tokens(shape)` a camera; `language`: what stands in
// the names of its language model; `padding`: the token; `state_apart`: whether the state goes in as numbers, too; `wide_tower`: whether
// the vision tower computes in float32 whatever its weights are.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/model/fields.hpp"
#include "dvla/model/flow_head.hpp"
#include "dvla/model/flow_vla_knobs.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/prompts.hpp"
#include "dvla/model/published_config.hpp"
#include "dvla/model/published_weights.hpp"
#include "dvla/model/vla_inputs.hpp"

namespace dvla::detail {

/// Widths within a noise head, if there is to be one: `stored`, those that the checkpoint's config.json says, or RLinf's.
inline std::vector<std::int64_t> noise_widths(const FlowVlaKnobs& knobs,
                                              const std::vector<std::int64_t>& stored) {
  if (knobs.noise != FlowNoise::flow_noise) return {};
  if (!stored.empty()) return stored;
  return knobs.random == RandomWeights::tiny ? std::vector<std::int64_t>{16, 8}
                                             : std::vector<std::int64_t>{128, 64};
}

/// The network with an observation before it, as NetworkModel wants it.
template <class Family>
class FlowVlaBody {
 public:
  using Network = typename Family::Network;
  using Prefix = typename Network::Prefix;

  FlowVlaBody(const FlowVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape,
              const FlowVlaBody* original = nullptr)
      : spec_(inputs.observation),
        weights_(original == nullptr ? knobs.checkpoint : "", Family::names()),
        parameters_(knobs.dtype, weights_.under(inputs.adapters)),
        network_(original == nullptr ? shape_of(knobs) : original->network_.shape(), parameters_,
                 knobs.train == Trained::expert, inputs.value_head),
        prompts_(spec_, {tokenizer_of(knobs), network_.shape().vocabulary, Family::padding,
                         network_.shape().text, knobs.discrete_state_input}),
        queries_(shape),
        values_(inputs.value_head.values),
        evaluations_(evaluations(knobs)),
        keeps_prefix_(knobs.keep_prefix),
        pictures_(taken_pictures(knobs.pictures, knobs.checkpoint, Pictures::lerobot, Family::pictures)) {
    parameters_.recompute(knobs.gradient_checkpointing);
    if constexpr (Family::state_apart)
      if (spec_.proprioception > network_.shape().states)
        throw ConfigError(Family::name, ": the environment's state has ", spec_.proprioception,
                          " numbers, and the model takes ", network_.shape().states);
    const auto views = std::min(Family::slots.size(), static_cast<std::size_t>(network_.shape().views));
    cameras_ = chosen_cameras(Family::name, spec_, knobs.cameras, std::span(Family::slots).first(views));
    weights_.check(Family::name, parameters_.parameters());
    check_noise_bounds();
  }
  FlowVlaBody(const FlowVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape, std::uint64_t seed,
              const ComputeDevice& /*the host*/, const FlowVlaBody* original)
      : FlowVlaBody(knobs, inputs, shape, original) {
    original == nullptr ? weights_.fill(parameters_, seed) : parameters_.share(original->parameters_);
  }
  FlowVlaBody(const FlowVlaBody&) = delete;
  FlowVlaBody& operator=(const FlowVlaBody&) = delete;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  std::vector<std::string> notes() const {
    std::vector<std::string> all = weights_.notes();
    all.push_back(prompts_.note());
    pictures_.add_to(all);
    return all;
  }
  const PublishedWeights& published() const { return weights_; }
  std::string config_text() const { return own_config(Family::name, network_.shape(), pictures_.way); }

  typename Network::Inputs inputs(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = std::ssize(rows), L = network_.shape().text;
    typename Network::Inputs made;
    for (const std::size_t camera : cameras_)
      made.images.push_back(Family::image(tensor_of(observation.frames.at(camera), rows),
                                          network_.shape().vision.image, pictures_.way));
    made.image_mask = at::ones({n, std::ssize(cameras_)}, at::kBool);
    made.tokens = at::empty({n, L}, at::kLong);
    made.token_mask = at::empty({n, L}, at::kBool);
    if constexpr (Family::state_apart) made.state = at::zeros({n, network_.shape().states}, at::kFloat);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = rows[static_cast<std::size_t>(i)];
      const std::int32_t task = task_of(Family::name, observation, row, prompts_.tasks());
      const std::span<const float> state =
          spec_.proprioception > 0 ? std::span<const float>(observation.proprioception.at(row).span())
                                   : std::span<const float>();
      prompts_.write(task, state, made.tokens.template mutable_data_ptr<std::int64_t>() + i * L,
                     made.token_mask.template mutable_data_ptr<bool>() + i * L);
      if constexpr (Family::state_apart)
        std::ranges::copy(state, made.state.template mutable_data_ptr<float>() + i * network_.shape().states);
    }
    return made;
  }
  Prefix prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    Prefix made = network_.prefix(inputs(observation, rows));
    return keeps_prefix_ ? network_.settled(std::move(made)) : made;
  }
  /// [n, H * outputs].
  at::Tensor queries(const Prefix& prefix, std::int64_t n, std::span<const float> noise,
                     std::span<const float> times) const {
    return network_
        .velocity(prefix, tensor(noise, {n, queries_.queries, queries_.noise_inputs}), tensor(times, {n}))
        .flatten(1);
  }
  struct Results {
    at::Tensor actions, values;
  };
  /// Of as many actions as there are times: one of each row, or equally many.
  Results forward(const Observation& observation, std::span<const std::int64_t> rows,
                  std::span<const float> noise, std::span<const float> times, Outputs outputs) {
    const auto made = inputs(observation, rows);
    if (outputs == Outputs::values) return {{}, network_.values(made)};
    return evaluated(made, noise, times, outputs);
  }
  Results forward(const Prefix& kept, std::span<const float> noise, std::span<const float> times,
                  Outputs outputs) {
    return evaluated(kept, noise, times, outputs);
  }

  // ---- A prefix in a decision's record: its tensors' bytes, one behind the other, up to a whole line
  std::int64_t kept_bytes() const {
    if (!keeps_prefix_) return 0;
    std::int64_t bytes = 0;
    for (const KeptPart& part : kept_parts()) bytes += part.bytes();
    const auto line = static_cast<std::int64_t>(record_alignment);
    return (bytes + line - 1) / line * line;
  }
  /// Row i of `prefix` goes into `to` [N, bytes] at rows[i].
  void keep(const Prefix& prefix, std::span<const std::int64_t> rows, const Field<std::uint8_t>& to) const {
    std::vector<at::Tensor> tensors;
    for (const auto& [key, value] : prefix.layers) tensors.insert(tensors.end(), {key, value});
    if (values_ > 0) tensors.push_back(prefix.read);
    tensors.push_back(prefix.valid);
    for (const std::int64_t row : rows)  // what fills up the last line is 0
      std::ranges::fill(to.at(row).span().last(record_alignment), std::uint8_t{0});
    each_kept(rows, to, [&](std::size_t part, std::int64_t i, const at::Tensor& there) {
      there.copy_(tensors[part][i]);
    });
  }
  Prefix kept(const Field<std::uint8_t>& from, std::span<const std::int64_t> rows) const {
    std::vector<at::Tensor> tensors;
    for (KeptPart& part : kept_parts()) {
      part.sizes.insert(part.sizes.begin(), std::ssize(rows));
      tensors.push_back(at::empty(part.sizes, part.type));
    }
    each_kept(rows, from, [&](std::size_t part, std::int64_t i, const at::Tensor& there) {
      tensors[part][i].copy_(there);
    });
    Prefix prefix{.layers = {}, .valid = tensors.back(), .state = {}};
    for (std::int64_t i = 0; i < network_.shape().language.layers; ++i)
      prefix.layers.emplace_back(tensors[static_cast<std::size_t>(2 * i)],
                                 tensors[static_cast<std::size_t>(2 * i + 1)]);
    if (values_ > 0) prefix.read = tensors[tensors.size() - 2];
    return prefix;
  }
  at::Tensor values(const Prefix& prefix, std::int64_t) const { return network_.values(prefix); }
  void backward_begins(bool of_values) { network_.backward_begins(of_values); }

  /// Activations at the peak of an inference: a camera's frames while they are resized, the keys and values of all layers, and what the widest layer of the
  /// prefix or of the vision tower has at once.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const auto& s = network_.shape();
    const std::int64_t prefix = prefix_tokens(),
                       kept = s.language.layers * prefix * 2 * s.language.kv_heads * s.language.head_width;
    const std::int64_t text =
        prefix * (4 * s.language.width + 3 * std::max(s.language.mlp, s.language.heads * prefix)) +
        2 * prefix * prefix;
    const std::int64_t vision =
        std::ssize(cameras_) * s.vision.tokens() * (6 * s.vision.width + 2 * s.vision.mlp);
    const std::int64_t matrix = std::max(s.language.width * s.language.mlp, s.vision.width * s.vision.mlp);
    return static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(kept + text + 3 * tower_scores()) * bytes_of(dtype()) +
                static_cast<std::size_t>(vision + judging()) * 4 + resizing_bytes(spec_, cameras_)) +
           widened_bytes(dtype(), matrix) + wide_bytes(s.vision.width * s.vision.mlp);
  }
  /// The same of a forward and backward pass: what the graph keeps of every layer that something trains in or behind.
  std::size_t training_bytes(std::int64_t rows) const { return training_bytes(rows, keeps_prefix_); }
  /// The same of cloning, which has no decisions and makes the prefix each time.
  std::size_t cloning_bytes(std::int64_t rows) const { return training_bytes(rows, false); }

 private:
  /// `kept_before`: the prefix is a decision's.
  std::size_t training_bytes(std::int64_t rows, bool kept_before) const {
    const auto& s = network_.shape();
    const auto layer = [](const parts::DecoderShape& of, std::int64_t tokens, std::int64_t seen) {
      return tokens * (10 * of.width + 4 * of.mlp + 6 * of.heads * of.head_width) +
             2 * tokens * seen * of.heads;
    };
    const std::int64_t prefix = prefix_tokens(), suffix = s.horizon;
    // Evaluations of one decision share the prefix, but each has its keys and values before its own.
    const std::int64_t repeats =
        (evaluations_ - 1) * (prefix + suffix) * 2 * s.expert.kv_heads * s.expert.head_width;
    const bool whole = std::ranges::any_of(parameters_.parameters(), [&](const Parameter& each) {
      return each.trainable && each.unit <= static_cast<std::size_t>(s.vision.layers);
    });
    // Of a frozen language model behind which nothing trains there are keys and values alone.
    const bool prefix_trains = std::ranges::any_of(parameters_.parameters(), [&](const Parameter& each) {
      return each.trainable && (each.unit <= static_cast<std::size_t>(s.vision.layers) + 1 ||
                                each.name.find(Family::language) != std::string::npos);
    });
    const std::int64_t language = prefix_trains ? layer(s.language, prefix, prefix)
                                                : 2 * prefix * s.language.kv_heads * s.language.head_width;
    // A value head has the rest of the last language layer computed, beside what other layers keep.
    const std::int64_t judged = values_ > 0 && prefix_trains ? layer(s.language, prefix, prefix) : 0;
    const std::int64_t kept =
        judged + parameters_.kept_by_layers(
                     s.language.layers,
                     language + evaluations_ * layer(s.expert, suffix, prefix + suffix) + repeats,
                     (kept_before ? 0 : prefix * s.language.width) + evaluations_ * suffix * s.expert.width);
    const std::int64_t seen = std::ssize(cameras_) * s.vision.tokens(), d = s.vision.width;
    const std::int64_t vision =
        whole ? parameters_.kept_by_layers(s.vision.layers, seen * (12 * d + 3 * s.vision.mlp), seen * d) : 0;
    // For the gradient of what the tower's weights multiply.
    const std::size_t wide =
        whole ? wide_bytes(parameters_.kept_by_layers(s.vision.layers, tower_layer(), 0)) : 0;
    const std::int64_t scores =
        whole ? parameters_.kept_by_layers(s.vision.layers, 2 * tower_scores(), 0) : 0;
    const std::size_t graph =
        wide + static_cast<std::size_t>(rows) * (static_cast<std::size_t>(kept + scores) * bytes_of(dtype()) +
                                                 static_cast<std::size_t>(vision) * 4);
    if (!kept_before) return sampling_bytes(rows) + graph;
    // Values alone make a prefix, before there is a graph. Of a backward pass one layer's gradients are on their way.
    const std::int64_t layers = evaluations_ * layer(s.expert, suffix, prefix + suffix) + repeats;
    return std::max(sampling_bytes(rows), graph + widened_bytes(dtype(), s.expert.width * s.expert.mlp) +
                                              static_cast<std::size_t>(rows) *
                                                  (static_cast<std::size_t>(kept_bytes()) +
                                                   static_cast<std::size_t>(layers) * bytes_of(dtype())));
  }
  /// With heads as wide as the checkpoint's own.
  auto shape_of(const FlowVlaKnobs& knobs) const {
    auto shape = Family::shape(knobs);
    weights_.take_widths("value_head", shape.value);
    if (!shape.noise.empty()) weights_.take_widths("noise_head", shape.noise);
    return shape;
  }
  /// Throws ConfigError where RLinf's bounds of learned noise lie beside a head, and are not those that are computed with here.
  void check_noise_bounds() const {
    if (network_.shape().noise.empty()) return;
    for (const auto& [name, z] :
         {std::pair("noise_head.logvar_min", -40.0), std::pair("noise_head.logvar_max", 40.0)}) {
      const auto view = weights_.find(name);
      if (!view) continue;
      double std = 0;
      if (view->elements() == 1 && is_weight_dtype(view->dtype))
        for_each_value(*view,
                       [&](std::size_t, float value) { std = std::exp(static_cast<double>(value) / 2); });
      const double own = LearnedNoise(z).std;
      const auto said = [](double value) { return number_text(std::round(1e4 * value) / 1e4); };
      if (!(std::abs(std - own) <= 0.02 * own))
        throw ConfigError(Family::name, ": the checkpoint's ", name, " says a standard deviation of ",
                          said(std), ", and this model's noise has ", said(own),
                          "; choose another model.noise than flow_noise");
    }
  }
  /// What of a prefix a decision keeps: extents of a row, and elements.
  struct KeptPart {
    std::vector<std::int64_t> sizes;
    at::ScalarType type;
    std::int64_t bytes() const {
      return std::accumulate(sizes.begin(), sizes.end(), static_cast<std::int64_t>(c10::elementSize(type)),
                             std::multiplies<>());
    }
  };
  /// Keys and values by layer, what a value head reads, which tokens are valid.
  std::vector<KeptPart> kept_parts() const {
    const parts::DecoderShape& of = network_.shape().language;
    std::vector<KeptPart> all(
        static_cast<std::size_t>(2 * of.layers),
        {{of.kv_heads, prefix_tokens(), of.head_width}, dtype() == Dtype::f32 ? at::kFloat : at::kBFloat16});
    if (values_ > 0) all.push_back({{of.width}, at::kFloat});
    all.push_back({{prefix_tokens()}, at::kBool});
    return all;
  }
  /// visit(part, i, tensor over its bytes in rows[i] of `field`).
  template <class Visit>
  void each_kept(std::span<const std::int64_t> rows, const Field<std::uint8_t>& field, Visit visit) const {
    const std::vector<KeptPart> all = kept_parts();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::uint8_t* at = field.at(rows[i]).data();
      for (std::size_t part = 0; part < all.size(); ++part) {
        visit(part, static_cast<std::int64_t>(i), at::from_blob(at, all[part].sizes, all[part].type));
        at += all[part].bytes();
      }
    }
  }
  /// Of inputs, or over a prefix that was kept.
  template <class From>
  Results evaluated(const From& from, std::span<const float> noise, std::span<const float> times,
                    Outputs outputs) const {
    const std::int64_t m = std::ssize(times);
    at::Tensor values;
    const at::Tensor actions =
        network_.forward(from, tensor(noise, {m, queries_.queries, queries_.noise_inputs}),
                         tensor(times, {m}), outputs == Outputs::both ? &values : nullptr);
    return {actions.flatten(1), values};
  }
  /// How many of a decision's denoising steps an update makes again.
  static std::int64_t evaluations(const FlowVlaKnobs& knobs) {
    return knobs.noise == FlowNoise::flow_noise ? knobs.denoise_steps : 1;
  }
  /// Numbers of float32 that values take a row: the prefix's mean, and what the head is made of.
  std::int64_t judging() const {
    const auto& s = network_.shape();
    if (values_ == 0) return 0;
    return 2 * prefix_tokens() * s.language.width +
           2 * std::accumulate(s.value.begin(), s.value.end(), s.language.width + values_);
  }
  /// Numbers of a layer's attention in the vision tower, where it is made by products (layers/attention.hpp).
  std::int64_t tower_scores() const {
    const auto& of = network_.shape().vision;
    return Family::wide_tower || dtype() == Dtype::f32
               ? 0
               : std::ssize(cameras_) * of.heads * of.tokens() * of.tokens();
  }
  /// Weights of a layer of the vision tower.
  std::int64_t tower_layer() const {
    const auto& of = network_.shape().vision;
    return 4 * of.width * of.width + 2 * of.width * of.mlp;
  }
  /// So many weights of the tower as float32 beside themselves.
  std::size_t wide_bytes(std::int64_t numbers) const {
    return Family::wide_tower && dtype() != Dtype::f32 ? static_cast<std::size_t>(numbers) * sizeof(float)
                                                       : 0;
  }
  static at::Tensor tensor(std::span<const float> values, at::IntArrayRef sizes) {
    at::Tensor made = at::empty(sizes, at::kFloat);
    std::ranges::copy(values, made.mutable_data_ptr<float>());
    return made;
  }
  Dtype dtype() const { return parameters_.parameters().front().dtype; }
  std::int64_t prefix_tokens() const {
    return std::ssize(cameras_) * Family::image_tokens(network_.shape()) + network_.shape().text +
           (Family::state_apart ? 1 : 0);
  }

  ObservationSpec spec_;
  PublishedWeights weights_;  ///< none in a copy
  Parameters parameters_;
  Network network_;
  Prompts<Family> prompts_;
  QueryShape queries_;
  std::int64_t values_;       ///< V
  std::int64_t evaluations_;  ///< of a decision, in an update
  bool keeps_prefix_;         ///< decisions do
  /// The environment's, in the order of their slots. One without a camera would be masked out, and nothing counts it.
  std::vector<std::size_t> cameras_;
  TakenPictures<Pictures> pictures_;
};

/// A network that has learned from data makes actions in units of their statistics, some of which lie beyond [-1, 1].
template <class Family>
struct FlowVlaHead : FlowHeadMachinery {
  FlowVlaHead(const FlowVlaKnobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : FlowVlaHead(knobs, action, seed, Family::shape(knobs)) {}

 private:
  template <class Shape>
  FlowVlaHead(const FlowVlaKnobs& knobs, const ActionSpec& action, std::uint64_t seed, const Shape& shape)
      : FlowHeadMachinery(knobs, action, seed,
                          {shape.horizon, shape.actions, /*clipped=*/knobs.checkpoint.empty(),
                           /*noise_head=*/true}) {}
};

/// What NetworkModel is made of.
template <class Family>
struct FlowVlaParts {
  static constexpr std::string_view name = Family::name;
  using knobs = FlowVlaKnobs;
  using Network = FlowVlaBody<Family>;
  using Head = FlowVlaHead<Family>;
};

}  // namespace dvla::detail
