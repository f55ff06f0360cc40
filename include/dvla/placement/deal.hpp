// Deals a job's ranks to roles so that every machine gets its share of both: the unit of replication is a
// node-local sampling-inference loop. Paper: "local topology replication". Pure functions of the topology, so
// that every rank finds the same roles by itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/placement/topology.hpp"

namespace dvla::detail {

inline std::vector<int> all_ranks(const Topology& topology) {
  std::vector<int> ranks;
  for (int rank = 0; rank < topology.world(); ++rank) ranks.push_back(rank);
  return ranks;
}

/// For a placement that lets every rank train, now or later.
inline void refuse_joined(std::string_view placement, const Topology& topology) {
  if (!topology.joined.empty())
    throw ConfigError("rank " + std::to_string(topology.joined.front()) +
                      " joins the job (DVLA_STORE), so it can only roll out, but under " +
                      std::string(placement) + " every rank may train; choose separated or hybrid");
}

/// `count` of the ranks that did not join, ascending: of each machine its first ones, in proportion to how
/// many it has (largest remainder; of equals the lower machine). Rank 0 is always one.
inline std::vector<int> spread(int count, const Topology& topology) {
  const std::int64_t world = topology.world() - std::ssize(topology.joined);
  if (count < 1 || count > world)
    throw ConfigError(std::to_string(count) + " of the job's " + std::to_string(topology.world()) +
                      " ranks are to train, but only " + std::to_string(world) +
                      " can: the others join as rollouts (DVLA_STORE)");
  std::vector<std::vector<int>> ranks;  // of each machine
  for (int rank = 0; rank < topology.world(); ++rank) {
    if (topology.has_joined(rank)) continue;
    const auto node = static_cast<std::size_t>(topology.node[static_cast<std::size_t>(rank)]);
    if (ranks.size() <= node) ranks.resize(node + 1);
    ranks[node].push_back(rank);
  }
  std::vector<std::size_t> dealt(ranks.size(), 0);
  const auto missing = [&](std::size_t node) {  // times `world`
    return count * std::ssize(ranks[node]) - world * static_cast<std::int64_t>(dealt[node]);
  };
  std::vector<bool> is_chosen(topology.node.size());
  for (int left = count; left > 0; --left) {
    auto neediest = static_cast<std::size_t>(topology.node.front());  // at first: it does not go empty
    for (std::size_t node = 0; node < ranks.size() && left < count; ++node)
      if (missing(node) > missing(neediest) || (missing(node) == missing(neediest) && node < neediest))
        neediest = node;
    is_chosen[static_cast<std::size_t>(ranks[neediest][dealt[neediest]++])] = true;
  }
  std::vector<int> chosen;
  for (int rank : all_ranks(topology))
    if (is_chosen[static_cast<std::size_t>(rank)]) chosen.push_back(rank);
  return chosen;
}

/// Actors as spread() says, the others are rollouts.
inline Roles separated(int actors, const Topology& topology) {
  Roles roles;
  roles.actors = spread(actors, topology);
  roles.rollouts.clear();
  for (int rank : all_ranks(topology))
    if (roles.actor(rank) < 0) roles.rollouts.push_back(rank);
  return roles;
}

/// The same by shares; `name` is theirs in the refusal.
inline Roles separate(int rollouts, int actors, const std::string& name, const Topology& topology) {
  const int world = topology.world();
  const std::int64_t shares = std::int64_t{rollouts} + actors;
  if (rollouts < 1 || actors < 1 || world % shares != 0)
    throw ConfigError(name + " is " + std::to_string(rollouts) + ":" + std::to_string(actors) +
                      " and the job has " + std::to_string(world) + (world == 1 ? " rank" : " ranks") +
                      "; both shares must be at least 1, and the ranks a multiple of their sum, " +
                      std::to_string(shares));
  return separated(static_cast<int>(world / shares) * actors, topology);
}

}  // namespace dvla::detail
