// What a user tunes in the Toy environment of tests and benches.
#pragma once

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

struct ToyKnobs {
  int environments = 64;   ///< rows stepped at once
  int horizon = 4;         ///< control steps in an episode
  int proprioception = 4;  ///< P
  int actions = 1;         ///< A
  int categories = 0;      ///< every action dimension is one of so many; 0: continuous
  int step_cost_ns = 0;    ///< busy work added to every control step of a row, for benches
};

template <>
inline constexpr auto knob_docs<ToyKnobs> = std::to_array<KnobDoc>({
    {"environments", "environments stepped at once; a multiple of the group", 1, 1 << 20},
    {"horizon", "longest episode", 1, 10000, "control steps"},
    {"proprioception", "numbers in an observation", 1, 65536},
    {"actions", "dimensions of an action", 1, 1024},
    {"categories", "every action dimension is one of so many; 0 = continuous, else at least 2", 0, 1024},
    {"step_cost_ns", "busy work added to every control step of a row", 0, 1e9, "ns"},
});

/// Rules beyond ranges; found by validate(config).
inline void check(const ToyKnobs& knobs) {
  if (knobs.categories == 1)
    throw ConfigError("environment.categories is 1; it must be 0 for continuous actions, or at least 2");
}

}  // namespace dvla

template <std::same_as<dvla::ToyKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::members<&K::environments, &K::horizon, &K::proprioception,
                                                      &K::actions, &K::categories, &K::step_cost_ns> {};
