// The body of models that turn noise into actions (pi0.5, SmolVLA): from an observation to the inputs of their networks, and what
// NetworkModel asks of a network. Needs torch. As long as no tokeniser is read, a prompt's tokens are its bytes.
//
// A Family has `name`, `slots` for cameras, as many as the network's views, `Network`, `shape(knobs)`,
// `image(frames, side, pictures)`, `image_tokens(shape)` a camera, `prompt(task, state)`, the tokens `begin` (below 0: none) and
// `padding`; `state_apart`: whether the state goes in as numbers, too; `wide_tower`: whether the vision tower computes in
// float32 whatever its weights are.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/model/fields.hpp"
#include "dvla/model/flow_head.hpp"
#include "dvla/model/flow_vla_knobs.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/vla_inputs.hpp"

namespace dvla::detail {

/// The task's sentence, and what the family writes beside it, as tokens.
template <class Family>
class FlowVlaPrompts {
 public:
  /// Throws ConfigError where a prompt could be longer than `length` tokens.
  FlowVlaPrompts(const ObservationSpec& spec, std::int64_t length)
      : state_(spec.proprioception), length_(length) {
    need_instructions(Family::name, spec);
    for (const std::string& instruction : spec.instructions) {
      tasks_.push_back(instruction);
      const std::vector<float> widest(static_cast<std::size_t>(state_), 1);
      const std::int64_t longest = begins + std::ssize(text(std::ssize(tasks_) - 1, widest));
      if (longest > length)
        throw ConfigError(Family::name, ": the instruction '", instruction, "' and ", state_,
                          " numbers of state make up to ", longest, " tokens, and the model takes ", length);
    }
  }

  /// The reference's prompt; state: [P].
  std::string text(std::int64_t task, std::span<const float> state) const {
    return Family::prompt(tasks_.at(static_cast<std::size_t>(task)), state);
  }
  /// Into a row of [n, length], padded on the right; returns how many there are.
  std::int64_t tokens(std::int64_t task, std::span<const float> state, std::int64_t* to) const {
    std::fill_n(to, length_, Family::padding);
    if constexpr (begins > 0) to[0] = Family::begin;
    const std::string prompt = text(task, state);
    byte_tokens(prompt, to + begins);
    return begins + std::ssize(prompt);
  }
  std::int64_t tasks() const { return std::ssize(tasks_); }

 private:
  static constexpr std::int64_t begins = Family::begin >= 0 ? 1 : 0;

  std::int64_t state_, length_;
  std::vector<std::string> tasks_;
};

/// The network with an observation before it, as NetworkModel wants it. There are no values.
template <class Family>
class FlowVlaBody {
 public:
  using Network = typename Family::Network;
  using Prefix = typename Network::Prefix;

  FlowVlaBody(const FlowVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape)
      : spec_(inputs.observation),
        parameters_(knobs.dtype, inputs.adapters),
        network_(Family::shape(knobs), parameters_, knobs.train == Trained::expert),
        prompts_(spec_, network_.shape().text),
        queries_(shape),
        pictures_(knobs.pictures) {
    if (inputs.value_head.values > 0) throw ConfigError(Family::name, " has no value head in this version");
    if constexpr (Family::state_apart)
      if (spec_.proprioception > network_.shape().states)
        throw ConfigError(Family::name, ": the environment's state has ", spec_.proprioception,
                          " numbers, and the model takes ", network_.shape().states);
    slots_ = chosen_cameras(Family::name, spec_, knobs.cameras, Family::slots);
  }
  FlowVlaBody(const FlowVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape, std::uint64_t seed,
              const ComputeDevice& /*the host*/, const FlowVlaBody* original)
      : FlowVlaBody(knobs, inputs, shape) {
    original == nullptr ? parameters_.allocate(seed) : parameters_.share(original->parameters_);
  }
  FlowVlaBody(const FlowVlaBody&) = delete;
  FlowVlaBody& operator=(const FlowVlaBody&) = delete;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  Prefix prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    return network_.prefix(inputs(observation, rows));
  }
  /// [n, H * D].
  at::Tensor queries(const Prefix& prefix, std::int64_t n, std::span<const float> noise,
                     std::span<const float> times) const {
    return network_
        .velocity(prefix, tensor(noise, {n, queries_.queries, queries_.outputs}), tensor(times, {n}))
        .flatten(1);
  }
  struct Results {
    at::Tensor actions, values;
  };
  Results forward(const Observation& observation, std::span<const std::int64_t> rows,
                  std::span<const float> noise, std::span<const float> times, Outputs) {
    const std::int64_t n = std::ssize(rows);
    return {network_
                .forward(inputs(observation, rows), tensor(noise, {n, queries_.queries, queries_.outputs}),
                         tensor(times, {n}))
                .flatten(1),
            {}};
  }
  at::Tensor values(const Prefix&, std::int64_t) const {
    throw Error(std::string(Family::name), " has no value head in this version");
  }
  void backward_begins(bool) { parameters_.backward_begins(); }

  /// Activations at the peak of an inference: a camera's frames while they are resized, the keys and values of all layers, and what the widest layer of the
  /// prefix or of the vision tower has at once.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const auto& s = network_.shape();
    const std::int64_t prefix = prefix_tokens(),
                       kept = s.language.layers * prefix * 2 * s.language.kv_heads * s.language.head_width;
    const std::int64_t text = prefix * (4 * s.language.width + 3 * s.language.mlp) + 2 * prefix * prefix;
    const std::int64_t vision =
        std::ssize(slots_) * s.vision.tokens() * (6 * s.vision.width + 2 * s.vision.mlp);
    const std::int64_t matrix = std::max(s.language.width * s.language.mlp, s.vision.width * s.vision.mlp);
    return static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(kept + text) * bytes_of(dtype()) +
                static_cast<std::size_t>(vision) * 4 + resizing_bytes(spec_, slots_)) +
           widened_bytes(dtype(), matrix) + wide_bytes(s.vision.width * s.vision.mlp);
  }
  /// The same of a forward and backward pass: what the graph keeps of every layer that something trains in or behind.
  std::size_t training_bytes(std::int64_t rows) const {
    const auto& s = network_.shape();
    const auto layer = [](const parts::DecoderShape& of, std::int64_t tokens, std::int64_t seen) {
      return tokens * (10 * of.width + 4 * of.mlp + 6 * of.heads * of.head_width) +
             2 * tokens * seen * of.heads;
    };
    const std::int64_t prefix = prefix_tokens(), suffix = s.horizon;
    const bool whole = std::ranges::any_of(parameters_.parameters(), [&](const Parameter& each) {
      return each.trainable && each.unit <= static_cast<std::size_t>(s.vision.layers);
    });
    const std::int64_t kept =
        s.language.layers * (layer(s.language, prefix, prefix) + layer(s.expert, suffix, prefix + suffix));
    const std::int64_t vision = whole ? s.vision.layers * std::ssize(slots_) * s.vision.tokens() *
                                            (12 * s.vision.width + 3 * s.vision.mlp)
                                      : 0;
    const std::size_t wide =
        whole ? wide_bytes(s.vision.layers * tower_layer()) : 0;  // for the gradient of what they multiply
    return sampling_bytes(rows) + wide +
           static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(kept) * bytes_of(dtype()) + static_cast<std::size_t>(vision) * 4);
  }

 private:
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
    return std::ssize(slots_) * Family::image_tokens(network_.shape()) + network_.shape().text + 1;
  }

  typename Network::Inputs inputs(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = std::ssize(rows), L = network_.shape().text;
    typename Network::Inputs made;
    for (const std::size_t camera : slots_)
      made.images.push_back(Family::image(tensor_of(observation.frames.at(camera), rows),
                                          network_.shape().vision.image, pictures_));
    made.image_mask = at::ones({n, std::ssize(slots_)}, at::kBool);
    made.tokens = at::empty({n, L}, at::kLong);
    made.token_mask = at::zeros({n, L}, at::kBool);
    if constexpr (Family::state_apart) made.state = at::zeros({n, network_.shape().states}, at::kFloat);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = rows[static_cast<std::size_t>(i)];
      const std::int32_t task = task_of(Family::name, observation, row, prompts_.tasks());
      const std::span<const float> state =
          spec_.proprioception > 0 ? std::span<const float>(observation.proprioception.at(row).span())
                                   : std::span<const float>();
      const std::int64_t count =
          prompts_.tokens(task, state, made.tokens.template mutable_data_ptr<std::int64_t>() + i * L);
      std::fill_n(made.token_mask.template mutable_data_ptr<bool>() + i * L, count, true);
      if constexpr (Family::state_apart)
        std::ranges::copy(state, made.state.template mutable_data_ptr<float>() + i * network_.shape().states);
    }
    return made;
  }

  ObservationSpec spec_;
  Parameters parameters_;
  Network network_;
  FlowVlaPrompts<Family> prompts_;
  QueryShape queries_;
  std::vector<std::size_t> slots_;  ///< the environment's camera in each; slots without one are left out
  Pictures pictures_;
};

template <class Family>
struct FlowVlaHead : FlowHeadMachinery {
  FlowVlaHead(const FlowVlaKnobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : FlowHeadMachinery(knobs, action, seed, {knobs.horizon, Family::shape(knobs).actions}) {}
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
