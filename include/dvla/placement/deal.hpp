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

/// `count` things in proportion to `weight`: those that are not `dealt` yet go, one by one, to whom most is
/// missing; of equals to the first.
inline void deal(std::int64_t count, const std::vector<double>& weight, std::vector<std::int64_t>& dealt) {
  double all = 0;
  for (const double each : weight) all += each;
  const auto missing = [&](std::size_t i) {  // times `all`
    return static_cast<double>(count) * weight[i] - all * static_cast<double>(dealt[i]);
  };
  std::int64_t left = count;
  for (const std::int64_t each : dealt) left -= each;
  for (; left > 0; --left) {
    std::size_t neediest = 0;
    for (std::size_t i = 1; i < weight.size(); ++i)
      if (missing(i) > missing(neediest)) neediest = i;
    ++dealt[neediest];
  }
}

/// For a placement that lets every rank train, now or later.
inline void refuse_joined(std::string_view placement, const Topology& topology) {
  if (!topology.joined.empty())
    throw ConfigError("rank ", topology.joined.front(),
                      " joins the job (DVLA_STORE), so it can only roll out, but under ", placement,
                      " every rank may train; choose separated or hybrid");
}

/// `count` of the ranks that did not join, ascending: of each machine its first ones, in proportion to how
/// many it has (largest remainder; of equals the lower machine). Rank 0 is always one.
inline std::vector<int> spread(int count, const Topology& topology) {
  const std::int64_t world = topology.world() - std::ssize(topology.joined);
  if (count < 1 || count > world)
    throw ConfigError(count, " of the job's ", topology.world(), " ranks are to train, but only ", world,
                      " can: the others join as rollouts (DVLA_STORE)");
  std::vector<double> ranks;  // of each machine
  for (int rank : all_ranks(topology)) {
    const auto node = static_cast<std::size_t>(topology.node[static_cast<std::size_t>(rank)]);
    if (ranks.size() <= node) ranks.resize(node + 1);
    if (!topology.has_joined(rank)) ++ranks[node];
  }
  std::vector<std::int64_t> dealt(ranks.size(), 0);
  dealt[static_cast<std::size_t>(topology.node.front())] = 1;
  deal(count, ranks, dealt);
  std::vector<int> chosen;
  for (int rank : all_ranks(topology))
    if (!topology.has_joined(rank) &&
        dealt[static_cast<std::size_t>(topology.node[static_cast<std::size_t>(rank)])]-- > 0)
      chosen.push_back(rank);
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
    throw ConfigError(name, " is ", rollouts, ":", actors, " and the job has ", world,
                      world == 1 ? " rank" : " ranks",
                      "; both shares must be at least 1, and the ranks a multiple of their sum, ", shares);
  return separated(static_cast<int>(world / shares) * actors, topology);
}

}  // namespace dvla::detail
