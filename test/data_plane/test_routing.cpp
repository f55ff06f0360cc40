// dvla-test: asan
#include <doctest/doctest.h>

#include <numeric>
#include <set>

#include "dvla/core/random.hpp"
#include "dvla/data_plane/routing.hpp"

using dvla::parse_routes;
using dvla::Route;
using dvla::RoutingPlan;
using Groups = std::vector<std::int64_t>;  // of each rollout

namespace {

/// The machine of each rollout and of each actor; empty: all are on one.
struct Nodes {
  std::vector<int> rollouts, actors;
};
/// `same_rank[r]`: the actor that is one rank with rollout r, or -1; empty means none.
RoutingPlan plan_routes(const Groups& groups, std::int64_t group_episodes, int actors,
                        const std::vector<int>& same_rank = {}, const Nodes& nodes = {}) {
  const auto rollouts = static_cast<int>(groups.size());
  const auto at = [](const std::vector<int>& list, int i, int otherwise) {
    return list.empty() ? otherwise : list.at(static_cast<std::size_t>(i));
  };
  dvla::Roles roles{{}, {}};
  dvla::Topology topology{{}};
  for (int rollout = 0; rollout < rollouts; ++rollout) {
    roles.rollouts.push_back(rollout);
    topology.node.push_back(at(nodes.rollouts, rollout, 0));
  }
  for (int actor = 0; actor < actors; ++actor) {
    int rank = rollouts + actor;
    for (int rollout = 0; rollout < rollouts; ++rollout)
      if (at(same_rank, rollout, -1) == actor) rank = rollout;
    roles.actors.push_back(rank);
    topology.node.push_back(at(nodes.actors, actor, 0));
  }
  return dvla::plan_routes(groups, group_episodes, roles, topology);
}

Groups equal(int rollouts, int groups) { return Groups(static_cast<std::size_t>(rollouts), groups); }

std::int64_t groups_to(const RoutingPlan& plan, int actor) {
  return plan.episodes_to(actor) / plan.group_episodes;
}

/// Every group exactly once, whole; every column exactly once; no actor more than one above another.
void check_plan(const RoutingPlan& plan, const Groups& sizes) {
  std::set<std::pair<int, std::int64_t>> groups, columns;
  for (const Route& route : plan.routes) {
    for (std::int64_t i = 0; i < route.groups; ++i) {
      REQUIRE(groups.emplace(route.rollout, route.first_group + i).second);
      REQUIRE(columns.emplace(route.actor, route.first_episode / plan.group_episodes + i).second);
      REQUIRE(route.first_group + i < sizes.at(static_cast<std::size_t>(route.rollout)));
    }
    REQUIRE(route.first_episode % plan.group_episodes == 0);
  }
  const auto count = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  REQUIRE(std::ssize(groups) == count);
  for (int actor = 0; actor < plan.actors; ++actor) {
    REQUIRE(groups_to(plan, actor) >= count / plan.actors);
    REQUIRE(groups_to(plan, actor) <= (count + plan.actors - 1) / plan.actors);
  }
}

}  // namespace

TEST_CASE("Rollouts = actors with equal sizes: point to point, i to i") {
  for (const int ranks : {1, 2, 3, 5}) {
    const RoutingPlan plan = plan_routes(equal(ranks, 4), 8, ranks);
    REQUIRE(plan.routes.size() == static_cast<std::size_t>(ranks));
    for (int i = 0; i < ranks; ++i) CHECK(plan.routes[static_cast<std::size_t>(i)] == Route{i, i, 4, 0, 0});
  }
}

TEST_CASE("Every rank is both: nothing crosses when sizes are balanced, and only the excess when not") {
  const RoutingPlan even = plan_routes(equal(4, 6), 2, 4, {0, 1, 2, 3});
  for (const Route& route : even.routes) CHECK(route.rollout == route.actor);
  const RoutingPlan uneven = plan_routes({6, 2}, 1, 2, {0, 1});
  CHECK(groups_to(uneven, 0) == 4);
  CHECK(groups_to(uneven, 1) == 4);
  CHECK(uneven.routes == std::vector<Route>{{0, 0, 4, 0, 0}, {0, 1, 2, 4, 0}, {1, 1, 2, 0, 2}});
}

TEST_CASE("Three rollouts to one actor, one to three, and a rank that is both among rollouts") {
  const RoutingPlan gather = plan_routes(equal(3, 2), 4, 1);
  CHECK(gather.routes == std::vector<Route>{{0, 0, 2, 0, 0}, {1, 0, 2, 0, 8}, {2, 0, 2, 0, 16}});
  const RoutingPlan scatter = plan_routes(equal(1, 6), 4, 3);
  CHECK(scatter.routes == std::vector<Route>{{0, 0, 2, 0, 0}, {0, 1, 2, 2, 0}, {0, 2, 2, 4, 0}});
  const RoutingPlan hybrid = plan_routes(equal(3, 2), 4, 1, {-1, 0, -1});
  CHECK(hybrid.routes == gather.routes);
}

TEST_CASE("Random plans: whole, repeatable, balanced within one group") {
  dvla::SplitMix64 random(7);
  auto below = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
  for (int round = 0; round < 3000; ++round) {
    const int rollouts = 1 + below(5), actors = 1 + below(4);
    Groups groups(static_cast<std::size_t>(rollouts));
    const std::uint64_t most = below(10) == 0 ? 1000 : 4;
    for (std::int64_t& each : groups) each = below(most);
    std::vector<int> same_rank;
    if (below(2) == 0) {
      same_rank.assign(static_cast<std::size_t>(rollouts), -1);
      for (int actor = 0, rollout = below(2); actor < actors && rollout < rollouts; actor += 1 + below(2))
        same_rank[static_cast<std::size_t>(rollout++)] = actor;
    }
    CAPTURE(round);
    Nodes nodes;
    if (below(2) == 0) {
      for (int rollout = 0; rollout < rollouts; ++rollout) nodes.rollouts.push_back(below(3));
      for (int actor = 0; actor < actors; ++actor) nodes.actors.push_back(below(3));
    }
    if (std::accumulate(groups.begin(), groups.end(), std::int64_t{0}) < actors) {
      CHECK_THROWS_AS(plan_routes(groups, 4, actors, same_rank, nodes), dvla::ConfigError);
      continue;
    }
    const RoutingPlan plan = plan_routes(groups, 4, actors, same_rank, nodes);
    check_plan(plan, groups);
    REQUIRE(plan == plan_routes(groups, 4, actors, same_rank, nodes));
    REQUIRE(parse_routes(serialise(plan)) == plan);
  }
}

TEST_CASE(
    "Nothing leaves a machine where each has groups in proportion to its actors, however ranks are dealt") {
  dvla::SplitMix64 random(5);
  auto below = [&](int n) { return static_cast<int>(random() % static_cast<std::uint64_t>(n)); };
  for (int round = 0; round < 2000; ++round) {
    struct Rank {
      int node, groups, actor;  // groups -1: no rollout; actor 1: one
    };
    std::vector<Rank> ranks;
    const int share = 1 + below(4), kind = below(3);  // separated, hybrid, every rank is both
    for (int node = 1 + below(3); node-- > 0;) {
      const int actors = 1 + below(3), rollouts = kind == 2 ? actors : 1 + below(4);
      const auto first = ranks.size();
      for (int i = 0; i < rollouts; ++i) ranks.push_back({node, 0, kind == 2 || (kind == 1 && i < actors)});
      for (int i = kind == 0 ? 0 : rollouts; i < actors; ++i) ranks.push_back({node, -1, 1});
      for (int left = share * actors; left-- > 0;)
        ++ranks[first + static_cast<std::size_t>(kind == 2 ? left % rollouts : below(rollouts))].groups;
    }
    for (std::size_t i = ranks.size(); i > 1; --i)
      std::swap(ranks[i - 1], ranks[static_cast<std::size_t>(below(static_cast<int>(i)))]);
    Groups groups;
    std::vector<int> same_rank;
    Nodes nodes;
    for (const Rank& rank : ranks) {
      const auto actor = static_cast<int>(nodes.actors.size());
      if (rank.actor == 1) nodes.actors.push_back(rank.node);
      if (rank.groups < 0) continue;
      groups.push_back(rank.groups);
      same_rank.push_back(rank.actor == 1 ? actor : -1);
      nodes.rollouts.push_back(rank.node);
    }
    CAPTURE(round);
    const auto actors = static_cast<int>(nodes.actors.size());
    const RoutingPlan plan = plan_routes(groups, 4, actors, same_rank, nodes);
    check_plan(plan, groups);
    for (int actor = 0; actor < actors; ++actor) REQUIRE(groups_to(plan, actor) == share);
    for (const Route& route : plan.routes) {
      REQUIRE(nodes.rollouts.at(static_cast<std::size_t>(route.rollout)) ==
              nodes.actors.at(static_cast<std::size_t>(route.actor)));
      if (kind == 2) REQUIRE(same_rank.at(static_cast<std::size_t>(route.rollout)) == route.actor);
    }
  }
}

TEST_CASE("Rollouts and actors in pairs: with a partner on the same machine") {
  const RoutingPlan plan = plan_routes(equal(4, 2), 8, 4, {}, {{1, 1, 0, 0}, {0, 0, 1, 1}});
  REQUIRE(plan.routes.size() == 4);
  for (const Route& route : plan.routes) CHECK((route.actor + 2) % 4 == route.rollout);
}

TEST_CASE("Sizes and shapes that cannot work are refused in one sentence") {
  CHECK_THROWS_AS(plan_routes({}, 4, 1), dvla::ConfigError);
  CHECK_THROWS_AS(plan_routes(equal(1, 1), 4, 0), dvla::ConfigError);
  CHECK_THROWS_AS(plan_routes(equal(1, 1), 0, 1), dvla::ConfigError);
  CHECK_THROWS_AS(plan_routes({0}, 4, 1), dvla::ConfigError);
  CHECK_THROWS_AS(plan_routes({-1, 2}, 4, 1), dvla::ConfigError);
  CHECK_THROWS_AS(plan_routes({std::int64_t{1} << 31}, 4, 1), dvla::ConfigError);
  CHECK_THROWS_WITH_AS(dvla::plan_routes(equal(2, 2), 4, dvla::Roles{{0}, {1}}),
                       "routing: sizes are of 2 rollouts, the job has 1", dvla::ConfigError);
  CHECK_THROWS_WITH_AS(plan_routes(equal(1, 2), 4, 3),
                       doctest::Contains("2 groups a batch for 3 actors; each needs one"), dvla::ConfigError);
}

TEST_CASE("A damaged plan is refused, whatever was done to it") {
  const RoutingPlan plan = plan_routes(equal(3, 4), 8, 2, {0, -1, 1});
  const std::string text = serialise(plan);
  CHECK(parse_routes(text) == plan);
  dvla::SplitMix64 random(3);
  for (int round = 0; round < 5000; ++round) {
    std::string other = text;
    switch (random() % 3) {
      case 0:
        other[random() % other.size()] = static_cast<char>(random());
        break;
      case 1:
        other.resize(random() % other.size());
        break;
      default:
        other.insert(random() % other.size(), 1, static_cast<char>('0' + random() % 10));
    }
    if (other != text) CHECK_THROWS_AS(parse_routes(other), dvla::Error);
  }
  auto forged = [&](auto change) {
    RoutingPlan bad = plan;
    change(bad);
    CHECK_THROWS_AS(parse_routes(serialise(bad)), dvla::ConfigError);
  };
  forged([](RoutingPlan& bad) {
    bad.routes.pop_back();
    bad.routes.pop_back();
  });
  forged([](RoutingPlan& bad) { bad.routes[1].actor = 5; });
  forged([](RoutingPlan& bad) { bad.routes[0].groups = std::int64_t{1} << 40; });
  forged([](RoutingPlan& bad) { bad.group_episodes = 0; });
  forged([](RoutingPlan& bad) { std::swap(bad.routes[0], bad.routes.back()); });
}

TEST_CASE("A job of one process agrees with itself, and on refusing what cannot be planned") {
  dvla::LoneCluster cluster;
  const RoutingPlan plan = dvla::agree_on_routes(cluster, {}, {3}, 4, std::chrono::seconds(1));
  CHECK(plan.routes == std::vector<Route>{{0, 0, 3, 0, 0}});
  CHECK_THROWS_AS(dvla::agree_on_routes(cluster, {}, {0}, 4, std::chrono::seconds(1), "other"),
                  dvla::ConfigError);
}
