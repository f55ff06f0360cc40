// Which GRPO groups go from which rollout to which actor. Paper: the data plane's routing plan, computed from
// sizes on the master and broadcast: point to point where rollouts = actors, contiguous and balanced by bytes
// where they are not, all-to-all where every rank is both; "local topology replication": machine by machine.
// Values only: routed.hpp moves the bytes.
//
// Properties (tested): every group goes exactly once and whole; the same input gives the same plan; every
// actor gets a group; groups of equal size whose number divides by the actors' give each the same number; in
// general no actor has more than one largest group above the best possible maximum (of any assignment);
// nothing leaves a machine where each has groups of equal size in proportion to its actors.
#pragma once

#include <algorithm>
#include <boost/hana.hpp>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// A run of groups of one rollout that go to one actor. Rollouts, actors: positions in Roles' lists.
struct Route {
  int rollout = 0;
  int actor = 0;
  std::int64_t first_group = 0;    ///< among the rollout's own groups
  std::int64_t groups = 0;         ///< at least 1
  std::int64_t first_episode = 0;  ///< column of the actor's batch where they go
  std::int64_t bytes = 0;
  bool local = false;  ///< both are one rank: nothing is sent
  bool operator==(const Route&) const = default;
};

/// The routes in the order of rollouts and of their groups. An actor's columns are in that order too, so one
/// actor sees the batch as one process would have made it.
struct RoutingPlan {
  int rollouts = 0;
  int actors = 0;
  std::int64_t group_episodes = 0;  ///< episodes of a GRPO group
  std::vector<Route> routes;
  bool operator==(const RoutingPlan&) const = default;

  std::int64_t episodes_from(int rollout) const { return episodes(&Route::rollout, rollout); }
  std::int64_t episodes_to(int actor) const { return episodes(&Route::actor, actor); }

 private:
  std::int64_t episodes(int Route::*end, int index) const {
    std::int64_t total = 0;
    for (const Route& route : routes) total += route.*end == index ? route.groups * group_episodes : 0;
    return total;
  }
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::Route, rollout, actor, first_group, groups, first_episode, bytes, local);
BOOST_HANA_ADAPT_STRUCT(dvla::RoutingPlan, rollouts, actors, group_episodes, routes);

namespace dvla {

namespace detail {

/// Level to which `amount` more fills the vessels `loads`; rounded up.
inline std::int64_t water_level(std::vector<std::int64_t> loads, std::int64_t amount) {
  std::sort(loads.begin(), loads.end());
  std::int64_t below = 0;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    below += loads[i];
    const auto count = static_cast<std::int64_t>(i + 1);
    const std::int64_t level = (below + amount + count - 1) / count;
    if (i + 1 == loads.size() || level <= loads[i + 1]) return level;
  }
  return 0;
}

}  // namespace detail

/// Throws ConfigError unless the plan is whole: every group of every rollout once, every column of every
/// actor once, no actor without groups.
inline void check_routes(const RoutingPlan& plan) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError("routing plan: " + what);
  };
  constexpr std::int64_t most = std::int64_t{1} << 31;
  require(plan.rollouts > 0 && plan.actors > 0, "it needs a rollout and an actor at least");
  require(plan.group_episodes > 0 && plan.group_episodes < most, "a group has 1 episode at least");
  int rollout = 0;
  std::int64_t next = 0;
  std::vector<std::int64_t> columns(static_cast<std::size_t>(plan.actors), 0);
  for (const Route& route : plan.routes) {
    const std::string name =
        "route from rollout " + std::to_string(route.rollout) + " to actor " + std::to_string(route.actor);
    require(route.rollout >= rollout && route.rollout < plan.rollouts && route.actor >= 0 &&
                route.actor < plan.actors && route.groups > 0 && route.groups < most && route.bytes > 0,
            name + " is out of range or out of order");
    if (route.rollout != rollout) next = 0;
    rollout = route.rollout;
    require(route.first_group == next, name + " leaves out or repeats a group");
    std::int64_t& column = columns[static_cast<std::size_t>(route.actor)];
    require(route.first_episode == column, name + " leaves out or repeats a column");
    next += route.groups;
    column += route.groups * plan.group_episodes;
    require(next < most && column < most, name + " has too many groups");
  }
  for (int actor = 0; actor < plan.actors; ++actor)
    require(columns[static_cast<std::size_t>(actor)] > 0,
            "actor " + std::to_string(actor) + " gets no group");
}

/// `bytes[r][g]`: size of group g of rollout r, at least 1. Ranks that `topology` does not have are on machine
/// 0. Throws ConfigError for sizes below 1, and where there are fewer groups than actors.
inline RoutingPlan plan_routes(const std::vector<std::vector<std::int64_t>>& bytes,
                               std::int64_t group_episodes, const Roles& roles,
                               const Topology& topology = {}) {
  struct Piece {
    std::int64_t bytes;
    int actor = -1;
  };
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError("routing: " + what);
  };
  const std::size_t R = bytes.size(), A = roles.actors.size();
  require(A >= 1 && R >= 1 && group_episodes >= 1,
          std::to_string(R) + " rollouts, " + std::to_string(A) + " actors, groups of " +
              std::to_string(group_episodes) + " episodes; 1 of each is needed at least");
  require(R == roles.rollouts.size(), "sizes are of " + std::to_string(R) + " rollouts, the job has " +
                                          std::to_string(roles.rollouts.size()));
  const auto node = [&](int rank) {
    return rank < topology.world() ? topology.node[static_cast<std::size_t>(rank)] : 0;
  };
  // Positions in the order of machines: what is near in it is near in the job.
  const auto by_node = [&](const std::vector<int>& ranks) {
    std::vector<std::size_t> order(ranks.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return node(ranks[a]) < node(ranks[b]); });
    return order;
  };
  const auto rollout_order = by_node(roles.rollouts), actor_order = by_node(roles.actors);
  std::vector<std::vector<Piece>> groups(R);
  std::size_t left = 0;  // groups that have no actor yet
  std::int64_t total = 0;
  for (std::size_t rollout = 0; rollout < R; ++rollout)
    for (const std::int64_t size : bytes[rollout]) {
      require(size >= 1 && size <= (std::int64_t{1} << 60) - total,
              "group " + std::to_string(groups[rollout].size()) + " of rollout " + std::to_string(rollout) +
                  " has " + std::to_string(size) + " bytes; sizes are 1 or more, 2^60 in sum");
      groups[rollout].push_back({size});
      total += size;
      ++left;
    }
  require(left >= A, std::to_string(left) + " groups a batch for " + std::to_string(A) +
                         " actors; each needs one: raise environments or lower the number of actors");

  // At home: the same rank, or the partner where rollouts and actors stand in pairs on each machine.
  std::vector<int> home;  // of each rollout: an actor, or -1
  for (const int rank : roles.rollouts) home.push_back(roles.actor(rank));
  const bool some_are_both = std::any_of(home.begin(), home.end(), [](int actor) { return actor >= 0; });
  for (std::size_t i = 0; i < A && R == A && !some_are_both; ++i)
    if (node(roles.rollouts[rollout_order[i]]) == node(roles.actors[actor_order[i]]))
      home[rollout_order[i]] = static_cast<int>(actor_order[i]);
  std::vector<std::int64_t> load(A, 0);
  std::size_t without = A;  // actors that have no group yet
  const auto give = [&](Piece& group, std::size_t actor) {
    without -= load[actor] == 0;
    group.actor = static_cast<int>(actor);
    load[actor] += group.bytes;
    --left;
  };
  // A rollout's first groups stay at home up to the mean (the group that crosses it stays if half of it
  // fits), as long as enough are left for those that have none.
  const std::int64_t mean = total / static_cast<std::int64_t>(A);
  for (std::size_t rollout = 0; rollout < R; ++rollout) {
    if (home[rollout] < 0) continue;
    const auto actor = static_cast<std::size_t>(home[rollout]);
    for (Piece& group : groups[rollout]) {
      const bool fits = load[actor] + (group.bytes + 1) / 2 <= mean || load[actor] + group.bytes <= mean;
      if (!fits || (load[actor] > 0 && left <= without)) break;
      give(group, actor);
    }
  }
  // The rest goes on in the order of machines: each actor takes up to the common level, one group at least if
  // it has none.
  std::vector<Piece*> rest;
  std::int64_t rest_bytes = 0;
  for (const std::size_t rollout : rollout_order)
    for (Piece& group : groups[rollout])
      if (group.actor < 0) rest.push_back(&group), rest_bytes += group.bytes;
  // The level is rounded up, so all targets together hold the rest, and the last group finds its actor.
  const std::int64_t level = detail::water_level(load, rest_bytes);
  std::size_t next = 0;
  std::int64_t given = 0, target = 0;
  for (const std::size_t a : actor_order) {
    const std::int64_t room = level - load[a];
    target += std::max<std::int64_t>(room, 0);
    while (next < rest.size() && (load[a] == 0 || left > without)) {
      const std::int64_t size = rest[next]->bytes;
      if (load[a] > 0 && (room <= 0 || given + (size + 1) / 2 > target)) break;
      give(*rest[next++], a);
      given += size;
    }
  }
  RoutingPlan plan{static_cast<int>(R), static_cast<int>(A), group_episodes, {}};
  std::vector<std::int64_t> column(A, 0);
  for (std::size_t rollout = 0; rollout < R; ++rollout)
    for (std::size_t i = 0; i < groups[rollout].size(); ++i) {
      const Piece& group = groups[rollout][i];
      std::int64_t& at = column[static_cast<std::size_t>(group.actor)];
      if (i > 0 && groups[rollout][i - 1].actor == group.actor) {
        ++plan.routes.back().groups;
        plan.routes.back().bytes += group.bytes;
      } else {
        plan.routes.push_back({static_cast<int>(rollout), group.actor, static_cast<std::int64_t>(i), 1, at,
                               group.bytes, some_are_both && home[rollout] == group.actor});
      }
      at += group_episodes;
    }
  check_routes(plan);
  return plan;
}

/// For the job's store, and for the ranks to compare.
inline std::string serialise(const RoutingPlan& plan) { return sealed_text(plan); }

/// The plan that `serialise` wrote. Throws FormatError for any other bytes, ConfigError for a plan that is
/// not whole; never anything else.
inline RoutingPlan parse_routes(std::string_view text) {
  RoutingPlan plan = parse_sealed<RoutingPlan>(text, "routing plan of the leader, whose program differs");
  check_routes(plan);
  return plan;
}

/// Every rank calls it: rollouts give the sizes of their groups (others: nothing), the leader plans from all
/// of them, everybody gets the same plan, through the job's store under `name`. A rank that comes later (a
/// restarted rollout) gets the plan that there is. Throws DeadlineError, and what plan_routes throws.
inline RoutingPlan agree_on_routes(Cluster& cluster, const Roles& roles,
                                   const std::vector<std::int64_t>& own_bytes, std::int64_t group_episodes,
                                   std::chrono::nanoseconds limit, const std::string& name = "routes") {
  const int rollout = roles.rollout(cluster.rank());
  auto key = [&](int index) { return name + "/bytes/" + std::to_string(index); };
  if (rollout >= 0) cluster.put(key(rollout), json_text(own_bytes));
  if (cluster.rank() == roles.leader() && !cluster.has(name + "/plan")) {
    std::vector<std::vector<std::int64_t>> bytes;
    for (int r = 0; r < static_cast<int>(roles.rollouts.size()); ++r)
      bytes.push_back(parse_json<std::vector<std::int64_t>>(cluster.get(key(r), limit),
                                                            "group sizes of rollout " + std::to_string(r)));
    std::string answer;
    try {
      answer = serialise(plan_routes(bytes, group_episodes, roles, cluster.topology()));
    } catch (const Error& error) {
      cluster.put(name + "/plan", std::string("refused ") + error.what());  // so that nobody waits in vain
      throw;
    }
    cluster.put(name + "/plan", answer);
  }
  const std::string text = cluster.get(name + "/plan", limit);
  if (text.starts_with("refused ")) throw ConfigError(text.substr(8));
  return parse_routes(text);
}

}  // namespace dvla
