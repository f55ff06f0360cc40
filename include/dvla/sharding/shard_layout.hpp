// Which of the trainable weights are whose under full sharding: each unit padded and cut into one part an
// actor. Values only. Counts are elements where nothing else is said; units without trainable elements are
// nobody's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/core/weights.hpp"

namespace dvla {

class ShardLayout {
 public:
  ShardLayout(std::span<const WeightUnit> units, int actors) : actors_(actors) {
    Unit next;
    for (const WeightUnit& unit : units) {
      next.count = unit.count();
      next.part = static_cast<std::size_t>((next.count + actors - 1) / actors);
      next.element = bytes_of(unit.dtype);
      units_.push_back(next);
      next.offset += next.count;
      next.byte += unit.values.size();
    }
  }

  std::size_t units() const { return units_.size(); }
  int actors() const { return actors_; }
  /// Of one actor's part of a unit, padding included.
  std::size_t part(std::size_t unit) const { return units_[unit].part; }
  /// An actor's part of a unit, without padding: [offset, offset + count) of the unit; the count may be 0.
  WeightRange within(std::size_t unit, int actor) const {
    const Unit& here = units_[unit];
    const std::int64_t first = std::min(here.count, static_cast<std::int64_t>(here.part) * actor);
    return {first, std::min(static_cast<std::int64_t>(here.part), here.count - first)};
  }
  /// The same of all trainable weights.
  WeightRange range(std::size_t unit, int actor) const {
    const WeightRange part = within(unit, actor);
    return {units_[unit].offset + part.offset, part.count};
  }
  /// What each actor packs, in this order.
  std::vector<WeightPart> parts() const {
    std::vector<WeightPart> all(static_cast<std::size_t>(actors_));
    for (int actor = 0; actor < actors_; ++actor)
      for (std::size_t unit = 0; unit < units(); ++unit) {
        const auto [first, count] = within(unit, actor);
        const Unit& here = units_[unit];
        if (count > 0)
          all[static_cast<std::size_t>(actor)].push_back(
              {here.byte + static_cast<std::size_t>(first) * here.element,
               static_cast<std::size_t>(count) * here.element});
      }
    return all;
  }
  /// Bytes that one actor sends, and as many it receives, when a unit's float32 gradient is reduced and
  /// scattered.
  std::int64_t reduce_bytes(std::size_t unit) const {
    return (actors_ - 1) * static_cast<std::int64_t>(units_[unit].part * sizeof(float));
  }

 private:
  struct Unit {
    std::int64_t offset = 0, count = 0;  ///< of all trainable weights
    std::size_t byte = 0, element = 0;   ///< where it begins, and the size of an element
    std::size_t part = 0;
  };
  std::vector<Unit> units_;
  int actors_;
};

}  // namespace dvla
