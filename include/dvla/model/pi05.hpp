// pi0.5's machinery (Physical Intelligence, arXiv 2504.16054): PaliGemma and an action expert (model/pi0_network.hpp) under flow
// matching (model/flow_head.hpp, with the noise of pi_RL and RLinf). Cameras are resized and padded to the tower's side, as
// lerobot does it or openpi; the prompt is the reference's, with the state in it as numbers from 0 to 255, and -1 for what is below -1.
// Needs torch. Weights are random or a published checkpoint's, openpi's or lerobot's. A value head where one is asked for (WithValue),
// which reads the prefix. Beside a frozen PaliGemma a decision's prefix may be kept for training (`keep_prefix`). No CUDA.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <locale>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/flow_vla.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/pi0_network.hpp"
#include "dvla/model/tokenizers/unicode.hpp"

namespace dvla {

namespace detail {

struct Pi05Family {
  static constexpr std::string_view name = "Pi05";
  static constexpr auto slots =
      std::to_array<std::string_view>({"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"});
  using Network = Pi0Network;
  static constexpr std::int64_t padding = 0;
  static constexpr std::string_view language = ".language_model.";
  static constexpr bool begins = true, ends_blank = false, pads_before = false, tells_state = true;
  static constexpr bool state_apart = false, wide_tower = true;

  static Pi0Shape shape(const FlowVlaKnobs& knobs) {
    check(knobs);
    Pi0Shape shape = knobs.checkpoint.empty() ? random_shape(knobs.random)
                                              : published_shape(PublishedConfig(knobs.checkpoint));
    if (knobs.horizon > 0) shape.horizon = knobs.horizon;
    shape.noise = noise_widths(knobs, shape.noise);
    return shape;
  }
  /// openpi saves the embedding as lm_head alone. Older files have pi0's names (openpi's and lerobot's loaders map them), RLinf's a
  /// noise head by its own (its modules/explore_noise_net.py, with the noise's bounds beside it). Nobody reads either lm_head.
  static const PublishedNames& names() {
    static const std::string language = "paligemma_with_expert.paligemma.";
    static const PublishedNames names{
        .older = {{"action_time_mlp_in.", "time_mlp_in."},
                  {"action_time_mlp_out.", "time_mlp_out."},
                  {"noise_head.mlp_logvar.moduleList.0.linear_1.", "noise_head.mlp.0."},
                  {"noise_head.mlp_logvar.moduleList.1.linear_1.", "noise_head.mlp.2."},
                  {"noise_head.mlp_logvar.moduleList.2.linear_1.", "noise_head.mlp.4."}},
        .tied = {{language + "model.language_model.embed_tokens.weight", language + "lm_head.weight"}},
        .dead = R"(paligemma_with_expert\.(paligemma|gemma_expert)\.lm_head\.weight|state_proj\..*)"
                R"(|(value|noise)_head\..*|(un)?normalize_\w+\..*)"};
    return names;
  }
  /// Folders of openpi's converter, RLinf's among them, were trained with openpi's. lerobot's may have been ported from openpi, which
  /// they do not say.
  static TakenPictures<Pictures> pictures(const PublishedConfig& config) {
    if (of_openpi(config)) return {Pictures::openpi, "its config.json is that of openpi's converter"};
    return {Pictures::lerobot, "its config.json is lerobot's"};
  }
  static std::int64_t image_tokens(const Pi0Shape& shape) { return shape.vision.tokens(); }
  static at::Tensor image(const at::Tensor& frames, std::int64_t side, Pictures pictures) {
    return layers::resized_with_pad(
        frames, side, layers::Padding::around,
        pictures == Pictures::openpi ? layers::Resizing::openpi : layers::Resizing::lerobot);
  }
  /// numpy.digitize(state, numpy.linspace(-1, 1, 257)[:-1]) - 1: what is below -1 is -1, what is above 1 is 255. Throws Error
  /// where the state is not finite.
  static std::string prompt(const std::string& task, std::span<const float> state) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << "Task: " << cleaned(task) << ", State: ";
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (!std::isfinite(state[i]))
        throw Error("Pi05: number ", i, " of the state is not finite; the observation holds NaN or infinity");
      const double bin = std::floor(static_cast<double>(state[i]) * 128) + 128;  // exact before it is rounded
      out << (i > 0 ? " " : "") << static_cast<int>(std::clamp(bin, -1.0, 255.0));
    }
    out << ";\nAction: ";
    return out.str();
  }
  /// What openpi writes under discrete_state_input = False (its models/tokenizer.py).
  static std::string stateless(const std::string& task) { return cleaned(task) + "\n"; }

 private:
  static Pi0Shape random_shape(RandomWeights random) {
    Pi0Shape shape;
    shape.horizon = 8;
    if (random == RandomWeights::tiny) {
      shape.vocabulary = 512;
      shape.vision.width = 32, shape.vision.layers = 2, shape.vision.heads = 2, shape.vision.mlp = 64,
      shape.vision.image = 56;
      shape.language.width = 64, shape.language.layers = 2, shape.language.mlp = 128;
      shape.expert.width = shape.expert.condition = 32, shape.expert.layers = 2, shape.expert.mlp = 64;
      for (parts::DecoderShape* each : {&shape.language, &shape.expert})
        each->heads = 4, each->head_width = 16;
      shape.value = {32, 16, 8};
    }
    return shape;
  }
  static bool of_openpi(const PublishedConfig& config) {
    return !config.has("type") && config.has("action_horizon");
  }
  /// lerobot's config.json, whose class has the published extents where it is silent, or that of openpi's converter.
  static Pi0Shape published_shape(const PublishedConfig& config) {
    Pi0Shape shape;
    if (config.own(name, shape)) return shape;
    if (of_openpi(config)) {
      shape.horizon = config.count("action_horizon");
      shape.actions = config.count("action_dim");
    } else {
      config.is("type", "pi05", "this model");
      shape.horizon = config.count("chunk_size", shape.horizon);
      shape.actions = config.count("max_action_dim", shape.actions);
      shape.text = config.count("tokenizer_max_length", shape.text);
      shape.shortest_period = config.number("min_period", shape.shortest_period);
      shape.longest_period = config.number("max_period", shape.longest_period);
      shape.vision.image = config.side("image_resolution", shape.vision.image, shape.vision.patch);
      if (config.images() > 0) shape.views = config.images();
      config.supports("use_relative_actions", {false});
    }
    config.supports("paligemma_variant", {"gemma_2b"});
    config.supports("action_expert_variant", {"gemma_300m"});
    return shape;
  }
  /// As the reference cleans it: no blanks at the ends, none of its line breaks, underscores are blanks.
  static std::string cleaned(std::string_view text) {
    std::string clean(stripped(text));
    for (char& c : clean)
      if (c == '_' || c == '\n') c = ' ';
    return clean;
  }
};

}  // namespace detail

/// One thread at a time per object; copies share what is frozen. Errors: as NetworkModel's; ConfigError where the
/// environment gives no camera, an unknown one is named, or a prompt would not fit.
using Pi05Model = NetworkModel<detail::FlowVlaParts<detail::Pi05Family>>;

template <class Pipeline>
struct machinery<Pi05, Pipeline> {
  using type = Pi05Model;
};

}  // namespace dvla
