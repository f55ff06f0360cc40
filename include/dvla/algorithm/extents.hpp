// The extents that all arithmetic of the algorithms shares, and the check that spans have them.
//
// Legend: T decisions, B episodes (environments), C control steps per decision (the action chunk). Everything
// is time-major and contiguous, [T, B, C]; row n = t * B + b.
#pragma once

#include <cstddef>
#include <string>

#include "dvla/algorithm/levels.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

struct RolloutExtents {
  std::size_t decisions = 0;  ///< T
  std::size_t episodes = 0;   ///< B
  std::size_t chunk = 0;      ///< C

  std::size_t rows() const { return decisions * episodes; }  ///< samples: row n = t * B + b
  std::size_t steps() const { return rows() * chunk; }
  /// Mask and advantage elements in one row: C at action level, 1 at chunk level.
  std::size_t per_row(RewardLevel level) const { return level == RewardLevel::action ? chunk : 1; }
};

namespace detail {
inline void expect_size(const char* what, std::size_t have, std::size_t want) {
  if (have != want)
    throw Error(std::string(what) + " has " + std::to_string(have) + " elements where the extents ask for " +
                std::to_string(want) + ".");
}
}  // namespace detail

}  // namespace dvla
