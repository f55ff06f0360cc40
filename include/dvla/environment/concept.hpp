// What an environment's machinery offers the sampling lane: a batch of N environments that are reset from
// seeds or cases and stepped a chunk at a time. Paper: rollout GPUs hold the parallel environments; RLinf:
// groups share a reset state. The environment writes straight into the rows it is given (pool memory), so
// observations are born where the model reads them.
//
// Legend: N rows of the batch, C control steps a chunk, A action dimensions.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/arena.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/environment/rows.hpp"

namespace dvla {

/// What an episode begins from; its initial state, goal and instruction are a function of this alone.
struct Start {
  std::uint64_t seed = 0;
  std::int64_t case_index = -1;  ///< of those that the environment enumerates (HasCases); -1: from the seed
  /// An episode to learn from. Where a reset that depends on the start alone is dear, an environment may have a
  /// knob by which such episodes begin faster, from a state that also depends on what its row did before.
  bool training = false;
};

/// What an environment says of itself that does not depend on how many rows it has.
struct EnvironmentSpec {
  ObservationSpec observation;
  ActionSpec action;
  std::int64_t horizon = 0;
  std::int64_t cases = 0;  ///< 0: it enumerates none
};

/// What a step writes, of the rows that it was asked for and of no others.
struct Outcome {
  Field<float> reward;             ///< [N, C]
  Field<std::uint8_t> terminated;  ///< [N, C]
  Field<std::uint8_t> truncated;   ///< [N, C]
  Observation next;                ///< [N, ...] after the last control step
};

/// - `size()` is N. `horizon()` is the largest number of control steps in an episode.
/// - `reset(rows, starts[rows.count()], next[N])` begins new episodes in these rows. The same start gives the
///   same episode, bit for bit, whatever happened before and whichever row it is.
/// - `step(rows, action[N,C,A], outcome)` executes C control steps in each of these rows. From the step on that
///   ends an episode one flag is 1 and the other 0: terminated where the task ended it (solved, failed),
///   truncated where the horizon cut it off; a task solved in the last step is terminated. What follows is not
///   executed: reward 0, flags and observation stay, and so in any later call until the row is reset. Returns
///   the number of transitions really made.
/// - `succeeded(row)`: the row's current episode has been solved; after a reset that began so, too.
/// - A row that fails (an exception in Rows::for_each's body, or Rows::failures().add) costs its own episode
///   only: what the call writes of it does not count, and a reset makes it anew. NaN in its reward or
///   proprioception is found by the caller. An exception that leaves `reset` or `step` has failed all rows of
///   the call.
/// - Different rows may be in `reset`/`step` at the same time from different threads.
template <class Type>
concept EnvironmentMachinery = requires(Type& environment, const Type& view, Rows& rows,
                                        std::span<const Start> starts, const Observation& next,
                                        Field<float> action, const Outcome& outcome, std::int64_t row) {
  { view.size() } -> std::convertible_to<std::int64_t>;
  { view.horizon() } -> std::convertible_to<std::int64_t>;
  { view.observation_spec() } -> std::convertible_to<const ObservationSpec&>;
  { view.action_spec() } -> std::convertible_to<ActionSpec>;
  environment.reset(rows, starts, next);
  { environment.step(rows, action, outcome) } -> std::convertible_to<std::int64_t>;
  { view.succeeded(row) } -> std::convertible_to<bool>;
};

/// Throws ConfigError where what an environment says of itself cannot be: records are laid out and models made by it.
inline void check_spec(const EnvironmentSpec& spec, std::string_view name) {
  const ObservationSpec& shows = spec.observation;
  const ActionSpec& takes = spec.action;
  const auto refuse = [&](bool wrong, const std::string& why) {
    if (wrong) throw ConfigError("the environment " + std::string(name) + " says of itself that " + why);
  };
  refuse(spec.horizon < 1, "its horizon is no control step");
  refuse(shows.cameras.size() > max_cameras, "it has " + std::to_string(shows.cameras.size()) +
                                                 " cameras; there may be " + std::to_string(max_cameras));
  for (const CameraSpec& camera : shows.cameras)
    refuse(camera.height < 1 || camera.width < 1, "its camera '" + camera.name + "' has no pixels");
  refuse(shows.proprioception < 0, "its proprioception has fewer than 0 numbers");
  refuse(shows.instructions.empty(), "it has no instruction; one sentence is the least");
  refuse(takes.dimensions < 1, "an action has no dimension");
  refuse(!takes.categories.empty() && std::ssize(takes.categories) != takes.dimensions,
         "an action has " + std::to_string(takes.dimensions) + " dimensions, and categories for " +
             std::to_string(takes.categories.size()));
  refuse(std::ranges::any_of(takes.categories, [](int n) { return n < 0 || n == 1; }),
         "a dimension of its actions has 1 category or fewer; 0 is for a continuous one");
  refuse(!takes.bounds.empty() && std::ssize(takes.bounds) != takes.dimensions,
         "an action has " + std::to_string(takes.dimensions) + " dimensions, and bounds for " +
             std::to_string(takes.bounds.size()));
  for (std::int64_t a = 0; a < takes.dimensions; ++a) {
    const auto [low, high] = takes.bounds_of(a);
    refuse(takes.categories_of(a) == 0 && !(std::isfinite(low) && std::isfinite(high) && low < high),
           "dimension " + std::to_string(a) + " of its actions lies in [" + std::to_string(low) + ", " +
               std::to_string(high) + "]; bounds are finite, the lower one first");
  }
}

/// An environment that enumerates what it is evaluated on: `cases()` initial states, [0, cases()), each a
/// task with a state of its own. Which task it is, its instruction says.
template <class Type>
concept HasCases = requires(const Type& view) {
  { view.cases() } -> std::convertible_to<std::int64_t>;
};

template <EnvironmentMachinery Type>
EnvironmentSpec spec_of(const Type& environment) {
  EnvironmentSpec spec{environment.observation_spec(), environment.action_spec(), environment.horizon()};
  if constexpr (HasCases<Type>) spec.cases = environment.cases();
  return spec;
}

/// check_spec of one that is there, which must have rows.
template <EnvironmentMachinery Type>
void check_specs(const Type& environment, std::string_view name) {
  if (environment.size() < 1)
    throw ConfigError("the environment ", name, " says of itself that it has no rows");
  check_spec(spec_of(environment), name);
}

/// An environment whose `Type::spec(knobs)` says what spec_of says of one that is built with these knobs. In a
/// job of processes a rank that only trains builds none, and needs not wait for a rollout to say it then.
template <class Type, class Knobs>
concept HasStaticSpec = requires(const Knobs& knobs) {
  { Type::spec(knobs) } -> std::convertible_to<EnvironmentSpec>;
};

/// What success depends on beside the policy, each with a name and in words.
using Conventions = std::vector<std::pair<std::string, std::string>>;

/// An environment whose `Type::conventions(knobs)` says how it plays, for report.json, the page and the plan. A rank that only trains
/// asks too.
template <class Type, class Knobs>
concept HasConventions = requires(const Knobs& knobs) {
  { Type::conventions(knobs) } -> std::convertible_to<Conventions>;
};

/// An environment that takes memory outside of the pools, about so many bytes: the plan has them.
template <class Type>
concept HasOutsideBytes = requires(const Type& view) {
  { view.outside_bytes() } -> std::convertible_to<std::size_t>;
};

/// An environment that can show a scripted expert's action for a row's current state: used for warm starts.
/// `expert(row, action[A])` writes one control step's action, within ActionSpec's bounds.
template <class Type>
concept HasExpert = requires(Type& environment, std::int64_t row, std::span<float> action) {
  environment.expert(row, action);
};

/// An environment that can draw a row for people: `render(row, width, height, rgb[H,W,3])`.
template <class Type>
concept HasRender = requires(Type& environment, std::int64_t row, std::span<std::uint8_t> rgb) {
  environment.render(row, 1, 1, rgb);
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::Start, seed, case_index, training);
BOOST_HANA_ADAPT_STRUCT(dvla::CameraSpec, name, height, width, device);
BOOST_HANA_ADAPT_STRUCT(dvla::ObservationSpec, cameras, proprioception, instructions, proprioception_device);
BOOST_HANA_ADAPT_STRUCT(dvla::ActionBounds, low, high);
BOOST_HANA_ADAPT_STRUCT(dvla::ActionSpec, dimensions, categories, bounds);
BOOST_HANA_ADAPT_STRUCT(dvla::EnvironmentSpec, observation, action, horizon, cases);
BOOST_HANA_ADAPT_STRUCT(dvla::Outcome, reward, terminated, truncated, next);
