// Who rolls out and who trains, over many shapes of jobs.
#include <doctest/doctest.h>

#include <map>
#include <numeric>

#include "dvla/placement/concept.hpp"
#include "dvla/placement/descriptors.hpp"
#include "dvla/testing/placement.hpp"

using dvla::Adaptive;
using dvla::CoLocated;
using dvla::ConfigError;
using dvla::Hybrid;
using dvla::Roles;
using dvla::Separated;
using dvla::Topology;
using Ranks = std::vector<int>;

static_assert(dvla::PlacementPolicy<CoLocated> && dvla::PlacementMachinery<CoLocated, dvla::NoKnobs>);
static_assert(dvla::PlacementPolicy<Separated<>> &&
              dvla::PlacementMachinery<Separated<>, dvla::SeparatedKnobs>);
static_assert(dvla::PlacementMachinery<Separated<3, 1>, dvla::NoKnobs>);
static_assert(dvla::PlacementPolicy<Hybrid> && dvla::PlacementMachinery<Hybrid, dvla::HybridKnobs>);
static_assert(dvla::PlacementPolicy<Adaptive> && dvla::PlacementMachinery<Adaptive, dvla::AdaptiveKnobs>);

namespace {

Topology one_node(int world) { return {Ranks(static_cast<std::size_t>(world), 0)}; }

/// `counts[n]` ranks on machine n, one after the other.
Topology blocks(const Ranks& counts) {
  Topology topology{{}};
  for (std::size_t node = 0; node < counts.size(); ++node)
    topology.node.insert(topology.node.end(), static_cast<std::size_t>(counts[node]), static_cast<int>(node));
  return topology;
}
/// The same ranks dealt around the machines.
Topology around(int nodes, int each) {
  Topology topology{{}};
  for (int rank = 0; rank < nodes * each; ++rank) topology.node.push_back(rank % nodes);
  return topology;
}
/// How many of `ranks` each machine has.
std::map<int, int> per_node(const Ranks& ranks, const Topology& topology) {
  std::map<int, int> counts;
  for (const int node : topology.node) counts[node] += 0;
  for (const int rank : ranks) ++counts[topology.node[static_cast<std::size_t>(rank)]];
  return counts;
}

// Placements that each break one promise.
struct Broken {
  using slot = dvla::placement_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "Broken";
};
struct Idle : Broken {
  static Roles roles(const dvla::NoKnobs&, const Topology&) { return {{0}, {0}}; }
};
struct Descending : Broken {
  static Roles roles(const dvla::NoKnobs&, const Topology& topology) {
    return topology.world() == 2 ? Roles{{1, 0}, {0}} : Roles{};
  }
};
struct Beyond : Broken {
  static Roles roles(const dvla::NoKnobs&, const Topology& topology) { return {{0}, {topology.world()}}; }
};
struct Fickle : Broken {
  static Roles roles(const dvla::NoKnobs&, const Topology&) {
    static int calls = 0;
    return {{0}, {++calls % 2}};
  }
};
struct Secretly : Broken {
  static constexpr bool separates_roles = false;
  static Roles roles(const dvla::NoKnobs&, const Topology&) { return {{1}, {0}}; }
};
struct Rude : Broken {
  static Roles roles(const dvla::NoKnobs&, const Topology&) { throw std::runtime_error("no"); }
};

}  // namespace

TEST_CASE("co-located: every rank is both") {
  for (int world = 1; world <= 5; ++world) {
    const Roles roles = CoLocated::roles({}, one_node(world));
    CHECK(roles.rollouts.size() == static_cast<std::size_t>(world));
    CHECK(roles.actors == roles.rollouts);
    CHECK(roles.leader() == 0);
  }
}

TEST_CASE("separated on one machine") {
  CHECK(Separated<3, 1>::roles({}, one_node(4)) == Roles{{1, 2, 3}, {0}});
  CHECK(Separated<3, 1>::roles({}, one_node(8)) == Roles{{2, 3, 4, 5, 6, 7}, {0, 1}});
  CHECK(Separated<1, 1>::roles({}, one_node(2)) == Roles{{1}, {0}});
  CHECK(Separated<>::roles({.rollouts = 2, .actors = 2}, one_node(4)) == Roles{{2, 3}, {0, 1}});
  CHECK(Separated<>::roles({}, one_node(6)) == Roles{{3, 4, 5}, {0, 1, 2}});
  CHECK(Separated<1, 3>::roles({}, one_node(4)) == Roles{{3}, {0, 1, 2}});
}

TEST_CASE("separated over machines: each has its share of both where it can") {
  CHECK(Separated<3, 1>::roles({}, blocks({4, 4})) == Roles{{1, 2, 3, 5, 6, 7}, {0, 4}});
  CHECK(Separated<1, 1>::roles({}, around(2, 2)) == Roles{{2, 3}, {0, 1}});
  CHECK(Separated<1, 1>::roles({}, blocks({1, 1})) == Roles{{1}, {0}});
  CHECK(Separated<3, 1>::roles({}, blocks({2, 2})) == Roles{{1, 2, 3}, {0}});
  CHECK(Separated<3, 1>::roles({}, blocks({1, 3})) ==
        Roles{{1, 2, 3}, {0}});  // rank 0 before the larger machine
  CHECK(Separated<1, 1>::roles({}, blocks({1, 7})) == Roles{{4, 5, 6, 7}, {0, 1, 2, 3}});
  CHECK(Separated<1, 1>::roles({}, blocks({3, 3})) == Roles{{2, 4, 5}, {0, 1, 3}});
}

TEST_CASE("every shape: both roles, no rank twice or left out, shares in proportion, rank 0 leads") {
  for (const auto& ratio : {std::pair{3, 1}, {1, 1}, {1, 3}, {2, 3}, {7, 1}})
    for (const Ranks& counts : {Ranks{8},
                                {4, 4},
                                {2, 2, 2, 2},
                                {1, 7},
                                {7, 1},
                                {3, 5},
                                {8, 8, 8},
                                {1, 1, 6},
                                {5, 5},
                                {10, 20, 10},
                                {16, 16, 8}})
      for (const bool dealt_around : {false, true}) {
        Topology topology = blocks(counts);
        if (dealt_around) topology = around(static_cast<int>(counts.size()), counts.back());
        const int world = topology.world(), rollouts = ratio.first, actors = ratio.second;
        CAPTURE(rollouts);
        CAPTURE(actors);
        CAPTURE(world);
        if (world % (rollouts + actors) != 0) {
          CHECK_THROWS_AS(Separated<>::roles({rollouts, actors}, topology), ConfigError);
          continue;
        }
        const Roles roles = Separated<>::roles({rollouts, actors}, topology);
        CHECK(static_cast<int>(roles.actors.size()) == world / (rollouts + actors) * actors);
        CHECK(roles.leader() == 0);
        Ranks together = roles.rollouts;
        together.insert(together.end(), roles.actors.begin(), roles.actors.end());
        std::sort(together.begin(), together.end());
        Ranks all(static_cast<std::size_t>(world));
        std::iota(all.begin(), all.end(), 0);
        CHECK(together == all);
        CHECK(std::is_sorted(roles.rollouts.begin(), roles.rollouts.end()));
        CHECK(std::is_sorted(roles.actors.begin(), roles.actors.end()));
        for (const auto& [node, count] : per_node(roles.actors, topology)) {
          const int size = static_cast<int>(std::count(topology.node.begin(), topology.node.end(), node));
          const double quota = static_cast<double>(size * actors) / (rollouts + actors);
          CHECK(count > quota - 1.0001);
          CHECK(count < quota + 1.0001);
        }
      }
}

TEST_CASE("adaptive begins as separated; one process is both") {
  CHECK(Adaptive::roles({}, one_node(1)) == Roles{{0}, {0}});
  CHECK(Adaptive::roles({{.rollouts = 3, .actors = 1}}, blocks({4, 4})) ==
        Separated<3, 1>::roles({}, blocks({4, 4})));
  CHECK_THROWS_AS(Adaptive::roles({{.rollouts = 3, .actors = 1}}, one_node(6)), ConfigError);
}

TEST_CASE("the conformance suite: shipped placements keep the contract, and it finds who does not") {
  const auto none = [](const std::vector<std::string>& violations) {
    for (const std::string& each : violations) CHECK_MESSAGE(false, each);
  };
  none(dvla::testing::check_placement<CoLocated>());
  none(dvla::testing::check_placement<Separated<>>({.rollouts = 1, .actors = 1}));
  none(dvla::testing::check_placement<Separated<>>({.rollouts = 3, .actors = 2}));
  none(dvla::testing::check_placement<Separated<3, 1>>());
  none(dvla::testing::check_placement<Separated<1, 7>>());
  none(dvla::testing::check_placement<Hybrid>({.actors = 1}));
  none(dvla::testing::check_placement<Hybrid>({.actors = 5}));
  none(dvla::testing::check_placement<Adaptive>({{.rollouts = 3, .actors = 1}}));

  const auto says = [](const std::vector<std::string>& violations, const std::string& what) {
    for (const std::string& each : violations)
      if (each.find(what) != each.npos) return true;
    return false;
  };
  CHECK(says(dvla::testing::check_placement<Idle>(), "rank 1 must have a role"));
  CHECK(says(dvla::testing::check_placement<Descending>(), "rollouts must be ascending"));
  CHECK(says(dvla::testing::check_placement<Beyond>(), "actors must be ranks of the job"));
  CHECK(says(dvla::testing::check_placement<Fickle>(), "always have the same roles"));
  CHECK(says(dvla::testing::check_placement<Secretly>(), "says that it separates none"));
  CHECK(says(dvla::testing::check_placement<Rude>(), "must be refused by ConfigError, not by: no"));
  CHECK(says(dvla::testing::check_placement<Separated<>>({.rollouts = 20, .actors = 1}),
             "every job of 1 to 12 ranks is refused"));
}

TEST_CASE("hybrid: all roll out, some train too") {
  CHECK(Hybrid::roles({}, one_node(3)) == Roles{{0, 1, 2}, {0}});
  CHECK(Hybrid::roles({.actors = 2}, blocks({2, 2})) == Roles{{0, 1, 2, 3}, {0, 2}});
  CHECK(Hybrid::roles({.actors = 4}, one_node(4)) == Roles{{0, 1, 2, 3}, {0, 1, 2, 3}});
  CHECK(Hybrid::roles({.actors = 1}, one_node(1)) == Roles{{0}, {0}});
}

TEST_CASE("what cannot be is one sentence with field, value and range") {
  CHECK_THROWS_WITH_AS(
      (Separated<3, 1>::roles({}, one_node(6))),
      "Separated<3, 1> is 3:1 and the job has 6 ranks; both shares must be at least 1, and the "
      "ranks a multiple of their sum, 4",
      ConfigError);
  CHECK_THROWS_WITH_AS(
      Separated<>::roles({}, one_node(1)),
      "placement.rollouts:actors is 1:1 and the job has 1 rank; both shares must be at least 1, "
      "and the ranks a multiple of their sum, 2",
      ConfigError);
  CHECK_THROWS_AS(Separated<>::roles({.rollouts = 0, .actors = 2}, one_node(2)), ConfigError);
  CHECK_THROWS_WITH_AS(Hybrid::roles({.actors = 5}, one_node(4)),
                       "placement.actors is 5; it must be from 1 to the number of ranks, 4", ConfigError);
  CHECK_THROWS_AS(Hybrid::roles({.actors = 0}, one_node(4)), ConfigError);
}

TEST_CASE("ranks that joined roll out, whatever machine they are on") {
  Topology job = blocks({2, 3});
  job.joined = {2, 3, 4};
  CHECK(Separated<>::roles({.rollouts = 4, .actors = 1}, job) == Roles{{1, 2, 3, 4}, {0}});
  CHECK(Separated<>::roles({.rollouts = 3, .actors = 2}, job) == Roles{{2, 3, 4}, {0, 1}});
  CHECK(Hybrid::roles({.actors = 2}, job) == Roles{{0, 1, 2, 3, 4}, {0, 1}});
  CHECK_THROWS_WITH_AS(
      Separated<>::roles({.rollouts = 2, .actors = 3}, job),
      "3 of the job's 5 ranks are to train, but only 2 can: the others join as rollouts (DVLA_STORE)",
      ConfigError);
  CHECK_THROWS_WITH_AS(
      CoLocated::roles({}, job),
      "rank 2 joins the job (DVLA_STORE), so it can only roll out, but under CoLocated every "
      "rank may train; choose separated or hybrid",
      ConfigError);
  CHECK_THROWS_AS(Adaptive::roles({{.rollouts = 3, .actors = 2}}, job), ConfigError);
}
