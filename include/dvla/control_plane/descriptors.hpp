// How weights travel from actors to rollouts. Descriptors only, no torch. Paper: low-frequency weight control
// plane on the CPU: contiguous host buffers, broadcast in the background.
#pragma once

#include <string_view>

#include "dvla/core/in_process.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"

namespace dvla {

/// One versioned, checksummed host buffer, swapped at a chunk boundary. Spelt ControlPlane<InProcess>.
struct InProcessWeights {
  using slot = control_plane_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "InProcess";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: ControlPlane<InProcess> is named but its machinery is not included: add #include "
                  "<dvla/control_plane/in_process.hpp>");
  };
};
template <>
struct InProcess::in<control_plane_slot> {
  using type = InProcessWeights;
};

/// A background broadcast between processes by LibTorch's Gloo. Declared, not built in this version.
struct Gloo {
  using slot = control_plane_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Gloo";
  static constexpr bool built = false;
  static constexpr bool spans_processes = true;
  template <bool Never>
  struct missing {
    static_assert(Never, "dvla: Gloo is declared but not built in this version; use ControlPlane<InProcess>");
  };
};

}  // namespace dvla
