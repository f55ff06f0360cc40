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
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// A run of groups of one rollout that go to one actor. Rollouts, actors: positions in Roles' lists.
struct Route {
  int rollout = 0;
  int actor = 0;
  std::int64_t groups = 0;         ///< at least 1
  std::int64_t first_group = 0;    ///< among the rollout's own groups
  std::int64_t first_episode = 0;  ///< column of the actor's batch where they go
  bool operator==(const Route&) const = default;
};

/// The routes in the order of rollouts and of their groups. An actor's columns are in that order too, so one
/// actor sees the batch as one process would have made it: where groups and columns lie follows.
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

BOOST_HANA_ADAPT_STRUCT(dvla::Route, rollout, actor, groups);
BOOST_HANA_ADAPT_STRUCT(dvla::RoutingPlan, rollouts, actors, group_episodes, routes);

namespace dvla {

/// The plan, with the places of groups and columns. Throws ConfigError where routes are out of range or order,
/// or an actor gets no group.
inline RoutingPlan placed(RoutingPlan plan) {
  const auto require = [](bool holds, const auto&... what) {
    if (!holds) throw ConfigError("routing plan: ", what...);
  };
  constexpr std::int64_t most = std::int64_t{1} << 31;
  require(plan.rollouts > 0 && plan.actors > 0, "it needs a rollout and an actor at least");
  require(plan.group_episodes > 0 && plan.group_episodes < most, "a group has 1 episode at least");
  Route last;
  std::vector<std::int64_t> columns(static_cast<std::size_t>(plan.actors), 0);
  for (Route& route : plan.routes) {
    require(route.rollout >= last.rollout && route.rollout < plan.rollouts && route.actor >= 0 &&
                route.actor < plan.actors && route.groups > 0 && route.groups < most,
            "route from rollout ", route.rollout, " to actor ", route.actor,
            " is out of range or out of order");
    std::int64_t& column = columns[static_cast<std::size_t>(route.actor)];
    route.first_group = route.rollout == last.rollout ? last.first_group + last.groups : 0;
    route.first_episode = column;
    column += route.groups * plan.group_episodes;
    require(route.first_group < most && column < most, "rollout ", route.rollout, " or actor ", route.actor,
            " has too many groups");
    last = route;
  }
  for (int actor = 0; actor < plan.actors; ++actor)
    require(columns[static_cast<std::size_t>(actor)] > 0, "actor ", actor, " gets no group");
  return plan;
}

/// `groups[r]`: how many rollout r has in a batch. Ranks that `topology` does not have are on machine 0. Throws
/// ConfigError for numbers that are none, and where there are fewer groups than actors.
inline RoutingPlan plan_routes(std::vector<std::int64_t> groups, std::int64_t group_episodes,
                               const Roles& roles, const Topology& topology = {}) {
  const auto require = [](bool holds, const auto&... what) {
    if (!holds) throw ConfigError("routing: ", what...);
  };
  const std::size_t R = groups.size(), A = roles.actors.size();
  require(A >= 1 && R >= 1 && group_episodes >= 1, R, " rollouts, ", A, " actors, groups of ", group_episodes,
          " episodes; 1 of each is needed at least");
  require(R == roles.rollouts.size(), "sizes are of ", R, " rollouts, the job has ", roles.rollouts.size());
  std::int64_t total = 0;
  for (const std::int64_t each : groups) {
    require(each >= 0 && each < std::int64_t{1} << 31, "a rollout has ", each,
            " groups a batch; it must be from 0 to 2^31 - 1");
    total += each;
  }
  require(total >= std::ssize(roles.actors), total, " groups a batch for ", A,
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
  const auto give = [&](std::size_t rollout, std::size_t actor) {
    const std::int64_t count = std::min(groups[rollout], room[actor]);
    if (count > 0) plan.routes.push_back({static_cast<int>(rollout), static_cast<int>(actor), count});
    groups[rollout] -= count;
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
  return placed(std::move(plan));
}

/// For the job's store, and for the ranks to compare.
inline std::string serialise(const RoutingPlan& plan) { return sealed_text(plan); }

/// The plan that `serialise` wrote. Throws FormatError for any other bytes, ConfigError for a plan that is
/// not whole; never anything else.
inline RoutingPlan parse_routes(std::string_view text) {
  return placed(parse_sealed<RoutingPlan>(text, "routing plan of the leader, whose program differs"));
}

/// Every rank calls it: the leader plans from its `groups`, everybody gets the same plan, through the job's
/// store under `name`. A rank that comes later (a restarted rollout) gets the plan that there is. Throws
/// DeadlineError, and what plan_routes throws.
inline RoutingPlan agree_on_routes(Cluster& cluster, const Roles& roles,
                                   const std::vector<std::int64_t>& groups, std::int64_t group_episodes,
                                   std::chrono::nanoseconds limit, const std::string& name = "routes") {
  const std::string key = name + "/plan", refused = "refused ";
  if (cluster.rank() == roles.leader() && !cluster.has(key)) {
    try {
      cluster.put(key, serialise(plan_routes(groups, group_episodes, roles, cluster.topology())));
    } catch (const ConfigError& error) {
      cluster.put(key, refused + error.what());  // so that nobody waits in vain
      throw;
    }
  }
  const std::string text = cluster.get(key, limit);
  if (text.starts_with(refused)) throw ConfigError(text.substr(refused.size()));
  return parse_routes(text);
}

}  // namespace dvla
