// What the threads of a broadcast plane share: who this rank is, how the weights are cut, and, under one
// lock, which versions are where. Nothing here waits or sends.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/control_plane/weight_slots.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/core/error.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// Of this rank, since the start. Bytes are those of weights, without the 64 of each frame.
struct WeightPlaneReport {
  std::int64_t published = 0, versions_sent = 0, versions_received = 0;  ///< summed over peers
  std::int64_t bytes_sent = 0, bytes_received = 0;
  std::int64_t installed = 0, installed_bytes = 0;  ///< by receive
  double send_s = 0, receive_s = 0;                 ///< summed over threads
  std::int64_t lost = 0, rejoined = 0;              ///< rollouts
  std::string last_loss;                            ///< why, for people
};

namespace detail {

enum class WeightPeer : std::uint8_t { live, ended, lost };

struct WeightBoard {
  static constexpr std::int64_t none = -1;

  WeightBoard(Roles its_roles, int rank, int its_incarnation, std::chrono::nanoseconds its_deadline,
              std::vector<PartLayout> its_layouts, std::pmr::memory_resource& pool)
      : roles(std::move(its_roles)),
        me(rank_name(roles, rank)),
        actor(roles.actor(rank)),
        rollout(roles.rollout(rank)),
        actors(static_cast<int>(roles.actors.size())),
        incarnation(its_incarnation),
        deadline(its_deadline),
        layouts(std::move(its_layouts)),
        slots(sizes(), held(), rollout >= 0, pool) {}

  static std::size_t place(int index) { return static_cast<std::size_t>(index); }
  const PartLayout& layout(int which) const { return layouts[place(which)]; }
  std::string actor_name(int which) const { return rank_name(roles, roles.actors[place(which)]); }
  std::string rollout_name(int which) const { return rank_name(roles, roles.rollouts[place(which)]); }

  const Roles roles;
  const std::string me;              ///< "rank 3 (rollout 2)"
  const int actor, rollout, actors;  ///< this rank's place among them, -1: not one of them; how many
  const int incarnation;
  const std::chrono::nanoseconds deadline;
  const std::vector<PartLayout> layouts;  ///< by actor

  mutable std::mutex mutex;         ///< guards what stands below
  std::condition_variable changed;  ///< notified when any of it did
  WeightSlots slots;
  std::int64_t published = none, packing = none;
  bool closed = false, finishing = false;
  WeightPlaneReport report;

 private:
  std::vector<std::size_t> sizes() const {
    std::vector<std::size_t> all;
    for (const PartLayout& each : layouts) all.push_back(each.bytes);
    return all;
  }
  std::vector<int> held() const {
    std::vector<int> all;
    for (int each = 0; each < actors; ++each)
      if (rollout >= 0 || each == actor) all.push_back(each);
    return all;
  }
};

}  // namespace detail

}  // namespace dvla
