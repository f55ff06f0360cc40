// The kinds of noise that a chain of flow matching may have while it is sampled: names, and what knobs must be for them. Torch-free,
// as knobs are; the arithmetic is model/flow_head.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/text.hpp"

namespace dvla {

/// flow_sde and flow_cps: one step of the chain is noisy, the others follow the ODE. flow_noise: all are, as widely as a head that is
/// learned says. ode: none is, and log-probabilities are 0.
enum class FlowNoise : std::uint8_t { flow_sde, flow_cps, flow_noise, ode };
template <>
inline constexpr auto enum_names<FlowNoise> = std::to_array<std::string_view>({"flow_sde", "flow_cps",
                                                                               "flow_noise", "ode"});

/// Throws ConfigError where a kind of noise cannot be had with these knobs. `noise_head`: the model has one where it is wanted.
inline void check_noise(FlowNoise noise, int denoise_steps, float noise_level, bool noise_head) {
  if (noise == FlowNoise::flow_noise && !noise_head)
    throw ConfigError(
        "model.noise is flow_noise, and this model has no head that learns it; choose flow_sde, flow_cps or "
        "ode");
  if (noise != FlowNoise::flow_cps) return;
  if (denoise_steps < 2)
    throw ConfigError("model.denoise_steps is ", denoise_steps,
                      "; flow_cps has no noise in the last step, so it must be 2 or more");
  if (noise_level > 1)
    throw ConfigError("model.noise_level is ", detail::number_text(noise_level),
                      "; under flow_cps it must be at most 1, where a step is noise alone");
}

}  // namespace dvla
