// The streams of random numbers in a run. Every draw is seeded by (run seed, stream, indices), so nothing
// depends on the order in which threads happen to run, and a resumed run needs no generator state but its
// counters.
#pragma once

#include <concepts>
#include <cstdint>

#include "dvla/core/random.hpp"

namespace dvla {

/// The values are part of what makes a run reproducible: append only.
enum class Stream : std::uint64_t {
  episode = 1,    ///< reset states of training episodes; indices: batch, group; later ones of a row: number
  action,         ///< actions drawn in a rollout; batch, decision, stage
  shuffle,        ///< order of rows in an update; batch, epoch
  evaluation,     ///< reset states that training never sees; number
  probe,          ///< reset states of the warm start's own success checks; number
  demonstration,  ///< reset states of expert episodes; number
  noise,          ///< the noise on the expert; pass, row, control step
  weights,        ///< initial weights
  imitation,      ///< order of rows in the warm start; step
};

constexpr std::uint64_t stream_seed(std::uint64_t seed, Stream stream, std::integral auto... index) {
  return mix_seed(seed, static_cast<std::uint64_t>(stream), index...);
}

}  // namespace dvla
