// How a trainer's weights, gradients and moments are spread over ranks. Descriptors only, no torch. Paper:
// actor GPUs train under FSDP.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
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

/// When a unit's gathered values go back, to be gathered again for the next use: after each use; after the
/// backward pass; never, as long as they are those of the last optimiser step.
enum class UnitRelease : std::uint8_t { after_use, after_backward, never };
template <>
inline constexpr auto enum_names<UnitRelease> = std::to_array<std::string_view>({"after_use",
                                                                                 "after_backward", "never"});

struct FsdpKnobs {
  UnitRelease release = UnitRelease::after_use;
  bool shard_frozen = false;
};

/// Fully sharded data parallelism: masters and moments of what trains exist once over all trainers; between
/// uses, so do values and gradients.
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

template <std::same_as<dvla::FsdpKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::members<&K::release, &K::shard_frozen> {};
template <>
inline constexpr auto dvla::knob_docs<dvla::FsdpKnobs> = std::to_array<dvla::KnobDoc>({
    {"release", "when the gathered values of a unit are given back: after_use, after_backward or never"},
    {"shard_frozen", "keep a part of each frozen unit on each actor; else every actor has them whole"},
});
