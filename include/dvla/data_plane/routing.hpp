// Which GRPO groups go from which rollout to which actor. Paper: the data plane's routing plan, computed from
// sizes on the master and broadcast: point to point where rollouts = actors, contiguous and balanced where
// they are not, all-to-all where every rank is both; "local topology replication": machine by machine. All
// groups of a job have the same layout, so sizes are numbers of groups. Values only: routed.hpp moves the
// bytes.
//
// Properties (tested): every group goes exactly once and whole; the same input gives the same plan; every
// actor gets a group, and none more than one above another; nothing leaves a machine where each has groups in
// proportion to its actors.
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
  bool local = false;              ///< both are one rank: nothing is sent
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

BOOST_HANA_ADAPT_STRUCT(dvla::Route, rollout, actor, first_group, groups, first_episode, local);
BOOST_HANA_ADAPT_STRUCT(dvla::RoutingPlan, rollouts, actors, group_episodes, routes);

namespace dvla {

inline constexpr std::int64_t most_columns = std::int64_t{1} << 31;

/// Throws ConfigError unless the plan is whole: every group of every rollout once, every column of every
/// actor once, no actor without groups.
inline void check_routes(const RoutingPlan& plan) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError("routing plan: " + what);
  };
  require(plan.rollouts > 0 && plan.actors > 0, "it needs a rollout and an actor at least");
  require(plan.group_episodes > 0 && plan.group_episodes < most_columns, "a group has 1 episode at least");
  int rollout = 0;
  std::int64_t next = 0;
  std::vector<std::int64_t> columns(static_cast<std::size_t>(plan.actors), 0);
  for (const Route& route : plan.routes) {
    const std::string name =
        "route from rollout " + std::to_string(route.rollout) + " to actor " + std::to_string(route.actor);
    require(route.rollout >= rollout && route.rollout < plan.rollouts && route.actor >= 0 &&
                route.actor < plan.actors && route.groups > 0 && route.groups < most_columns,
            name + " is out of range or out of order");
    if (route.rollout != rollout) next = 0;
    rollout = route.rollout;
    require(route.first_group == next, name + " leaves out or repeats a group");
    std::int64_t& column = columns[static_cast<std::size_t>(route.actor)];
    require(route.first_episode == column, name + " leaves out or repeats a column");
    next += route.groups;
    column += route.groups * plan.group_episodes;
    require(next < most_columns && column < most_columns, name + " has too many groups");
  }
  for (int actor = 0; actor < plan.actors; ++actor)
    require(columns[static_cast<std::size_t>(actor)] > 0,
            "actor " + std::to_string(actor) + " gets no group");
}

/// `groups[r]`: how many rollout r has in a batch. Ranks that `topology` does not have are on machine 0. Throws
/// ConfigError for numbers that are none, and where there are fewer groups than actors.
inline RoutingPlan plan_routes(const std::vector<std::int64_t>& groups, std::int64_t group_episodes,
                               const Roles& roles, const Topology& topology = {}) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError("routing: " + what);
  };
  const std::size_t R = groups.size(), A = roles.actors.size();
  require(A >= 1 && R >= 1 && group_episodes >= 1,
          std::to_string(R) + " rollouts, " + std::to_string(A) + " actors, groups of " +
              std::to_string(group_episodes) + " episodes; 1 of each is needed at least");
  require(R == roles.rollouts.size(), "sizes are of " + std::to_string(R) + " rollouts, the job has " +
                                          std::to_string(roles.rollouts.size()));
  std::int64_t total = 0;
  for (std::size_t rollout = 0; rollout < R; ++rollout) {
    require(groups[rollout] >= 0 && groups[rollout] < most_columns,
            "rollout " + std::to_string(rollout) + " has " + std::to_string(groups[rollout]) +
                " groups a batch; it must be from 0 to 2^31 - 1");
    total += groups[rollout];
  }
  require(total >= std::ssize(roles.actors),
          std::to_string(total) + " groups a batch for " + std::to_string(A) +
              " actors; each needs one: raise environments or lower the number of actors");
  // Positions in the order of machines: what is near in it is near in the job.
  const auto by_machine = [&](const std::vector<int>& ranks) {
    const auto node = [&](std::size_t i) {
      return ranks[i] < topology.world() ? topology.node[static_cast<std::size_t>(ranks[i])] : 0;
    };
    std::vector<std::size_t> order(ranks.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return node(a) < node(b); });
    return order;
  };
  const auto actor_order = by_machine(roles.actors);
  std::vector<std::int64_t> room(A);  // groups that an actor still takes
  for (std::size_t i = 0; i < A; ++i)
    room[actor_order[i]] = share_of(total, static_cast<int>(A), static_cast<int>(i)).count;

  RoutingPlan plan{static_cast<int>(R), static_cast<int>(A), group_episodes, {}};
  std::vector<std::int64_t> given(R, 0);
  const auto give = [&](std::size_t rollout, std::size_t actor) {
    const std::int64_t count = std::min(groups[rollout] - given[rollout], room[actor]);
    if (count == 0) return;
    plan.routes.push_back({static_cast<int>(rollout), static_cast<int>(actor), given[rollout], count, 0,
                           roles.rollouts[rollout] == roles.actors[actor]});
    given[rollout] += count;
    room[actor] -= count;
  };
  // A rank that is both keeps its first groups; the rest goes on in the order of machines.
  for (std::size_t rollout = 0; rollout < R; ++rollout)
    if (const int own = roles.actor(roles.rollouts[rollout]); own >= 0)
      give(rollout, static_cast<std::size_t>(own));
  for (const std::size_t rollout : by_machine(roles.rollouts))
    for (const std::size_t actor : actor_order) give(rollout, actor);
  std::stable_sort(plan.routes.begin(), plan.routes.end(),
                   [](const Route& a, const Route& b) { return a.rollout < b.rollout; });
  std::vector<std::int64_t> columns(A, 0);
  for (Route& route : plan.routes) {
    std::int64_t& column = columns[static_cast<std::size_t>(route.actor)];
    route.first_episode = column;
    column += route.groups * group_episodes;
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

/// Every rank calls it: rollouts give the number of their groups (others: nothing), the leader plans from all
/// of them, everybody gets the same plan, through the job's store under `name`. A rank that comes later (a
/// restarted rollout) gets the plan that there is. Throws DeadlineError, and what plan_routes throws.
inline RoutingPlan agree_on_routes(Cluster& cluster, const Roles& roles, std::int64_t own_groups,
                                   std::int64_t group_episodes, std::chrono::nanoseconds limit,
                                   const std::string& name = "routes") {
  const int rollout = roles.rollout(cluster.rank());
  auto key = [&](int index) { return name + "/groups/" + std::to_string(index); };
  if (rollout >= 0) cluster.put(key(rollout), json_text(own_groups));
  if (cluster.rank() == roles.leader() && !cluster.has(name + "/plan")) {
    std::vector<std::int64_t> groups;
    for (int r = 0; r < static_cast<int>(roles.rollouts.size()); ++r)
      groups.push_back(
          parse_json<std::int64_t>(cluster.get(key(r), limit), "groups of rollout " + std::to_string(r)));
    std::string answer;
    try {
      answer = serialise(plan_routes(groups, group_episodes, roles, cluster.topology()));
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
