// What an environment's machinery offers the sampling lane: a batch of N environments that are reset from
// seeds and stepped a chunk at a time. Paper: rollout GPUs hold the parallel environments; RLinf: groups
// share a reset state, the first episode counts. The environment writes straight into the rows it is given
// (pool memory), so observations are born where the model reads them.
//
// Legend: n rows of this call, C control steps a chunk, A action dimensions.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "dvla/core/arena.hpp"
#include "dvla/core/observation.hpp"

namespace dvla {

/// Rows [first, first + n) of the batch are addressed by `first` and the leading extent n of the fields.
///
/// - `size()` is N. `horizon()` is the largest number of control steps in an episode.
/// - `reset(first, seeds[n], next[n])` begins new episodes. The same seed gives the same initial state, goal
///   and instruction, bit for bit, whatever happened before and whichever row it is.
/// - `step(first, action[n,C,A], reward[n,C], terminated[n,C], truncated[n,C], next[n], arena)` executes C
///   control steps in each row and writes the observation after the last one. From the step on that ends an
///   episode one flag is 1 and the other 0: terminated where the task ended it (solved, failed), truncated
///   where the horizon cut it off; a task solved in the last step is terminated. A row whose episode has
///   ended is not stepped: reward 0, flags and observation stay. Returns the number of transitions really
///   made.
/// - `succeeded(row)`: the row's current episode has been solved.
/// - Different row ranges may be in `reset`/`step` at the same time from different threads.
/// - Errors are dvla::Error and name the row and the step.
template <class Type>
concept EnvironmentMachinery = requires(Type& environment, const Type& view, std::int64_t first,
                                        std::span<const std::uint64_t> seeds, Field<float> reals,
                                        Field<std::uint8_t> flags, const Observation& next, Arena& arena) {
  { view.size() } -> std::convertible_to<std::int64_t>;
  { view.horizon() } -> std::convertible_to<std::int64_t>;
  { view.observation_spec() } -> std::convertible_to<const ObservationSpec&>;
  { view.action_spec() } -> std::convertible_to<ActionSpec>;
  environment.reset(first, seeds, next, arena);
  { environment.step(first, reals, reals, flags, flags, next, arena) } -> std::convertible_to<std::int64_t>;
  { view.succeeded(first) } -> std::convertible_to<bool>;
};

/// An environment that can show a scripted expert's action for a row's current state: used for warm starts.
/// `expert(row, action[A])` writes one control step's action in [-1, 1].
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
