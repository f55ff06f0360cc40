// In which order the lanes run. Descriptors only. Paper: swimlane, four threads with single-step weight
// staleness, against synchronous alternation. Replay is this library's.
#pragma once

#include <string_view>

#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/schedule/schedule_knobs.hpp"

namespace dvla {

/// Four lanes at once; weights at most K versions old, K <= Max chosen at run time (knob `staleness`).
template <int Max = 1>
struct Swimlane {
  using slot = schedule_slot;
  using knobs = SwimlaneKnobs;
  static constexpr std::string_view name = type_name<Swimlane>;
  static constexpr int max_staleness = Max;
  static consteval bool is_sound() {
    constexpr bool bounded = Max >= 0 && Max <= 1024;
    static_assert(bounded,
                  "dvla: Swimlane<Max> needs a staleness bound from 0 (synchronous) to 1024: Swimlane<1>");
    return bounded;
  }
  static SwimlaneKnobs default_knobs() { return {{}, Max < 1 ? Max : 1}; }
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
  static constexpr bool in_turn = true;  ///< so the trainer's own model can sample
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Synchronous is named but its machinery is not included: add #include "
                  "<dvla/schedule/synchronous.hpp>");
  };
};

/// A recorded run again, in one thread: the same weights decide at the same chunk boundaries. How old they
/// are is the recording's matter, and checked against what the algorithm allows when a run starts.
struct Replay {
  using slot = schedule_slot;
  using knobs = ReplayKnobs;
  static constexpr std::string_view name = "Replay";
  static constexpr int max_staleness = 0;
  static constexpr bool staleness_is_recorded = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Replay is named but its machinery is not included: add #include "
                  "<dvla/schedule/replay.hpp>");
  };
};

}  // namespace dvla
