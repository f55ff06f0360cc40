// OpenVLA-OFT's machinery (Kim et al., arXiv 2502.19645) as it is trained by reinforcement learning (RLinf, SimpleVLA-RL): two
// vision towers and a Llama (model/openvla_network.hpp) whose one pass puts out all action tokens of a decision, under
// a softmax over the 256 of them (model/token_head.hpp). Here: from an observation to the network's inputs. Cameras are
// resized as RLinf does, or the authors, and normalised; the prompt is the reference's, padded before its text, and nothing stands behind
// the actions (RLinf drops STOP, which the authors' code keeps). The robot's state is not read, nor is it in the public
// checkpoints for tokens. Needs torch. Weights are random or a published checkpoint's. A value head where one is asked for
// (WithValue), as RLinf has it. No CUDA.
//
// Under LoRA, RLinf's targets are all linear layers, which an empty --lora-targets is too; by name:
//   --lora-targets '.*\.(proj|qkv|q|kv|fc[123]|out_proj|[qkvo]_proj|gate_proj|up_proj|down_proj|lm_head)'
//
// Legend: n rows, V views, P patches a view, L prompt tokens, E action tokens, S tokens that Llama reads.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/fields.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/layers/lanczos_crop.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/openvla_network.hpp"
#include "dvla/model/prompts.hpp"
#include "dvla/model/published_config.hpp"
#include "dvla/model/published_weights.hpp"
#include "dvla/model/token_head.hpp"
#include "dvla/model/tokenizers/unicode.hpp"
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
  // What Transformers' LlamaConfig has where text_config is silent, which are the defaults of OpenVlaShape but for vocab_size: OpenVLA's
  // own, padded.
  const PublishedConfig text = config.within("text_config");
  text.supports("model_type", {"llama"});
  text.supports("hidden_act", {"silu"});
  text.supports("attention_bias", {false});
  text.supports("mlp_bias", {false});
  text.supports("rope_scaling", {nullptr});
  text.supports("rope_parameters", {nullptr});  // as Transformers 5 writes both
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
  config.demand(language.heads % language.kv_heads == 0,
                "text_config.num_attention_heads must be a multiple of num_key_value_heads");
  config.demand(shape.vocabulary > shape.unused + shape.bins,
                "text_config.vocab_size must be more than pad_to_multiple_of and 256 action tokens");
  return shape;
}
inline const PublishedNames& openvla_names() {
  static const PublishedNames names{.dead = R"((value|noise)_head\..*)"};
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
    shape.value = {32, 16};
  }
  return shape;
}

/// The reference's prompt. Its blank at the end is a token of its own, which the first action is read at: Llama's 29871.
struct OpenVlaWording {
  static constexpr std::string_view name = "OpenVLAOFT";
  static constexpr bool begins = true, ends_blank = true, pads_before = true, tells_state = false;

  static std::string prompt(const std::string& task, std::span<const float>) {
    return "In: What action should the robot take to " + lower_case(task) + "?\nOut: ";
  }
};

/// Whether a folder has the head that OpenVLA-OFT's authors make actions by, whose action tokens nobody has trained then.
inline bool has_action_head(const std::string& folder) {
  if (folder.empty()) return false;
  std::error_code code;
  return std::ranges::any_of(std::filesystem::directory_iterator(folder, code), [](const auto& entry) {
    return entry.path().filename().native().starts_with("action_head");
  });
}

/// Beside an action head lie the authors' own weights. SimpleVLA-RL's, which are theirs trained on, and RLinf's look alike.
inline TakenPictures<OpenVlaPictures> openvla_pictures(const OpenVlaOftKnobs& knobs) {
  return taken_pictures(
      knobs.pictures, knobs.checkpoint, OpenVlaPictures::rlinf, [&](const PublishedConfig&) {
        if (has_action_head(knobs.checkpoint))
          return TakenPictures<OpenVlaPictures>{OpenVlaPictures::authors, "the folder has an action_head"};
        return TakenPictures<OpenVlaPictures>{
            OpenVlaPictures::rlinf,
            "the folder has no action_head; nothing in it tells SimpleVLA-RL's, which wants authors"};
      });
}

/// The network with an observation before it, as NetworkModel wants it.
class OpenVlaOftBody {
 public:
  /// One pass makes all of a decision.
  using Prefix = OpenVlaNetwork::Outputs;

  OpenVlaOftBody(const OpenVlaOftKnobs& knobs, const ModelInputs& inputs, QueryShape /*E of 256*/,
                 const OpenVlaOftBody* original = nullptr)
      : cameras_(chosen_cameras("OpenVLAOFT", inputs.observation, knobs.cameras)),
        resizing_(resizing_bytes(inputs.observation, cameras_)),
        weights_(original == nullptr ? knobs.checkpoint : "", openvla_names()),
        parameters_(knobs.dtype, weights_.under(inputs.adapters)),
        network_(original == nullptr ? shape_of(knobs, inputs) : original->network_.shape(), parameters_,
                 inputs.value_head),
        prompts_(inputs.observation, {tokenizer_of(knobs), network_.shape().vocabulary,
                                      network_.shape().vocabulary - network_.shape().unused}),
        pictures_(openvla_pictures(knobs)),
        values_(inputs.value_head.values),
        has_action_head_(has_action_head(knobs.checkpoint)) {
    parameters_.recompute(knobs.gradient_checkpointing);
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
  std::vector<std::string> notes() const {
    std::vector<std::string> all = weights_.notes();
    all.push_back(prompts_.note());
    pictures_.add_to(all);
    if (has_action_head_)
      all.push_back(
          "the folder has an action_head: its model was trained to act by that, and may never have learned "
          "the "
          "tokens that are sampled here");
    return all;
  }
  const PublishedWeights& published() const { return weights_; }
  std::string config_text() const { return own_config("OpenVLAOFT", network_.shape(), pictures_.way); }

  OpenVlaNetwork::Inputs inputs(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = std::ssize(rows), L = prompts_.length();
    std::vector<at::Tensor> views;
    for (const std::size_t camera : cameras_)
      views.push_back(layers::normalised_twice(picture(tensor_of(observation.frames.at(camera), rows))));
    OpenVlaNetwork::Inputs made;
    made.pixels = at::cat(views, 1);
    made.tokens = at::empty({n, L}, at::kLong);
    at::Tensor valid = at::empty({n, L}, at::kBool);
    for (std::int64_t i = 0; i < n; ++i)
      prompts_.write(task_of("OpenVLAOFT", observation, rows[static_cast<std::size_t>(i)], prompts_.tasks()),
                     {}, made.tokens.mutable_data_ptr<std::int64_t>() + i * L,
                     valid.mutable_data_ptr<bool>() + i * L);
    if (prompts_.padded()) made.token_mask = valid;
    return made;
  }
  Prefix prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    return network_.forward(inputs(observation, rows));
  }
  /// [n, E * 256].
  at::Tensor queries(const Prefix& prefix, std::int64_t, std::span<const float>,
                     std::span<const float>) const {
    return prefix.logits.flatten(1);
  }
  struct Results {
    at::Tensor actions, values;
  };
  Results forward(const Observation& observation, std::span<const std::int64_t> rows, std::span<const float>,
                  std::span<const float>, Outputs outputs) const {
    const auto made = network_.forward(inputs(observation, rows), {}, outputs != Outputs::actions);
    return {made.logits.flatten(1), made.values};
  }
  at::Tensor values(const Prefix& prefix, std::int64_t) const { return network_.values(prefix); }
  void backward_begins(bool of_values) { network_.backward_begins(of_values); }

  /// Activations at the peak of an inference: a camera's frames while they are resized, what the widest layer of either tower and of
  /// Llama has at once, and the logits.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const OpenVlaShape& s = network_.shape();
    const std::int64_t S = tokens(), seen = s.dinov2.width + s.siglip.width;
    const auto vision = [&](const parts::VitShape& of) {
      const std::int64_t tokens = of.prefix() + of.tokens();
      return s.views * tokens * (6 * of.width + std::max(2 * of.mlp, 3 * of.heads * tokens));
    };
    const std::int64_t pixels = s.views * 6 * s.dinov2.image * s.dinov2.image;
    const std::int64_t towers = std::max(vision(s.dinov2), vision(s.siglip));
    const std::int64_t projected = s.views * s.dinov2.tokens() * (9 * seen + 2 * s.language.width);
    const std::int64_t text =
        S * (8 * s.language.width + 3 * std::max(s.language.mlp, s.language.heads * S)) + 2 * S * S;
    return static_cast<std::size_t>(rows) *
               (static_cast<std::size_t>(pixels + towers + projected + text) * bytes_of(dtype()) +
                static_cast<std::size_t>(pixels + 2 * s.actions() * s.bins + judging()) * 4 + resizing_) +
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
      const std::int64_t tokens = of.prefix() + of.tokens(), seen = s.views * tokens;
      return parameters_.kept_by_layers(
          of.layers, seen * (16 * of.width + 3 * of.mlp + 2 * of.heads * tokens), seen * of.width);
    };
    const std::int64_t text = parameters_.kept_by_layers(
        s.language.layers, S * (16 * s.language.width + 4 * s.language.mlp) + 2 * S * S * s.language.heads,
        S * s.language.width);
    return sampling_bytes(rows) +
           static_cast<std::size_t>(rows) *
               static_cast<std::size_t>(text + (whole ? vision(s.dinov2) + vision(s.siglip) : 0)) *
               bytes_of(dtype());
  }

 private:
  /// With a value head as wide as the checkpoint's own.
  OpenVlaShape shape_of(const OpenVlaOftKnobs& knobs, const ModelInputs& inputs) const {
    OpenVlaShape shape = openvla_oft_shape(knobs, std::ssize(cameras_), inputs.action.dimensions);
    weights_.take_widths("value_head", shape.value);
    return shape;
  }
  at::Tensor picture(const at::Tensor& frames) const {
    const std::int64_t side = network_.shape().dinov2.image;
    return pictures_.way == OpenVlaPictures::authors ? layers::lanczos_crop(frames, side)
                                                     : layers::resized_bicubic(frames, side);
  }
  Dtype dtype() const { return parameters_.parameters().front().dtype; }
  std::size_t widened() const {
    const OpenVlaShape& s = network_.shape();
    const std::int64_t d = s.language.width, seen = s.dinov2.width + s.siglip.width;
    return widened_bytes(dtype(), std::max({s.language.mlp * d, 4 * seen * d, 4 * seen * seen}));
  }
  /// Numbers of float32 that values take a row.
  std::int64_t judging() const {
    const OpenVlaShape& s = network_.shape();
    if (values_ == 0) return 0;
    return 2 * std::accumulate(s.value.begin(), s.value.end(), s.language.width + values_);
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
  Prompts<OpenVlaWording> prompts_;
  TakenPictures<OpenVlaPictures> pictures_;
  std::int64_t values_;  ///< V
  bool has_action_head_;
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
