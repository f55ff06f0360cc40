// Which floats of the flat weights are whose under full sharding: units, each padded and cut into one part an
// actor. Values only. An actor's shard is its parts of all units, one after the other, padding included.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/weight_range.hpp"

namespace dvla {

class ShardLayout {
 public:
  /// `units` ascend and cover [0, floats); otherwise throws ConfigError.
  ShardLayout(std::vector<WeightRange> units, std::int64_t floats, int actors)
      : units_(std::move(units)), actors_(actors) {
    std::int64_t next = 0;
    for (std::size_t unit = 0; unit < units_.size(); ++unit) {
      const auto [offset, count] = units_[unit];
      if (offset != next || count < 1 || count > floats - next)
        throw ConfigError("sharding: unit " + std::to_string(unit) + " of the model has " +
                          std::to_string(count) + " floats from " + std::to_string(offset) +
                          " on; units must follow one another from 0 to " + std::to_string(floats));
      next += count;
      starts_.push_back(shard_floats_);
      parts_.push_back(static_cast<std::size_t>((count + actors - 1) / actors));
      shard_floats_ += parts_.back();
    }
    if (next != floats)
      throw ConfigError("sharding: the model's units end at float " + std::to_string(next) + " of " +
                        std::to_string(floats));
  }

  const std::vector<WeightRange>& units() const { return units_; }
  int actors() const { return actors_; }
  /// Floats of one actor's part of a unit, padding included; where it begins in the actor's shard.
  std::size_t part(std::size_t unit) const { return parts_[unit]; }
  std::size_t start(std::size_t unit) const { return starts_[unit]; }
  /// Floats of one actor's shard, and of the largest unit, padding included.
  std::size_t shard_floats() const { return shard_floats_; }
  std::size_t largest_padded() const {
    return *std::max_element(parts_.begin(), parts_.end()) * static_cast<std::size_t>(actors_);
  }
  /// What an actor's part of a unit is of the flat weights, without padding; the count may be 0.
  WeightRange range(std::size_t unit, int actor) const {
    const auto [offset, count] = units_[unit];
    const auto part = static_cast<std::int64_t>(parts_[unit]);
    const std::int64_t first = std::min(count, part * actor);
    return {offset + first, std::min(part, count - first)};
  }
  /// What an actor packs, in this order.
  WeightPart packed(int actor) const {
    WeightPart all;
    for (std::size_t unit = 0; unit < units_.size(); ++unit)
      if (const WeightRange mine = range(unit, actor); mine.count > 0) all.push_back(mine);
    return all;
  }
  /// Bytes that one actor sends in an optimiser step, and as many it receives: (actors - 1) parts of each
  /// unit, once as parameters of `parameter_bytes` each and once as float32 gradients.
  std::int64_t bytes_a_step(std::int64_t parameter_bytes) const {
    return (actors_ - 1) * static_cast<std::int64_t>(shard_floats_) * (parameter_bytes + 4);
  }

 private:
  std::vector<WeightRange> units_;
  int actors_;
  std::vector<std::size_t> parts_, starts_;
  std::size_t shard_floats_ = 0;
};

}  // namespace dvla
