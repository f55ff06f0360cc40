// SmolVLA's machinery (Shukor et al., arXiv 2506.01844): the first half of SmolVLM2 and an action expert (model/smolvla_network.hpp)
// under flow matching (model/flow_head.hpp): its noise runs as pi0's does, so pi_RL's formulas hold. Cameras
// are resized and padded above and to the left; the prompt is the task and a line's end; the state is a token. Needs
// torch. Weights are random or a published checkpoint's, lerobot's. A value head where one is asked for (WithValue), which
// reads the prefix. No CUDA.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/flow_vla.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/smolvla_network.hpp"

namespace dvla {

namespace detail {

struct SmolVlaFamily {
  static constexpr std::string_view name = "SmolVLA";
  static constexpr auto slots = std::to_array<std::string_view>({"camera1", "camera2", "camera3"});
  using Network = SmolVlaNetwork;
  static constexpr std::int64_t padding = 0;
  static constexpr std::string_view language = ".text_model.";
  static constexpr bool begins = false, ends_blank = false, pads_before = false, tells_state = false;
  static constexpr bool state_apart = true, wide_tower = false;

  static SmolVlaShape shape(const FlowVlaKnobs& knobs) {
    check(knobs);
    if (knobs.pictures == Pictures::openpi)
      throw ConfigError("model.pictures is openpi, and SmolVLA has lerobot's way alone; leave it out");
    if (!knobs.discrete_state_input)
      throw ConfigError(
          "model.discrete_state_input is false, and SmolVLA's prompt never has the state in it; leave it "
          "true");
    if (knobs.keep_prefix)
      throw ConfigError(
          "model.keep_prefix is true, and SmolVLA's prefix does not stay: the state's projection trains "
          "within it; "
          "leave it false");
    SmolVlaShape shape = knobs.checkpoint.empty() ? random_shape(knobs.random)
                                                  : published_shape(PublishedConfig(knobs.checkpoint));
    if (knobs.horizon > 0) shape.horizon = knobs.horizon;
    shape.noise = noise_widths(knobs, shape.noise);
    return shape;
  }
  /// Nobody reads lm_head. Older files have the data's statistics among the weights.
  static const PublishedNames& names() {
    static const std::string language = "vlm_with_expert.vlm.";
    static const PublishedNames names{
        .tied = {{language + "model.text_model.embed_tokens.weight", language + "lm_head.weight"}},
        .dead = R"(vlm_with_expert\.vlm\.lm_head\.weight|(value|noise)_head\..*|(un)?normalize_\w+\..*)"};
    return names;
  }
  static std::int64_t image_tokens(const SmolVlaShape& shape) { return shape.image_tokens(); }
  static TakenPictures<Pictures> pictures(const PublishedConfig&) {
    return {Pictures::lerobot, "SmolVLA has no other"};
  }
  static at::Tensor image(const at::Tensor& frames, std::int64_t side, Pictures) {
    return layers::resized_with_pad(frames, side, layers::Padding::before);
  }
  static std::string prompt(const std::string& task, std::span<const float>) {
    return task.ends_with('\n') ? task : task + "\n";
  }

 private:
  static SmolVlaShape random_shape(RandomWeights random) {
    SmolVlaShape shape;
    shape.horizon = 8;
    if (random == RandomWeights::tiny) {
      shape.vocabulary = 512;
      shape.text = 64;
      shape.vision.width = 32, shape.vision.layers = 2, shape.vision.heads = 2, shape.vision.mlp = 64;
      shape.vision.image = 64, shape.vision.patch = 8;
      shape.language.width = 64, shape.language.layers = 4, shape.language.mlp = 128;
      shape.expert.width = 48, shape.expert.layers = 4, shape.expert.mlp = 96;
      for (parts::DecoderShape* each : {&shape.language, &shape.expert})
        each->heads = 4, each->kv_heads = 2, each->head_width = 16;
      shape.value = {32, 16, 8};
    }
    return shape;
  }
  /// lerobot's config.json, whose class has the published extents where it is silent.
  static SmolVlaShape published_shape(const PublishedConfig& config) {
    SmolVlaShape shape;
    if (config.own(name, shape)) return shape;
    config.is("type", "smolvla", "this model");
    config.supports("vlm_model_name",
                    {"HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "HuggingFaceTB/SmolVLM2-500M-Instruct"});
    config.supports("attention_mode", {"cross_attn"});
    config.supports("add_image_special_tokens", {false});
    config.supports("adapt_to_pi_aloha", {false});
    config.supports("prefix_length", {-1, 0});
    shape.horizon = config.count("chunk_size", shape.horizon);
    shape.actions = config.count("max_action_dim", shape.actions);
    shape.states = config.count("max_state_dim", shape.states);
    shape.text = config.count("tokenizer_max_length", shape.text);
    shape.shortest_period = config.number("min_period", shape.shortest_period);
    shape.longest_period = config.number("max_period", shape.longest_period);
    shape.vision.image =
        config.side("resize_imgs_with_padding", shape.vision.image, shape.vision.patch * shape.shuffle);
    if (config.images() > 0) shape.views = config.images();
    shape.joint_every =
        std::max<std::int64_t>(config.count("self_attn_every_n_layers", shape.joint_every, -1), 0);
    shape.language.layers = config.count("num_vlm_layers", shape.language.layers, 1, 32);
    config.supports("num_expert_layers", {-1, 0, shape.language.layers});
    shape.expert.layers = shape.language.layers;
    // smolvlm_with_expert.py:110, 67: two thirds of four times the width, up to a multiple of 256.
    shape.expert.width = static_cast<std::int64_t>(static_cast<double>(shape.language.width) *
                                                   config.number("expert_width_multiplier", 0.75));
    shape.expert.mlp = (4 * (2 * shape.expert.width / 3) + 255) / 256 * 256;
    return shape;
  }
};

}  // namespace detail

/// One thread at a time per object; copies share what is frozen. Errors: as NetworkModel's; ConfigError where the
/// environment gives no camera, an unknown one is named, or prompt or state would not fit.
using SmolVlaModel = NetworkModel<detail::FlowVlaParts<detail::SmolVlaFamily>>;

template <class Pipeline>
struct machinery<SmolVLA, Pipeline> {
  using type = SmolVlaModel;
};

}  // namespace dvla
