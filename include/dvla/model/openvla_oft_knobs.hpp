// OpenVLAOFT's run-time knobs. Torch-free, as the descriptor is; the machinery is model/openvla_oft.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/model/random_weights.hpp"

namespace dvla {

/// Whose way frames become what the vision towers see: model/layers/images.hpp, or lanczos_crop.hpp; checkpoint: that of whose
/// folder it is.
enum class OpenVlaPictures : std::uint8_t { checkpoint, rlinf, authors };
template <>
inline constexpr auto enum_names<OpenVlaPictures> = std::to_array<std::string_view>({"checkpoint", "rlinf",
                                                                                     "authors"});

struct OpenVlaOftKnobs {
  RandomWeights random = RandomWeights::none;
  std::string checkpoint{};  ///< a folder; model/published_config.hpp says which
  int chunk = 8;
  float temperature = 1;
  std::string cameras{};
  std::string tokenizer{};
  OpenVlaPictures pictures = OpenVlaPictures::checkpoint;
  Dtype dtype = Dtype::f32;
  bool gradient_checkpointing = false;
};

template <>
inline constexpr auto knob_docs<OpenVlaOftKnobs> = std::to_array<KnobDoc>({
    {"random", "random weights, of toy extents (tiny) or the published ones (full)"},
    {"checkpoint", "folder of a published model: config.json, and safetensors in one file or with an index"},
    {"chunk", "actions of a decision; the network makes them all at once", 1, 64, "control steps"},
    {"temperature", "softmax temperature, of sampling and training alike", 0.05, 10},
    {"cameras", "the environment's cameras that the model sees, in this order, as top,wrist; empty: all"},
    {"tokenizer",
     "SentencePiece's *.model or a tokenizer.json, or a folder with one; empty: the checkpoint's own, with "
     "random weights bytes; bytes: a prompt's bytes"},
    {"pictures",
     "whose way frames are made smaller: RLinf's (bicubic), or the authors' (JPEG, Lanczos, the middle nine "
     "tenths); checkpoint: that of whose folder it is, with random weights RLinf's"},
    {"dtype", "weights and activations; logits and log-probabilities are float32"},
    {"gradient_checkpointing",
     "a backward pass computes each layer's activations again instead of keeping them"},
});

/// Rules between members; found by validate(config).
inline void check(const OpenVlaOftKnobs& knobs) {
  detail::check_source(knobs.random, knobs.checkpoint);
  if (knobs.dtype == Dtype::f16) throw ConfigError("model.dtype is f16; OpenVLAOFT computes in f32 or bf16");
}

}  // namespace dvla
