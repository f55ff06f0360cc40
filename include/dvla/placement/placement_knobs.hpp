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

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::SeparatedKnobs, rollouts, actors);
BOOST_HANA_ADAPT_STRUCT(dvla::HybridKnobs, actors);
