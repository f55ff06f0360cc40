// How memory is pooled. Descriptors only, no torch. Paper: dual-pool memory, the model's apart from the
// environment's.
#pragma once

#include <string_view>

#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/memory/memory_knobs.hpp"

namespace dvla {

/// Two pools with a bound each: simulator and model never fragment or starve each other.
struct DualPool {
  using slot = memory_slot;
  using knobs = MemoryKnobs;
  static constexpr std::string_view name = "DualPool";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: DualPool is named but its machinery is not included: add #include "
                  "<dvla/memory/dual_pool.hpp>");
  };
};

/// One pool for both: the baseline.
struct SinglePool {
  using slot = memory_slot;
  using knobs = MemoryKnobs;
  static constexpr std::string_view name = "SinglePool";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: SinglePool is named but its machinery is not included: add #include "
                  "<dvla/memory/single_pool.hpp>");
  };
};

}  // namespace dvla
