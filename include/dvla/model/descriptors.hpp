// Models that a pipeline can name. Descriptors only, no torch. Paper: pi0.5 (flow matching) and OpenVLA-OFT,
// action chunks; TinyVLA is the small model of the same two kinds that trains on a laptop.
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/algorithm/levels.hpp"
#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/model/flow_vla_knobs.hpp"
#include "dvla/model/openvla_oft_knobs.hpp"
#include "dvla/model/tiny_vla_knobs.hpp"

template <std::same_as<dvla::OpenVlaOftKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::random, &K::checkpoint, &K::chunk, &K::temperature, &K::cameras, &K::tokenizer,
                    &K::pictures, &K::dtype, &K::gradient_checkpointing> {};
template <std::same_as<dvla::FlowVlaKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::random, &K::checkpoint, &K::chunk, &K::horizon, &K::denoise_steps, &K::noise,
                    &K::noise_level, &K::train, &K::cameras, &K::tokenizer, &K::discrete_state_input,
                    &K::pictures, &K::dtype, &K::gradient_checkpointing, &K::keep_prefix> {};
template <std::same_as<dvla::TinyVlaKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::width, &K::blocks, &K::attention_heads, &K::chunk, &K::patch, &K::dtype> {};
template <std::same_as<dvla::TokenHeadKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::more_members<dvla::TinyVlaKnobs, &K::bins, &K::temperature> {};
template <std::same_as<dvla::FlowHeadKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::more_members<dvla::TinyVlaKnobs, &K::denoise_steps, &K::noise, &K::noise_level> {};

namespace dvla {

template <>
inline constexpr auto knob_docs<TinyVlaKnobs> = std::to_array<KnobDoc>({
    {"width", "width of the transformer; a multiple of attention_heads", 16, 4096},
    {"blocks", "transformer blocks", 1, 128},
    {"attention_heads", "attention heads a block", 1, 64},
    {"chunk", "actions a decision", 1, 64, "control steps"},
    {"patch", "side of an image patch", 1, 64, "pixels"},
    {"dtype", "weights and activations; optimiser, gradients and log-probabilities are float32"},
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
                    {"noise",
                     "of the denoising chain when sampling (not flow_noise); ode: none, which nothing can be "
                     "trained on"},
                    {"noise_level", "how much of it, under flow_sde and flow_cps", 0.001, 2},
                }));

/// Rules between members; found by validate(config).
inline void check(const TinyVlaKnobs& knobs) {
  if (knobs.width % knobs.attention_heads != 0)
    throw ConfigError("model.width is " + std::to_string(knobs.width) +
                      "; it must be a multiple of model.attention_heads, which is " +
                      std::to_string(knobs.attention_heads));
  if (knobs.dtype == Dtype::f16) throw ConfigError("model.dtype is f16; TinyVLA computes in f32 or bf16");
}
inline void check(const FlowHeadKnobs& knobs) {
  check(static_cast<const TinyVlaKnobs&>(knobs));
  check_noise(knobs.noise, knobs.denoise_steps, knobs.noise_level, /*noise_head=*/false);
}

/// Image patches, proprioception and instruction through a small transformer to an action chunk. Head:
/// TokenHead or FlowHead; its knobs are the body's and its own.
template <class Head = TokenHead>
struct TinyVLA {
  using slot = model_slot;
  using knobs = typename Head::knobs;
  static constexpr bool runs_on_cuda = true;
  static constexpr bool takes_adapters = true;
  static constexpr bool takes_value_head = true;
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

/// pi0.5: PaliGemma with a flow-matching action expert.
struct Pi05 {
  using slot = model_slot;
  using knobs = FlowVlaKnobs;
  static constexpr std::string_view name = "Pi05";
  static constexpr bool takes_adapters = true;
  static constexpr bool takes_value_head = true;
  static constexpr bool has_value_head = false;
  template <bool Never>
  struct missing {
    static_assert(
        Never, "dvla: Pi05 is named but its machinery is not included: add #include <dvla/model/pi05.hpp>");
  };
};

/// OpenVLA-OFT: DINOv2, SigLIP and a Llama that puts out all action tokens of a decision at once.
struct OpenVLAOFT {
  using slot = model_slot;
  using knobs = OpenVlaOftKnobs;
  static constexpr std::string_view name = "OpenVLAOFT";
  static constexpr bool takes_adapters = true;
  static constexpr bool takes_value_head = true;
  static constexpr bool has_value_head = false;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: OpenVLAOFT is named but its machinery is not included: add #include "
                  "<dvla/model/openvla_oft.hpp>");
  };
};

/// SmolVLA: a small flow-matching VLA.
struct SmolVLA {
  using slot = model_slot;
  using knobs = FlowVlaKnobs;
  static constexpr std::string_view name = "SmolVLA";
  static constexpr bool takes_adapters = true;
  static constexpr bool takes_value_head = true;
  static constexpr bool has_value_head = false;
  template <bool Never>
  struct missing {
    static_assert(
        Never,
        "dvla: SmolVLA is named but its machinery is not included: add #include <dvla/model/smolvla.hpp>");
  };
};

namespace detail {
/// Whether a model has a value head where its inputs ask for one.
template <class Policy>
concept takes_value_head = static_cast<bool>(Policy::takes_value_head);
}  // namespace detail

/// The knobs of a model under LoRA: its own, and those of the adapters.
template <class Base>
struct LoraKnobs : Base {
  int lora_rank = 16;          ///< r of all adapters
  double lora_alpha = 16;      ///< adapters count alpha / r
  std::string lora_targets{};  ///< regular expression of the layers that have one; empty: all linear layers
  std::string base_checkpoint{};  ///< whose weights the frozen base has; empty: random ones
  std::string adapters{};         ///< a folder of PEFT's, whose adapters it begins with; empty: new ones
};

template <class Base>
inline constexpr auto knob_docs<LoraKnobs<Base>> =
    joined_docs(knob_docs<Base>,
                std::to_array<KnobDoc>({
                    {"lora_rank", "rank of the adapters", 1, 1024},
                    {"lora_alpha", "adapters are scaled by this over their rank", 0.001, 4096},
                    {"lora_targets",
                     "regular expression that the whole name of a layer with an adapter matches; empty: all"},
                    {"base_checkpoint",
                     "whose weights the frozen base gets: a run's folder, a checkpoint, or safetensors of "
                     "the base as the hub has them; empty: random ones"},
                    {"adapters",
                     "folder of PEFT's, of the same rank, alpha and layers, whose adapters the model begins "
                     "with; empty: new ones"},
                }));

namespace detail {
/// Whether a model declares its linear layers by name, so that adapters can stand beside them.
template <class Policy>
concept takes_adapters = static_cast<bool>(Policy::takes_adapters);
template <class Model>
struct lora_knobs {
  using type = NoKnobs;
};
template <class Model>
requires takes_adapters<Model>
struct lora_knobs<Model> {
  using type = LoraKnobs<typename Model::knobs>;
};
template <bool Never>
struct lora_missing {
  static_assert(Never,
                "dvla: LoRA<Model> is named but its machinery is not included: add #include "
                "<dvla/model/lora.hpp> and the header of the model that it wraps");
};
}  // namespace detail

/// Low-rank adapters beside the linear layers of another model, which is frozen; only they train and travel.
template <class Model>
struct LoRA {
  using slot = model_slot;
  static consteval bool is_sound() {
    if constexpr (!PolicyFor<Model, model_slot>)
      static_assert(detail::never<Model>,
                    "dvla: LoRA<Model> wraps a model, and this is none: write LoRA<TinyVLA<>>, for example");
    else if constexpr (!detail::takes_adapters<Model>)
      static_assert(
          detail::never<Model>,
          "dvla: LoRA<Model> wraps a model that declares its linear layers by name (model/parameters.hpp) "
          "and says so by `static constexpr bool takes_adapters = true;`, and this one does not");
    else
      return true;
    return false;
  }
  using knobs = typename detail::lora_knobs<Model>::type;
  static constexpr bool runs_on_cuda = detail::runs_on_cuda<Model>;
  static constexpr bool takes_value_head = detail::takes_value_head<Model>;
  static constexpr Spelling spelling{"LoRA<", type_name<Model>, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr bool has_value_head = detail::has_value_head<Model>;
  template <bool Never>
  using missing = detail::lora_missing<Never>;
};

/// The knobs of a model with a value head: its own, and those of the head.
template <class Base>
struct ValueKnobs : Base {
  RewardLevel value_level = RewardLevel::chunk;  ///< chunk: V = 1; action: V = C
  double value_learning_rate = 3;                ///< of the head, as a factor of the algorithm's
};

template <class Base>
inline constexpr auto knob_docs<ValueKnobs<Base>> = joined_docs(
    knob_docs<Base>,
    std::to_array<KnobDoc>({
        {"value_level", "what one value is of: a control step or a decision"},
        {"value_learning_rate", "of the value head, as a factor of the algorithm's learning rate", 0, 1000},
    }));

namespace detail {
template <class Model>
struct value_knobs {
  using type = NoKnobs;
};
template <class Model>
requires takes_value_head<Model>
struct value_knobs<Model> {
  using type = ValueKnobs<typename Model::knobs>;
};
template <bool Never>
struct value_missing {
  static_assert(Never,
                "dvla: WithValue<Model> is named but its machinery is not included: add #include "
                "<dvla/model/with_value.hpp> and the header of the model that it wraps");
};
}  // namespace detail

/// Another model with a value head beside its action head. The policy is the same.
template <class Model>
struct WithValue {
  using slot = model_slot;
  static consteval bool is_sound() {
    if constexpr (!PolicyFor<Model, model_slot>)
      static_assert(
          detail::never<Model>,
          "dvla: WithValue<Model> wraps a model, and this is none: write WithValue<TinyVLA<>>, for example");
    else if constexpr (detail::has_value_head<Model>)
      static_assert(
          detail::never<Model>,
          "dvla: WithValue<Model> gives a model a value head, and this one has one already; name it "
          "without WithValue");
    else if constexpr (!detail::takes_value_head<Model>)
      static_assert(detail::never<Model>,
                    "dvla: WithValue<Model> wraps a model that makes a value head where "
                    "ModelInputs::value_head asks for one "
                    "(TakesValueHead, model/concept.hpp) and says so by `static constexpr bool "
                    "takes_value_head = true;`, and "
                    "this one does not");
    else
      return true;
    return false;
  }
  using knobs = typename detail::value_knobs<Model>::type;
  static constexpr bool runs_on_cuda = detail::runs_on_cuda<Model>;
  static constexpr bool takes_adapters = detail::takes_adapters<Model>;
  static constexpr Spelling spelling{"WithValue<", type_name<Model>, ">"};
  static constexpr std::string_view name = spelling;
  static constexpr bool has_value_head = true;
  template <bool Never>
  using missing = detail::value_missing<Never>;
};

}  // namespace dvla

template <class Base>
struct boost::hana::accessors_impl<dvla::LoraKnobs<Base>>
    : dvla::more_members<Base, &dvla::LoraKnobs<Base>::lora_rank, &dvla::LoraKnobs<Base>::lora_alpha,
                         &dvla::LoraKnobs<Base>::lora_targets, &dvla::LoraKnobs<Base>::base_checkpoint,
                         &dvla::LoraKnobs<Base>::adapters> {};
template <class Base>
struct boost::hana::accessors_impl<dvla::ValueKnobs<Base>>
    : dvla::more_members<Base, &dvla::ValueKnobs<Base>::value_level,
                         &dvla::ValueKnobs<Base>::value_learning_rate> {};
