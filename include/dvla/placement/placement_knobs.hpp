// What a user tunes in the placements.
#pragma once

#include "dvla/core/knobs.hpp"

namespace dvla {

struct SeparatedKnobs {
  int rollouts = 1;
  int actors = 1;
};

struct HybridKnobs {
  int actors = 1;
};

/// The shares are those at first; a job of one process has one rank, which is both.
struct AdaptiveKnobs : SeparatedKnobs {
  int look_every = 10;
  double within = 0.1;
};

template <>
inline constexpr auto knob_docs<SeparatedKnobs> = std::to_array<KnobDoc>({
    {"rollouts", "shares of the ranks that roll out: 3 rollouts to 1 actor", 1, 65536},
    {"actors", "shares of the ranks that train; the number of ranks is a multiple of both shares' sum", 1,
     65536},
});

template <>
inline constexpr auto knob_docs<HybridKnobs> = std::to_array<KnobDoc>({
    {"actors", "how many of the ranks train too; all roll out", 1, 65536},
});

template <>
inline constexpr auto knob_docs<AdaptiveKnobs> = joined_docs(
    knob_docs<SeparatedKnobs>,
    std::to_array<KnobDoc>({
        {"look_every",
         "batches between looks while shares move; twice as many after each look that moves nothing", 3, 1e6},
        {"within", "rollout and actor time meet when they are no further apart, as a share of the longer one",
         0.01, 0.9},
    }));

}  // namespace dvla

template <std::same_as<dvla::SeparatedKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::members<&K::rollouts, &K::actors> {};
template <std::same_as<dvla::HybridKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::members<&K::actors> {};
template <std::same_as<dvla::AdaptiveKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::more_members<dvla::SeparatedKnobs, &K::look_every, &K::within> {
};
