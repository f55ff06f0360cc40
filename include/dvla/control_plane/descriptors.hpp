// How weights travel from actors to rollouts. Descriptors only, no torch. Paper: low-frequency weight control
// plane on the CPU: contiguous host buffers, broadcast in the background.
#pragma once

#include <array>
#include <string_view>

#include "dvla/core/in_process.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"

namespace dvla {

/// One copy from the trainer's model into the samplers', swapped at a chunk boundary. Spelt
/// ControlPlane<InProcess>.
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

struct GlooKnobs {
  int streams = 4;  ///< connections of a pair at most; a part of less than 8 MiB has one
};
template <>
inline constexpr auto knob_docs<GlooKnobs> = std::to_array<KnobDoc>({
    {"streams", "connections between an actor and a rollout that share a large part of the weights, at most",
     1, 64},
});

/// A background broadcast between processes, each actor its own part, over LibTorch's Gloo.
struct Gloo {
  using slot = control_plane_slot;
  using knobs = GlooKnobs;
  static constexpr std::string_view name = "Gloo";
  static constexpr bool spans_processes = true;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Gloo is named but its machinery is not included: add #include "
                  "<dvla/control_plane/broadcast.hpp>");
  };
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::GlooKnobs, streams);
