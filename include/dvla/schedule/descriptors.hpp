// In which order the lanes run. Descriptors only. Paper: swimlane, four threads with single-step weight
// staleness, against synchronous alternation.
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/pipeline/mistake.hpp"
#include "dvla/schedule/schedule_knobs.hpp"

namespace dvla {

/// Four lanes at once; weights at most K versions old, K <= Max chosen at run time (knob `staleness`).
template <int Max = 1>
struct Swimlane {
  using slot = schedule_slot;
  using knobs = SwimlaneKnobs;
  static constexpr std::string_view name = type_name<Swimlane>;
  static constexpr int max_staleness = Max;
  using mistake = std::conditional_t<(Max >= 0 && Max <= 1024), dvla::mistake::none,
                                     dvla::mistake::staleness_bound_is_out_of_range<Max>>;
  static SwimlaneKnobs default_knobs() { return {.staleness = Max < 1 ? Max : 1}; }
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Swimlane is named but its machinery is not included: add #include "
                  "<dvla/schedule/swimlane.hpp>");
  };
};

/// One phase after the other, each on all cores.
struct Synchronous {
  using slot = schedule_slot;
  using knobs = SynchronousKnobs;
  static constexpr std::string_view name = "Synchronous";
  static constexpr int max_staleness = 0;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Synchronous is named but its machinery is not included: add #include "
                  "<dvla/schedule/synchronous.hpp>");
  };
};

/// Rollouts go through a replay buffer. Declared, not built in this version.
struct Replay {
  using slot = schedule_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Replay";
  static constexpr bool built = false;
  static constexpr int max_staleness = 0;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Replay is declared but not built in this version; use Swimlane<Max> or Synchronous");
  };
};

}  // namespace dvla
