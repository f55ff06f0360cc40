// SmolVLA's machinery (Shukor et al., arXiv 2506.01844): the first half of SmolVLM2 and an action expert (model/smolvla_network.hpp)
// under flow matching with flow_sde's noise (model/flow_head.hpp): its noise runs as pi0's does, so pi_RL's formulas hold. Cameras
// are resized and padded above and to the left; the prompt is the task and a line's end; the state is a token. Needs
// torch. Random weights only: no checkpoint is read in this version, and so a prompt's tokens are its bytes. No value
// head, no CUDA.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

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
  static constexpr std::int64_t begin = -1, padding = 0;
  static constexpr bool state_apart = true, wide_tower = false;

  static SmolVlaShape shape(const FlowVlaKnobs& knobs) {
    check(knobs);
    if (knobs.pictures != Pictures::lerobot)
      throw ConfigError("model.pictures is openpi, and SmolVLA has lerobot's way alone; leave it lerobot");
    SmolVlaShape shape;
    shape.horizon = knobs.horizon;
    if (knobs.random == RandomWeights::tiny) {
      shape.vocabulary = 512;
      shape.text = 64;
      shape.vision.width = 32, shape.vision.layers = 2, shape.vision.heads = 2, shape.vision.mlp = 64;
      shape.vision.image = 64, shape.vision.patch = 8;
      shape.language.width = 64, shape.language.layers = 4, shape.language.mlp = 128;
      shape.expert.width = 48, shape.expert.layers = 4, shape.expert.mlp = 96;
      for (parts::DecoderShape* each : {&shape.language, &shape.expert})
        each->heads = 4, each->kv_heads = 2, each->head_width = 16;
    }
    return shape;
  }
  static std::int64_t image_tokens(const SmolVlaShape& shape) { return shape.image_tokens(); }
  static at::Tensor image(const at::Tensor& frames, std::int64_t side, Pictures) {
    return layers::resized_with_pad(frames, side, layers::Padding::before);
  }
  static std::string prompt(const std::string& task, std::span<const float>) { return task + "\n"; }
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
