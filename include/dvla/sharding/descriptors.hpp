// How a trainer's weights, gradients and moments are spread over ranks. Descriptors only, no torch. Paper:
// actor GPUs train under FSDP.
#pragma once

#include <array>
#include <string_view>

#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"

namespace dvla {

/// Every trainer holds the whole model; several are replicas.
struct Unsharded {
  using slot = sharding_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Unsharded";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Unsharded is named but its machinery is not included: add #include "
                  "<dvla/sharding/unsharded.hpp>");
  };
};

struct FsdpKnobs {
  bool bf16 = false;  ///< parameters travel and compute as bfloat16 values; masters and gradients are float32
};

/// Fully sharded data parallelism: masters and moments exist once over all trainers.
struct FSDP {
  using slot = sharding_slot;
  using knobs = FsdpKnobs;
  static constexpr std::string_view name = "FSDP";
  static constexpr bool spans_processes = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: FSDP is named but its machinery is not included: add #include "
                  "<dvla/sharding/fsdp.hpp>");
  };
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::FsdpKnobs, bf16);

template <>
inline constexpr auto dvla::knob_docs<dvla::FsdpKnobs> = std::to_array<dvla::KnobDoc>({
    {"bf16", "parameters travel and compute as bfloat16 values"},
});
