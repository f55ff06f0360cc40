// Where the processes of a job are, and which of them rolls out and which trains. Paper: co-located,
// separated and hybrid placement, ratios 3:1 and 1:1. Torch-free values; who fills them is launch.hpp (from
// the environment variables of torchrun, mpirun or srun) and the placement policy (roles).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"

namespace dvla {

/// The ranks of a job, in order. node[r] numbers the machines from 0.
struct Topology {
  std::vector<int> node{0};
  /// Ranks that a launcher of their own has started, to join the job of rank 0 (Launch::joins), ascending.
  /// They are rollouts: one that dies takes nobody with it, and its launcher starts it again.
  std::vector<int> joined{};
  int world() const { return static_cast<int>(node.size()); }
  bool has_joined(int rank) const {
    for (const int each : joined)
      if (each == rank) return true;
    return false;
  }
};

/// Which rank does what. Both lists are ascending and without repeats; a rank may stand in both. The leader,
/// actors.front(), prints and writes files.
struct Roles {
  std::vector<int> rollouts{0};
  std::vector<int> actors{0};

  static int place(const std::vector<int>& list, int rank) {
    for (std::size_t i = 0; i < list.size(); ++i)  // without <algorithm>, which every program would pay for
      if (list[i] == rank) return static_cast<int>(i);
    return -1;
  }
  /// Position among the rollouts or the actors; -1: not one of them.
  int rollout(int rank) const { return place(rollouts, rank); }
  int actor(int rank) const { return place(actors, rank); }
  int leader() const { return actors.front(); }
  /// Whether any rank is both.
  bool overlap() const {
    for (const int rank : actors)
      if (rollout(rank) >= 0) return true;
    return false;
  }
  bool operator==(const Roles&) const = default;
};

/// "rank 3 (rollout 2)": how messages name a rank.
inline std::string rank_name(const Roles& roles, int rank) {
  std::string text = "rank " + std::to_string(rank), role;
  if (const int actor = roles.actor(rank); actor >= 0) role = "actor " + std::to_string(actor);
  if (const int rollout = roles.rollout(rank); rollout >= 0)
    role += (role.empty() ? "rollout " : " and rollout ") + std::to_string(rollout);
  return role.empty() ? text : text + " (" + role + ")";
}

/// Part `index` of `parts` consecutive, nearly equal shares of `count` things: first and how many.
struct Share {
  std::int64_t first = 0, count = 0;
};
constexpr Share share_of(std::int64_t count, int parts, int index) {
  const std::int64_t first = count * index / parts;
  return {first, count * (index + 1) / parts - first};
}

}  // namespace dvla
