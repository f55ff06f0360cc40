// WeightSlots: two versions of every actor's part, and the rule by which a version is whole: all actors'
// parts of it are there. Bounded: a part is overwritten only when a newer version is whole, or when its
// version can never be (an actor has gone on without it, as after a restart), and when nobody reads it. Not
// thread-safe: whoever owns it (broadcast.hpp) holds a lock, and waits where `free` says no.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "dvla/control_plane/parts.hpp"

namespace dvla::detail {

struct WeightSlot {
  enum class State : std::uint8_t { empty, filling, ready };
  WeightSlot(std::size_t count, std::pmr::memory_resource& pool) : bytes(count, &pool) {}

  std::pmr::vector<std::byte> bytes;
  std::int64_t version = -1;
  State state = State::empty;
  int readers = 0;
};

class WeightSlots {
 public:
  /// Room for the parts of actor `own`, and, where it `collects`, of all others too: whole versions are wanted
  /// here. Otherwise a slot is free as soon as nobody reads it.
  WeightSlots(const std::vector<PartLayout>& layouts, int own, bool collects, std::pmr::memory_resource& pool)
      : collects_(collects), actors_(layouts.size()) {
    for (int actor = 0; actor < static_cast<int>(actors_.size()); ++actor)
      for (int side = 0; side < 2 && (collects || actor == own); ++side)
        at(actor).slots.emplace_back(layouts[index(actor)].bytes, pool);
  }

  /// The newest version of which all parts are ready; -1: none.
  std::int64_t newest_whole() const {
    std::int64_t newest = -1;
    if (!collects_) return newest;
    for (const WeightSlot& slot : actors_.front().slots) {
      const bool whole = std::all_of(actors_.begin(), actors_.end(),
                                     [&](const Actor& actor) { return has(actor, slot.version, true); });
      if (slot.state == WeightSlot::State::ready && whole) newest = std::max(newest, slot.version);
    }
    return newest;
  }
  /// The newest version of this actor that is ready; -1: none.
  std::int64_t newest(int actor) const {
    std::int64_t version = -1;
    for (const WeightSlot& slot : at(actor).slots)
      if (slot.state == WeightSlot::State::ready) version = std::max(version, slot.version);
    return version;
  }

  /// This actor's next version will be this one: older ones that it has not sent can never be whole.
  void announce(int actor, std::int64_t version) { at(actor).front = version; }
  /// Where the actor's next version goes.
  WeightSlot& target(int actor) { return at(actor).slots[1 - at(actor).latest]; }
  const WeightSlot& target(int actor) const { return at(actor).slots[1 - at(actor).latest]; }
  /// Whether target(actor) may be overwritten now.
  bool free(int actor) const {
    const WeightSlot& slot = target(actor);
    if (slot.readers > 0) return false;
    return !collects_ || slot.state != WeightSlot::State::ready || slot.version < newest_whole() ||
           dead(slot.version);
  }
  /// Whether this actor has sent what can still make a version >= `wanted` whole.
  bool has_sent(int actor, std::int64_t wanted) const {
    const auto& slots = at(actor).slots;
    return std::any_of(slots.begin(), slots.end(), [&](const WeightSlot& slot) {
      return slot.state == WeightSlot::State::ready && slot.version >= wanted && !dead(slot.version);
    });
  }
  WeightSlot& take(int actor, std::int64_t version) {
    WeightSlot& slot = target(actor);
    slot.version = version;
    slot.state = WeightSlot::State::filling;
    return slot;
  }
  void ready(int actor) {
    target(actor).state = WeightSlot::State::ready;
    at(actor).latest = 1 - at(actor).latest;
  }
  void abandon(int actor) { target(actor).state = WeightSlot::State::empty; }

  /// The actor whose newest version is the oldest.
  int last_actor() const {
    int last = 0;
    for (int actor = 1; actor < static_cast<int>(actors_.size()); ++actor)
      if (newest(actor) < newest(last)) last = actor;
    return last;
  }

  /// Begins (1) or ends (-1) to read all parts of a whole version.
  void read(std::int64_t version, int count) {
    for (int actor = 0; actor < static_cast<int>(actors_.size()); ++actor)
      find(actor, version)->readers += count;
  }
  /// The ready slot of this version; null if there is none.
  WeightSlot* find(int actor, std::int64_t version) {
    for (WeightSlot& slot : at(actor).slots)
      if (slot.state == WeightSlot::State::ready && slot.version == version) return &slot;
    return nullptr;
  }
  /// The ready slot with the lowest version above `version`, or, without `oldest`, with the highest.
  WeightSlot* next(int actor, std::int64_t version, bool oldest) {
    WeightSlot* found = nullptr;
    for (WeightSlot& slot : at(actor).slots)
      if (slot.state == WeightSlot::State::ready && slot.version > version &&
          (!found || (slot.version < found->version) == oldest))
        found = &slot;
    return found;
  }

 private:
  struct Actor {
    std::vector<WeightSlot> slots;
    std::size_t latest = 1;  ///< the slot that was filled last; the other is the next
    std::int64_t front = -1;
  };
  static std::size_t index(int actor) { return static_cast<std::size_t>(actor); }
  Actor& at(int actor) { return actors_[index(actor)]; }
  const Actor& at(int actor) const { return actors_[index(actor)]; }
  /// Some actor has gone on without this version.
  bool dead(std::int64_t version) const {
    return std::any_of(actors_.begin(), actors_.end(), [&](const Actor& actor) {
      return actor.front > version && !has(actor, version, false);
    });
  }
  static bool has(const Actor& actor, std::int64_t version, bool ready) {
    return std::any_of(actor.slots.begin(), actor.slots.end(), [&](const WeightSlot& slot) {
      return slot.version == version &&
             (slot.state == WeightSlot::State::ready || (!ready && slot.state == WeightSlot::State::filling));
    });
  }

  bool collects_;
  std::vector<Actor> actors_;
};

}  // namespace dvla::detail
