// A stretch of a model's flat weights: what units of a model, shards of actors and parts that travel are made
// of.
#pragma once

#include <cstdint>

namespace dvla {

/// `count` floats of the flat weights from `offset` on.
struct WeightRange {
  std::int64_t offset = 0, count = 0;
  bool operator==(const WeightRange&) const = default;
};

}  // namespace dvla
