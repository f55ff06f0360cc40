// OpenVLA-OFT's machinery (Kim et al., arXiv 2502.19645) as it is trained by reinforcement learning (RLinf, SimpleVLA-RL): two
// vision towers and a Llama (model/openvla_network.hpp) whose one pass puts out all action tokens of a decision, under
// a softmax over the 256 of them (model/token_head.hpp). Here: from an observation to the network's inputs. Cameras are
// resized and normalised as RLinf does; the prompt is the reference's, padded before its text, and nothing stands behind
// the actions (RLinf drops STOP, which the authors' code keeps). The robot's state is not read, nor is it in the public
// checkpoints for tokens. Needs torch. Weights are random or a published checkpoint's; no tokeniser is read, so a prompt's
// tokens are its bytes. No value head, no CUDA.
//
// Under LoRA, RLinf's targets are all linear layers, which an empty --lora-targets is too; by name:
//   --lora-targets '.*\.(proj|qkv|q|kv|fc[123]|out_proj|[qkvo]_proj|gate_proj|up_proj|down_proj|lm_head)'
//
// Legend: n rows, V views, P patches a view, L prompt tokens, E action tokens, S tokens that Llama reads.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/fields.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/openvla_network.hpp"
#include "dvla/model/published_config.hpp"
#include "dvla/model/published_weights.hpp"
#include "dvla/model/token_head.hpp"
#include "dvla/model/vla_inputs.hpp"

namespace dvla {

namespace detail {

/// The extents that OpenVLA's config.json says, where the classes that wrote it have others than the published ones.
inline OpenVlaShape published_openvla_shape(const PublishedConfig& config) {
  OpenVlaShape shape;
  if (config.own("OpenVLAOFT", shape)) return shape;
  config.is("model_type", "openvla", "this model");
  config.supports("arch_specifier", {"no-align+fused-gelu-mlp"});
  config.supports("use_fused_vision_backbone", {true, nullptr});
  config.supports(
      "timm_model_ids",
      {nlohmann::json::array({"vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"})});
  config.supports("image_sizes", {nlohmann::json::array({224, 224})});
  config.supports("image_resize_strategy", {"resize-naive"});
  config.supports("n_action_bins", {256});
  // What Transformers' LlamaConfig has where text_config is silent, which are the defaults of OpenVlaShape.
  const PublishedConfig text = config.within("text_config");
  text.supports("model_type", {"llama"});
  text.supports("hidden_act", {"silu"});
  text.supports("attention_bias", {false});
  text.supports("mlp_bias", {false});
  text.supports("rope_scaling", {nullptr});
  text.supports("tie_word_embeddings", {false});
  parts::DecoderShape& language = shape.language;
  language.width = text.count("hidden_size", language.width);
  language.layers = text.count("num_hidden_layers", language.layers, 1, 1024);
  language.mlp = text.count("intermediate_size", language.mlp);
  language.heads = text.count("num_attention_heads", language.heads);
  language.kv_heads = text.count("num_key_value_heads", language.heads);
  language.head_width = text.count("head_dim", language.width / language.heads);
  language.norm_eps = text.number("rms_norm_eps", language.norm_eps);
  language.theta = text.number("rope_theta", language.theta);
  shape.vocabulary = text.count("vocab_size", shape.vocabulary);
  shape.unused = config.count("pad_to_multiple_of", shape.unused, 0);
  return shape;
}
inline const PublishedNames& openvla_names() {
  static const PublishedNames names{.dead = R"(value_head\..*)"};
  return names;
}

inline OpenVlaShape openvla_oft_shape(const OpenVlaOftKnobs& knobs, std::int64_t views,
                                      std::int64_t dimensions) {
  check(knobs);
  OpenVlaShape shape;
  if (!knobs.checkpoint.empty()) shape = published_openvla_shape(PublishedConfig(knobs.checkpoint));
  shape.stop = false;
  shape.views = views;
  shape.chunk = knobs.chunk;
  shape.dimensions = dimensions;
  if (knobs.random == RandomWeights::tiny) {
    shape.vocabulary = 640;
    for (parts::VitShape* tower : {&shape.dinov2, &shape.siglip})
      tower->layers = 3, tower->heads = 2, tower->mlp = 64, tower->image = 56;
    shape.dinov2.width = 32, shape.siglip.width = 48;
    shape.language.width = 64, shape.language.layers = 2, shape.language.mlp = 128;
    shape.language.heads = shape.language.kv_heads = 4, shape.language.head_width = 16;
  }
  return shape;
}

/// The tasks' sentences, as tokens: BOS, padding up to the longest, the text.
class OpenVlaPrompts {
 public:
  static constexpr std::int64_t begin = 1;

  /// Throws ConfigError where there is no instruction.
  OpenVlaPrompts(const ObservationSpec& spec, std::int64_t padding) : padding_(padding) {
    need_instructions("OpenVLAOFT", spec);
    for (const std::string& instruction : spec.instructions) texts_.push_back(text(instruction));
    const auto [shortest, longest] =
        std::ranges::minmax(texts_, {}, [](const std::string& each) { return each.size(); });
    length_ = 1 + std::ssize(longest);
    padded_ = shortest.size() < longest.size();
  }

  /// The reference's prompt. Its blank at the end is a token of its own, which the first action is read at: 29871, where
  /// tokens are SentencePiece's.
  static std::string text(std::string_view instruction) {
    std::string lower(instruction);
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return "In: What action should the robot take to " + lower + "?\nOut: ";
  }
  std::int64_t length() const { return length_; }
  bool padded() const { return padded_; }  ///< some are
  std::int64_t tasks() const { return std::ssize(texts_); }
  /// Into a row of [n, length]; returns where the text begins.
  std::int64_t tokens(std::int64_t task, std::int64_t* to) const {
    const std::string& own = texts_.at(static_cast<std::size_t>(task));
    const std::int64_t from = length_ - std::ssize(own);
    std::fill_n(to, from, padding_);
    to[0] = begin;
    byte_tokens(own, to + from);
    return from;
  }

 private:
  std::int64_t padding_, length_ = 0;
  bool padded_ = false;
  std::vector<std::string> texts_;
};

/// The network with an observation before it, as NetworkModel wants it. There are no values.
class OpenVlaOftBody {
 public:
  /// One pass makes all of a decision, so what is shared is its inputs.
  using Prefix = OpenVlaNetwork::Inputs;

  OpenVlaOftBody(const OpenVlaOftKnobs& knobs, const ModelInputs& inputs, QueryShape /*E of 256*/,
                 const OpenVlaOftBody* original = nullptr)
      : cameras_(chosen_cameras("OpenVLAOFT", inputs.observation, knobs.cameras)),
        resizing_(resizing_bytes(inputs.observation, cameras_)),
        weights_(original == nullptr ? knobs.checkpoint : "", openvla_names()),
        parameters_(knobs.dtype, weights_.under(inputs.adapters)),
        network_(openvla_oft_shape(knobs, std::ssize(cameras_), inputs.action.dimensions), parameters_),
        prompts_(inputs.observation, network_.shape().vocabulary - network_.shape().unused) {
    if (inputs.value_head.values > 0) throw ConfigError("OpenVLAOFT has no value head in this version");
    weights_.check("OpenVLAOFT", parameters_.parameters());
  }
  OpenVlaOftBody(const OpenVlaOftKnobs& knobs, const ModelInputs& inputs, QueryShape shape,
                 std::uint64_t seed, const ComputeDevice& /*the host*/, const OpenVlaOftBody* original)
      : OpenVlaOftBody(knobs, inputs, shape, original) {
    original == nullptr ? weights_.fill(parameters_, seed) : parameters_.share(original->parameters_);
  }
  OpenVlaOftBody(const OpenVlaOftBody&) = delete;
  OpenVlaOftBody& operator=(const OpenVlaOftBody&) = delete;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  std::vector<std::string> notes() const { return weights_.notes(); }
  std::string config_text() const { return own_config("OpenVLAOFT", network_.shape()); }

  Prefix prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = std::ssize(rows), L = prompts_.length();
    std::vector<at::Tensor> views;
    for (const std::size_t camera : cameras_)
      views.push_back(layers::normalised_twice(layers::resized_bicubic(
          tensor_of(observation.frames.at(camera), rows), network_.shape().dinov2.image)));
    Prefix made;
    made.pixels = at::cat(views, 1);
    made.tokens = at::empty({n, L}, at::kLong);
    std::vector<std::int64_t> from;
    for (std::int64_t i = 0; i < n; ++i)
      from.push_back(prompts_.tokens(
          task_of("OpenVLAOFT", observation, rows[static_cast<std::size_t>(i)], prompts_.tasks()),
          made.tokens.mutable_data_ptr<std::int64_t>() + i * L));
    if (!prompts_.padded()) return made;
    made.token_mask = at::empty({n, L}, at::kBool);
    for (std::int64_t i = 0; i < n; ++i) {
      bool* const valid = made.token_mask.mutable_data_ptr<bool>() + i * L;
      std::fill_n(valid, L, true);
      std::fill(valid + 1, valid + from[static_cast<std::size_t>(i)], false);
    }
    return made;
  }
  /// [n, E * 256].
  at::Tensor queries(const Prefix& prefix, std::int64_t, std::span<const float>,
                     std::span<const float>) const {
    return network_.forward(prefix).logits.flatten(1);
  }
  struct Results {
    at::Tensor actions, values;
  };
  Results forward(const Observation& observation, std::span<const std::int64_t> rows, std::span<const float>,
                  std::span<const float>, Outputs) const {
    return {network_.forward(prefix(observation, rows)).logits.flatten(1), {}};
  }
  at::Tensor values(const Prefix&, std::int64_t) const {
    throw Error("OpenVLAOFT has no value head in this version");
  }
  void backward_begins(bool) { parameters_.backward_begins(); }

  /// Activations at the peak of an inference: a camera's frames while they are resized, what the widest layer of either tower and of
  /// Llama has at once, and the logits.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const OpenVlaShape& s = network_.shape();
    const std::int64_t S = tokens(), seen = s.dinov2.width + s.siglip.width;
    const auto vision = [&](const parts::VitShape& of) {
      return s.views * (of.prefix() + of.tokens()) * (6 * of.width + 2 * of.mlp);
    };
    const std::int64_t pixels = s.views * 6 * s.dinov2.image * s.dinov2.image;
    const std::int64_t towers = std::max(vision(s.dinov2), vision(s.siglip));
    const std::int64_t projected = s.views * s.dinov2.tokens() * (9 * seen + 2 * s.language.width);
    const std::int64_t text = S * (8 * s.language.width + 3 * s.language.mlp) + 2 * S * S;
    return static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(pixels + towers + projected + text) * bytes_of(dtype()) +
                static_cast<std::size_t>(pixels + 2 * s.actions() * s.bins) * 4 + resizing_) +
           widened();
  }
  /// The same of a forward and backward pass: what the graph keeps of every layer that something trains in or before.
  std::size_t training_bytes(std::int64_t rows) const {
    const OpenVlaShape& s = network_.shape();
    const std::int64_t S = tokens();
    const bool whole = std::ranges::any_of(parameters_.parameters(), [](const Parameter& each) {
      return each.trainable && each.name.find("vision_backbone") != std::string::npos;
    });
    const auto vision = [&](const parts::VitShape& of) {
      return of.layers * s.views * (of.prefix() + of.tokens()) * (16 * of.width + 3 * of.mlp);
    };
    const std::int64_t text =
        s.language.layers * (S * (16 * s.language.width + 4 * s.language.mlp) + 2 * S * S * s.language.heads);
    return sampling_bytes(rows) +
           static_cast<std::size_t>(rows) *
               static_cast<std::size_t>(text + (whole ? vision(s.dinov2) + vision(s.siglip) : 0)) *
               bytes_of(dtype());
  }

 private:
  Dtype dtype() const { return parameters_.parameters().front().dtype; }
  std::size_t widened() const {
    const OpenVlaShape& s = network_.shape();
    const std::int64_t d = s.language.width, seen = s.dinov2.width + s.siglip.width;
    return widened_bytes(dtype(), std::max({s.language.mlp * d, 4 * seen * d, 4 * seen * seen}));
  }
  /// S.
  std::int64_t tokens() const {
    const OpenVlaShape& s = network_.shape();
    return s.views * s.dinov2.tokens() + prompts_.length() + s.actions();
  }

  std::vector<std::size_t> cameras_;  ///< the environment's, a view each
  std::size_t resizing_;              ///< of them, bytes a row
  PublishedWeights weights_;          ///< none in a copy
  Parameters parameters_;
  OpenVlaNetwork network_;
  OpenVlaPrompts prompts_;
};

/// 256 action tokens for 255 bins between 256 edges, from the highest bin on: the last token is the lowest. The first stands for
/// an action of 1 and has the second one's bin, as in the reference (openvla's action_tokenizer.py).
struct OpenVlaOftHead : TokenHeadMachinery {
  OpenVlaOftHead(const OpenVlaOftKnobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : TokenHeadMachinery(knobs, action, seed, {256, 255, true}) {
    if (!action.continuous())
      throw ConfigError(
          "OpenVLAOFT's tokens stand for numbers, and the environment has a dimension of categories; choose "
          "TinyVLA<TokenHead>");
  }
};

struct OpenVlaOftParts {
  static constexpr std::string_view name = "OpenVLAOFT";
  using knobs = OpenVlaOftKnobs;
  using Network = OpenVlaOftBody;
  using Head = OpenVlaOftHead;
};

}  // namespace detail

/// One thread at a time per object; copies share what is frozen. Errors: as NetworkModel's; ConfigError where the
/// environment gives no camera, an unknown one is named, there is no instruction, or an action is a category.
using OpenVlaOftModel = NetworkModel<detail::OpenVlaOftParts>;

template <class Pipeline>
struct machinery<OpenVLAOFT, Pipeline> {
  using type = OpenVlaOftModel;
};

}  // namespace dvla
