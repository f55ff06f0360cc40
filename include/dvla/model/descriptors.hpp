// Models that a pipeline can name. Descriptors only, no torch. Paper: pi0.5 (flow matching) and OpenVLA-OFT,
// action chunks; TinyVLA is the small model of the same two kinds that trains on a laptop.
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/model/tiny_vla_knobs.hpp"
#include "dvla/pipeline/mistake.hpp"

BOOST_HANA_ADAPT_STRUCT(dvla::TinyVlaKnobs, width, blocks, attention_heads, chunk, patch);
BOOST_HANA_ADAPT_STRUCT(dvla::TokenHeadKnobs, width, blocks, attention_heads, chunk, patch, bins,
                        temperature);
BOOST_HANA_ADAPT_STRUCT(dvla::FlowHeadKnobs, width, blocks, attention_heads, chunk, patch, denoise_steps,
                        noise_level);

namespace dvla {

template <>
inline constexpr auto knob_docs<TinyVlaKnobs> = std::to_array<KnobDoc>({
    {"width", "width of the transformer; a multiple of attention_heads", 16, 1024},
    {"blocks", "transformer blocks", 1, 24},
    {"attention_heads", "attention heads a block", 1, 32},
    {"chunk", "actions a decision; the horizon is a multiple of it", 1, 64, "control steps"},
    {"patch", "side of an image patch", 1, 64, "pixels"},
});
template <>
inline constexpr auto knob_docs<TokenHeadKnobs> =
    joined_docs(knob_docs<TinyVlaKnobs>, std::to_array<KnobDoc>({
                                             {"bins", "bins an action dimension", 2, 1024},
                                             {"temperature", "softmax temperature", 0.05, 10},
                                         }));
template <>
inline constexpr auto knob_docs<FlowHeadKnobs> =
    joined_docs(knob_docs<TinyVlaKnobs>,
                std::to_array<KnobDoc>({
                    {"denoise_steps", "Euler steps from noise to action", 1, 64},
                    {"noise_level", "noise of the denoising chain when sampling (flow_sde)", 0.001, 2},
                }));

/// Rules between members; found by validate(config).
inline void check(const TinyVlaKnobs& knobs) {
  if (knobs.width % knobs.attention_heads != 0)
    throw ConfigError("model.width is " + std::to_string(knobs.width) +
                      "; it must be a multiple of model.attention_heads, which is " +
                      std::to_string(knobs.attention_heads));
}

/// Image patches, proprioception and instruction through a small transformer to an action chunk. Head:
/// TokenHead or FlowHead; its knobs are the body's and its own.
template <class Head = TokenHead>
struct TinyVLA {
  using slot = model_slot;
  using knobs = typename Head::knobs;
  static constexpr bool runs_on_cuda = true;
  static constexpr Spelling spelling{"TinyVLA<", type_name<Head>, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr bool has_value_head = false;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: TinyVLA<Head> is named but its machinery is not included: add #include "
                  "<dvla/model/tiny_vla.hpp>");
  };
};

/// pi0.5: PaliGemma with a flow-matching action expert. Declared, not built in this version.
struct Pi05 {
  using slot = model_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Pi05";
  static constexpr bool built = false;
  static constexpr bool has_value_head = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Pi05 is declared but not built in this version; use TinyVLA<TokenHead> or "
                  "TinyVLA<FlowHead>, or write your own model (docs/extending.md)");
  };
};

/// OpenVLA-OFT: parallel decoding of action tokens. Declared, not built in this version.
struct OpenVLAOFT {
  using slot = model_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "OpenVLAOFT";
  static constexpr bool built = false;
  static constexpr bool has_value_head = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: OpenVLAOFT is declared but not built in this version; use TinyVLA<TokenHead> or "
                  "TinyVLA<FlowHead>, or write your own model (docs/extending.md)");
  };
};

/// SmolVLA: a small flow-matching VLA. Declared, not built in this version.
struct SmolVLA {
  using slot = model_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "SmolVLA";
  static constexpr bool built = false;
  static constexpr bool has_value_head = false;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: SmolVLA is declared but not built in this version; use TinyVLA<TokenHead> or "
                  "TinyVLA<FlowHead>, or write your own model (docs/extending.md)");
  };
};

/// Low-rank adapters around another model; only they train and travel. Declared, not built in this version.
template <class Model>
struct LoRA {
  using slot = model_slot;
  using knobs = NoKnobs;
  using mistake = std::conditional_t<PolicyFor<Model, model_slot>, dvla::mistake::none,
                                     dvla::mistake::not_a_model<Model>>;
  static constexpr Spelling spelling{"LoRA<", type_name<Model>, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr bool built = false;
  static constexpr bool has_value_head = detail::has_value_head<Model>;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: LoRA<Model> is declared but not built in this version; name the model itself, which "
                  "trains in full");
  };
};

}  // namespace dvla
