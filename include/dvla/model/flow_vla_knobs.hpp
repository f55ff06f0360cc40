// The run-time knobs of Pi05 and SmolVLA, which flow matching trains both. Torch-free, as their descriptors are; the machinery is
// model/pi05.hpp and model/smolvla.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/model/flow_noise.hpp"
#include "dvla/model/random_weights.hpp"

namespace dvla {

/// What of a vision-language-action model trains.
enum class Trained : std::uint8_t { all, expert };
template <>
inline constexpr auto enum_names<Trained> = std::to_array<std::string_view>({"all", "expert"});

/// Whose way frames become what the vision tower sees (model/layers/images.hpp); checkpoint: that of whose folder it is.
enum class Pictures : std::uint8_t { checkpoint, lerobot, openpi };
template <>
inline constexpr auto enum_names<Pictures> = std::to_array<std::string_view>({"checkpoint", "lerobot",
                                                                              "openpi"});

struct FlowVlaKnobs {
  RandomWeights random = RandomWeights::none;
  std::string checkpoint{};  ///< a folder; model/published_config.hpp says which
  int chunk = 5;
  int horizon = 0;
  int denoise_steps = 4;
  FlowNoise noise = FlowNoise::flow_sde;
  float noise_level = 0.5f;
  Trained train = Trained::all;
  std::string cameras{};
  std::string tokenizer{};
  bool discrete_state_input = true;
  Pictures pictures = Pictures::checkpoint;
  Dtype dtype = Dtype::f32;
  bool gradient_checkpointing = false;
  bool keep_prefix = false;
};

template <>
inline constexpr auto knob_docs<FlowVlaKnobs> = std::to_array<KnobDoc>({
    {"random", "random weights, of toy extents (tiny) or the published ones (full)"},
    {"checkpoint", "folder of a published model: config.json, and safetensors in one file or with an index"},
    {"chunk", "actions of a decision that are executed", 1, 64, "control steps"},
    {"horizon", "actions that the network makes; at least chunk; 0: as the checkpoint says, or 8", 0, 64,
     "control steps"},
    {"denoise_steps", "Euler steps from noise to action", 1, 64},
    {"noise", "of the denoising chain when sampling; ode: none, which nothing can be trained on"},
    {"noise_level", "how much of it, under flow_sde and flow_cps", 0.001, 2},
    {"train", "all of it, or the action expert beside a frozen vision-language model"},
    {"cameras",
     "the environment's camera for each of the model's, as top,wrist, or with their slots, as "
     "base_0_rgb=top; empty: in their order"},
    {"tokenizer",
     "SentencePiece's *.model or a tokenizer.json, or a folder with one; empty: the checkpoint's own, with "
     "random weights bytes; bytes: a prompt's bytes"},
    {"discrete_state_input",
     "whether pi0.5's prompt has the state in it, as numbers; openpi trains pi05_libero without"},
    {"pictures",
     "whose way frames are made smaller: openpi's antialiases; SmolVLA has lerobot's alone; checkpoint: "
     "that of whose folder it is, with random weights lerobot's"},
    {"dtype", "weights and activations; norms compute in float32"},
    {"gradient_checkpointing",
     "a backward pass computes each layer's activations again instead of keeping them"},
    {"keep_prefix",
     "decisions keep what the action expert sees of the vision-language model, which updates then do not "
     "run; "
     "pi0.5 under train expert alone"},
});

/// Rules between members; found by validate(config).
inline void check(const FlowVlaKnobs& knobs) {
  detail::check_source(knobs.random, knobs.checkpoint);
  if (knobs.horizon > 0 && knobs.chunk > knobs.horizon)
    throw ConfigError("model.chunk is ", knobs.chunk, "; it must be at most model.horizon, which is ",
                      knobs.horizon);
  check_noise(knobs.noise, knobs.denoise_steps, knobs.noise_level, /*noise_head=*/true);
  if (knobs.keep_prefix && knobs.train != Trained::expert)
    throw ConfigError(
        "model.keep_prefix is true and model.train is all, under which what decisions keep would not stay "
        "right; choose "
        "train expert, or keep_prefix false");
  if (knobs.dtype == Dtype::f16) throw ConfigError("model.dtype is f16; the model computes in f32 or bf16");
}

}  // namespace dvla
