// TinyVLA's run-time knobs and the names of its two action heads. Torch-free: any composition can be named,
// checked and described with this header alone; the machinery is model/tiny_vla.hpp.
#pragma once

#include <string_view>

#include "dvla/core/dtype.hpp"
#include "dvla/model/flow_noise.hpp"

namespace dvla {

/// What users tune under either head. About 0.6 M parameters at the defaults.
struct TinyVlaKnobs {
  int width = 128;           ///< d, features a token; 16 to 4096, a multiple of attention_heads
  int blocks = 3;            ///< transformer blocks; 1 to 128
  int attention_heads = 4;   ///< query heads, one key/value head; 1 to 64
  int chunk = 4;             ///< C, control steps a decision; 1 to 64
  int patch = 8;             ///< pixels a side of an image patch; 1 to 64
  Dtype dtype = Dtype::f32;  ///< of weights and activations: f32 or bf16; log-probabilities are float32
};
struct TokenHeadKnobs : TinyVlaKnobs {
  int bins = 32;          ///< bins an action dimension; 2 to 1024
  float temperature = 1;  ///< of sampling and training alike; 0.05 to 10
};
struct FlowHeadKnobs : TinyVlaKnobs {
  int denoise_steps = 4;                  ///< K, Euler steps from noise to action; 1 to 64
  FlowNoise noise = FlowNoise::flow_sde;  ///< not flow_noise, for which the network has no head
  float noise_level = 0.5f;               ///< a of flow_sde and flow_cps; above 0, to 2
};

/// Discrete action tokens, decoded in parallel as OpenVLA-OFT does. Machinery: model/token_head.hpp.
struct TokenHead {
  using knobs = TokenHeadKnobs;
  static constexpr std::string_view name = "TokenHead";
};

/// Flow matching with the noise of pi0.5 under RL. Machinery: model/flow_head.hpp.
struct FlowHead {
  using knobs = FlowHeadKnobs;
  static constexpr std::string_view name = "FlowHead";
};

}  // namespace dvla
