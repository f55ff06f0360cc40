// How a trainer's weights, gradients and moments are spread over ranks. Descriptors only, no torch. Paper:
// actor GPUs train under FSDP.
#pragma once

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

/// Fully sharded data parallelism: masters and moments of what trains exist once over all trainers.
struct FSDP {
  using slot = sharding_slot;
  using knobs = NoKnobs;
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
