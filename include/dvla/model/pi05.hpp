// pi0.5's machinery (Physical Intelligence, arXiv 2504.16054): PaliGemma and an action expert (model/pi0_network.hpp) under flow
// matching with flow_sde's noise (model/flow_head.hpp, as pi_RL and RLinf train it). Cameras are resized and padded to the
// tower's side, as lerobot does it or openpi; the prompt is the reference's, with the state
// in it as numbers from 0 to 255. Needs torch. Random weights only: no checkpoint is read in this version, and so a
// prompt's tokens are its bytes. No value head, no cache of the prefix between rollout and training, no CUDA.
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

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/flow_vla.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/pi0_network.hpp"

namespace dvla {

namespace detail {

struct Pi05Family {
  static constexpr std::string_view name = "Pi05";
  static constexpr auto slots =
      std::to_array<std::string_view>({"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"});
  using Network = Pi0Network;
  static constexpr std::int64_t begin = 2, padding = 0;
  static constexpr bool state_apart = false, wide_tower = true;

  static Pi0Shape shape(const FlowVlaKnobs& knobs) {
    check(knobs);
    Pi0Shape shape;
    shape.horizon = knobs.horizon;
    if (knobs.random == RandomWeights::tiny) {
      shape.vocabulary = 512;
      shape.vision.width = 32, shape.vision.layers = 2, shape.vision.heads = 2, shape.vision.mlp = 64,
      shape.vision.image = 56;
      shape.language.width = 64, shape.language.layers = 2, shape.language.mlp = 128;
      shape.expert.width = shape.expert.condition = 32, shape.expert.layers = 2, shape.expert.mlp = 64;
      for (parts::DecoderShape* each : {&shape.language, &shape.expert})
        each->heads = 4, each->head_width = 16;
    }
    return shape;
  }
  static std::int64_t image_tokens(const Pi0Shape& shape) { return shape.vision.tokens(); }
  static at::Tensor image(const at::Tensor& frames, std::int64_t side, Pictures pictures) {
    return layers::resized_with_pad(
        frames, side, layers::Padding::around,
        pictures == Pictures::openpi ? layers::Resizing::openpi : layers::Resizing::lerobot);
  }
  /// What of the state is outside [-1, 1] counts as the end that is near. Throws Error where it is not finite.
  static std::string prompt(const std::string& task, std::span<const float> state) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << "Task: " << cleaned(task) << ", State: ";
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (!std::isfinite(state[i]))
        throw Error("Pi05: number ", i, " of the state is not finite; the observation holds NaN or infinity");
      const double bin = std::floor((static_cast<double>(state[i]) + 1) * 128);
      out << (i > 0 ? " " : "") << static_cast<int>(std::clamp(bin, 0.0, 255.0));
    }
    out << ";\nAction: ";
    return out.str();
  }

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
