// pi0.5's machinery (Physical Intelligence, arXiv 2504.16054): PaliGemma and an action expert (model/pi0_network.hpp) under flow
// matching with flow_sde's noise (model/flow_head.hpp, as pi_RL and RLinf train it). Here: from an observation to the network's
// inputs. Cameras are resized and padded to the tower's side; the prompt is the reference's, with the state in it as
// numbers from 0 to 255. Needs torch. Random weights only: no checkpoint is read in this version, and so a prompt's
// tokens are its bytes. No value head, no cache of the prefix between rollout and training, no CUDA.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/fields.hpp"
#include "dvla/model/flow_head.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/pi0_network.hpp"
#include "dvla/model/vla_inputs.hpp"

namespace dvla {

namespace detail {

inline Pi0Shape pi05_shape(const Pi05Knobs& knobs) {
  check(knobs);
  Pi0Shape shape;
  shape.horizon = knobs.horizon;
  if (knobs.random == RandomWeights::tiny) {
    shape.vocabulary = 512;
    shape.vision.width = 32, shape.vision.layers = 2, shape.vision.heads = 2, shape.vision.mlp = 64,
    shape.vision.image = 56;
    shape.language.width = 64, shape.language.layers = 2, shape.language.mlp = 128;
    shape.expert.width = shape.expert.condition = 32, shape.expert.layers = 2, shape.expert.mlp = 64;
    for (parts::DecoderShape* each : {&shape.language, &shape.expert}) each->heads = 4, each->head_width = 16;
  }
  return shape;
}

/// The task's sentence and the state, as tokens.
class Pi05Prompts {
 public:
  static constexpr std::int64_t begin = 2, padding = 0;

  /// Throws ConfigError where a prompt could be longer than `length` tokens.
  Pi05Prompts(const ObservationSpec& spec, std::int64_t length)
      : state_(spec.proprioception), length_(length) {
    need_instructions("Pi05", spec);
    for (const std::string& instruction : spec.instructions) {
      tasks_.push_back(cleaned(instruction));
      const std::int64_t longest =
          1 +
          std::ssize(text(std::ssize(tasks_) - 1, std::vector<float>(static_cast<std::size_t>(state_), 1)));
      if (longest > length)
        throw ConfigError("Pi05: the instruction '", instruction, "' and ", state_,
                          " numbers of state make up to ", longest, " tokens, and the model takes ", length);
    }
  }

  /// The reference's prompt; state: [P], in [-1, 1], what is outside counts as the end that is near.
  std::string text(std::int64_t task, std::span<const float> state) const {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << "Task: " << tasks_.at(static_cast<std::size_t>(task)) << ", State: ";
    for (std::size_t i = 0; i < state.size(); ++i)
      out << (i > 0 ? " " : "")
          << std::clamp(static_cast<int>(std::floor((static_cast<double>(state[i]) + 1) * 128)), 0, 255);
    out << ";\nAction: ";
    return out.str();
  }
  /// Into a row of [n, length], padded on the right; returns how many there are.
  std::int64_t tokens(std::int64_t task, std::span<const float> state, std::int64_t* to) const {
    std::fill_n(to, length_, padding);
    to[0] = begin;
    const std::string prompt = text(task, state);
    byte_tokens(prompt, to + 1);
    return 1 + std::ssize(prompt);
  }
  std::int64_t tasks() const { return std::ssize(tasks_); }

 private:
  /// As the reference cleans it: no blanks at the ends, none of its line breaks, underscores are blanks.
  static std::string cleaned(std::string text) {
    const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
    while (!text.empty() && blank(text.back())) text.pop_back();
    text.erase(text.begin(), std::ranges::find_if_not(text, blank));
    for (char& c : text)
      if (c == '_' || c == '\n') c = ' ';
    return text;
  }

  std::int64_t state_, length_;
  std::vector<std::string> tasks_;
};

/// The network with an observation before it, as NetworkModel wants it. There are no values.
class Pi0Body {
 public:
  using Prefix = Pi0Network::Prefix;

  Pi0Body(const Pi05Knobs& knobs, const ModelInputs& inputs, QueryShape shape)
      : spec_(inputs.observation),
        parameters_(knobs.dtype, inputs.adapters),
        network_(pi05_shape(knobs), parameters_, knobs.train == Trained::expert),
        prompts_(spec_, network_.shape().text),
        queries_(shape) {
    if (inputs.value_head.values > 0) throw ConfigError("Pi05 has no value head in this version");
    slots_ = chosen_cameras("Pi05", spec_, knobs.cameras, static_cast<std::size_t>(network_.shape().views));
  }
  Pi0Body(const Pi05Knobs& knobs, const ModelInputs& inputs, QueryShape shape, std::uint64_t seed,
          const ComputeDevice& /*the host*/, const Pi0Body* original)
      : Pi0Body(knobs, inputs, shape) {
    original == nullptr ? parameters_.allocate(seed) : parameters_.share(original->parameters_);
  }
  Pi0Body(const Pi0Body&) = delete;
  Pi0Body& operator=(const Pi0Body&) = delete;

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
    throw Error("Pi05 has no value head in this version");
  }
  void backward_begins(bool) { parameters_.backward_begins(); }

  /// Activations at the peak of an inference: the keys and values of all layers, and what the widest layer of the
  /// prefix or of the vision tower has at once.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const Pi0Shape& s = network_.shape();
    const std::int64_t prefix = prefix_tokens(),
                       kept = s.language.layers * prefix * 2 * s.language.kv_heads * s.language.head_width;
    const std::int64_t text = prefix * (4 * s.language.width + 3 * s.language.mlp) + 2 * prefix * prefix;
    const std::int64_t vision =
        std::ssize(slots_) * s.vision.tokens() * (6 * s.vision.width + 2 * s.vision.mlp);
    return static_cast<std::size_t>(rows) *
           (static_cast<std::size_t>(kept + text) * bytes_of(dtype()) + static_cast<std::size_t>(vision) * 4);
  }
  /// The same of a forward and backward pass: what the graph keeps of every layer that something trains in or behind.
  std::size_t training_bytes(std::int64_t rows) const {
    const Pi0Shape& s = network_.shape();
    const auto layer = [](const parts::DecoderShape& of, std::int64_t tokens, std::int64_t seen) {
      return tokens * (10 * of.width + 4 * of.mlp + 6 * of.heads * of.head_width) +
             2 * tokens * seen * of.heads;
    };
    const std::int64_t prefix = prefix_tokens(), suffix = s.horizon;
    const bool whole = std::ranges::any_of(parameters_.parameters(), [](const Parameter& each) {
      return each.trainable && each.name.find("vision_tower") != std::string::npos;
    });
    const std::int64_t kept =
        s.language.layers * (layer(s.language, prefix, prefix) + layer(s.expert, suffix, prefix + suffix));
    const std::int64_t vision = whole ? s.vision.layers * std::ssize(slots_) * s.vision.tokens() *
                                            (12 * s.vision.width + 3 * s.vision.mlp)
                                      : 0;
    return sampling_bytes(rows) +
           static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(kept) * bytes_of(dtype()) + static_cast<std::size_t>(vision) * 4);
  }

 private:
  static at::Tensor tensor(std::span<const float> values, at::IntArrayRef sizes) {
    at::Tensor made = at::empty(sizes, at::kFloat);
    std::ranges::copy(values, made.mutable_data_ptr<float>());
    return made;
  }
  Dtype dtype() const { return parameters_.parameters().front().dtype; }
  std::int64_t prefix_tokens() const {
    return std::ssize(slots_) * network_.shape().vision.tokens() + network_.shape().text;
  }

  Pi0Network::Inputs inputs(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = std::ssize(rows), L = network_.shape().text;
    Pi0Network::Inputs made;
    for (const std::size_t camera : slots_)
      made.images.push_back(layers::resized_with_pad(tensor_of(observation.frames.at(camera), rows),
                                                     network_.shape().vision.image));
    made.image_mask = at::ones({n, std::ssize(slots_)}, at::kBool);
    made.tokens = at::empty({n, L}, at::kLong);
    made.token_mask = at::zeros({n, L}, at::kBool);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = rows[static_cast<std::size_t>(i)];
      const std::int32_t task = task_of("Pi05", observation, row, prompts_.tasks());
      const std::span<const float> state =
          spec_.proprioception > 0 ? std::span<const float>(observation.proprioception.at(row).span())
                                   : std::span<const float>();
      const std::int64_t count =
          prompts_.tokens(task, state, made.tokens.mutable_data_ptr<std::int64_t>() + i * L);
      std::fill_n(made.token_mask.mutable_data_ptr<bool>() + i * L, count, true);
    }
    return made;
  }

  ObservationSpec spec_;
  Parameters parameters_;
  Pi0Network network_;
  Pi05Prompts prompts_;
  QueryShape queries_;
  std::vector<std::size_t> slots_;  ///< the environment's camera in each; the others are absent
};

struct Pi05Head : FlowHeadMachinery {
  Pi05Head(const Pi05Knobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : FlowHeadMachinery(knobs, action, seed, {knobs.horizon, pi05_shape(knobs).actions}) {}
};

struct Pi05Parts {
  static constexpr std::string_view name = "Pi05";
  using knobs = Pi05Knobs;
  using Network = Pi0Body;
  using Head = Pi05Head;
};

}  // namespace detail

/// One thread at a time per object; copies share what is frozen. Errors: as NetworkModel's; ConfigError where the
/// environment gives no camera, an unknown one is named, or a prompt would not fit.
using Pi05Model = NetworkModel<detail::Pi05Parts>;

template <class Pipeline>
struct machinery<Pi05, Pipeline> {
  using type = Pi05Model;
};

}  // namespace dvla
