// Conformance of a placement: what placement/concept.hpp promises and a compiler can't check, for shipped and
// users' own ones, over many shapes of jobs. Returns one sentence per violation, none if it conforms; no test
// framework. Looks at the roles alone: what a run makes of them is pipeline/run.hpp's.
#pragma once

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/placement/concept.hpp"
#include "dvla/placement/topology.hpp"
#include "dvla/testing/findings.hpp"

namespace dvla::testing {

/// `Policy` with `knobs`, for jobs of 1 to `most` ranks on one machine, some of them joined, on several of
/// equal and of unequal size, and dealt around them. A job may be refused with ConfigError; one shape at
/// least must not be.
template <class Policy>
requires PlacementMachinery<Policy, typename Policy::knobs> std::vector<std::string> check_placement(
    const typename Policy::knobs& knobs = {}, int most = 12) {
  detail::Findings findings;
  int accepted = 0;
  const auto look_at = [&](const Topology& topology, const std::string& shape) {
    const auto expect = [&](bool holds, const std::string& what) {
      findings(holds, std::to_string(topology.world()) + " ranks " + shape + ": " + what);
    };
    std::optional<Roles> found;
    try {
      found = Policy::roles(knobs, topology);
    } catch (const ConfigError& refusal) {
      expect(!std::string(refusal.what()).empty(), "a refusal must say why");
      return;
    } catch (const std::exception& error) {
      expect(false, std::string("what cannot be must be refused by ConfigError, not by: ") + error.what());
      return;
    }
    ++accepted;
    const Roles& roles = *found;
    expect(roles == Policy::roles(knobs, topology), "the same job must always have the same roles");
    for (const auto& [list, name] : {std::pair{&roles.rollouts, "rollouts"}, {&roles.actors, "actors"}}) {
      expect(!list->empty(), std::string("there must be ") + name);
      expect(std::adjacent_find(list->begin(), list->end(), std::greater_equal()) == list->end(),
             std::string(name) + " must be ascending and without repeats");
      expect(list->empty() || (list->front() >= 0 && list->back() < topology.world()),
             std::string(name) + " must be ranks of the job");
    }
    for (int rank = 0; rank < topology.world(); ++rank) {
      const bool rolls_out = roles.rollout(rank) >= 0, trains = roles.actor(rank) >= 0;
      expect(rolls_out || trains, "rank " + std::to_string(rank) + " must have a role");
      expect(!trains || !topology.has_joined(rank),
             "rank " + std::to_string(rank) + " has joined the job, so it may only roll out");
      if constexpr (requires { Policy::separates_roles; })
        expect(Policy::separates_roles || (rolls_out && trains),
               "rank " + std::to_string(rank) + " has one role, but the policy says that it separates none");
    }
  };
  for (int world = 1; world <= most; ++world) {
    Topology together{std::vector<int>(static_cast<std::size_t>(world), 0)};
    look_at(together, "on one machine");
    for (int joined = world - 1; joined > 0; --joined) {
      together.joined.insert(together.joined.begin(), joined);
      look_at(together, "on one machine, those from " + std::to_string(joined) + " on joined");
    }
    for (int machines = 2; machines <= world; ++machines) {
      Topology blocks{{}}, around{{}}, lopsided{{}};
      for (int rank = 0; rank < world; ++rank) {
        blocks.node.push_back(rank * machines / world);
        around.node.push_back(rank % machines);
        lopsided.node.push_back(std::min(rank, machines - 1));
      }
      const std::string text = "on " + std::to_string(machines) + " machines";
      look_at(blocks, text);
      look_at(around, text + ", dealt around");
      look_at(lopsided, text + ", all but one of one rank");
    }
  }
  findings(accepted > 0,
           "every job of 1 to " + std::to_string(most) + " ranks is refused; choose knobs that suit one");
  return findings.sentences;
}

}  // namespace dvla::testing
