// One observation type for all environments and models: named cameras, proprioception, instruction.
// An environment says what it gives, a model what it needs; names and extents are matched once at the start.
// Also the records that cross the data plane: Transition here, Decision in each model. Design: "Data".
//
// Shapes: T decisions, B rows, S episodes that a row may have in a pass, C control steps a chunk, A action
// dimensions, P proprioception, H x W pixels.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "dvla/core/record.hpp"

namespace dvla {

inline constexpr int max_cameras = 4;

struct CameraSpec {
  std::string name;             ///< for example "top", "wrist"
  int height = 0;               ///< pixels
  int width = 0;                ///< pixels; three channels, RGB, uint8, row 0 on top
  Device device = Device::cpu;  ///< where its frames are born
};

/// What an environment gives. `instructions` is the table that Observation::instruction indexes.
struct ObservationSpec {
  std::vector<CameraSpec> cameras;        ///< at most max_cameras
  int proprioception = 0;                 ///< P: number of floats
  std::vector<std::string> instructions;  ///< at least one; plain language
  Device proprioception_device = Device::cpu;
};

/// Of a continuous dimension, in the environment's units.
struct ActionBounds {
  float low = -1, high = 1;
};

/// What an environment takes. A dimension is continuous, within its bounds, or one of n categories, an action's
/// value then being 0, 1, .. n - 1. A model's are in [-1, 1]: the adapter (environment/adapter.hpp) stands
/// between the two.
struct ActionSpec {
  int dimensions = 0;                  ///< A
  std::vector<int> categories{};       ///< [A] n, or 0 for a continuous dimension; empty: all are continuous
  std::vector<ActionBounds> bounds{};  ///< [A] of the continuous ones; empty: all are [-1, 1]
  /// n of that dimension, 0 for a continuous one.
  int categories_of(std::int64_t dimension) const {
    return categories.empty() ? 0 : categories[static_cast<std::size_t>(dimension)];
  }
  ActionBounds bounds_of(std::int64_t dimension) const {
    return bounds.empty() ? ActionBounds{} : bounds[static_cast<std::size_t>(dimension)];
  }
  bool continuous() const {
    return std::all_of(categories.begin(), categories.end(), [](int n) { return n == 0; });
  }
};

/// Views of observations, leading dimensions [T+1, B] in a trajectory, [B] for one decision.
struct Observation {
  std::array<Field<std::uint8_t>, max_cameras> frames;  ///< [.., H, W, 3] per camera; absent if not given
  Field<float> proprioception;                          ///< [.., P]
  Field<std::int32_t> instruction;                      ///< [..] index into ObservationSpec::instructions
};

/// How an episode ended, in EpisodeTable::end.
enum class EpisodeEnd : std::uint8_t { none, terminated, truncated };

/// The facts of the episodes of a pass: entry [s, b] is the s-th that row b began. Entries that were not used
/// are 0, `end` included.
struct EpisodeTable {
  Field<std::uint64_t> seed;      ///< [S, B] of the reset state; equal within a group
  Field<std::int32_t> decision;   ///< [S, B] the decision t in which it ended,
  Field<std::int32_t> step;       ///< [S, B] and the control step c of its chunk
  Field<std::uint8_t> end;        ///< [S, B] EpisodeEnd
  Field<std::uint8_t> success;    ///< [S, B] 1 if the task was solved
  Observation final_observation;  ///< [S, B, ...] what it ended with. Absent where rows are not reset within
                                  ///< a pass: then it is Transition::observation at decision + 1
  /// [S, B] what the weights that sampled think that worth, of truncated episodes; else 0. Absent where the model has
  /// no values.
  Field<float> final_value;

  std::int64_t size() const { return seed.extents()[0]; }  ///< S
};

/// What the environment side records. The model's own Decision stands beside it. Of decisions that a row did not
/// make, because its episodes were over, the flags go on and `version` is filled in; all else is 0.
struct Transition {
  Observation observation;  ///< [T+1, B, ...]; what decision t saw; the last is what the final action led to
  Field<float> action;      ///< [T, B, C, A] as executed, in the model's units: [-1, 1], or a category
  Field<float> reward;      ///< [T, B, C]; 0 after the episode's end
  /// [T, B, C]; 1 from the step on in which the task ended: solved or failed, nothing follows.
  Field<std::uint8_t> terminated;
  /// [T, B, C]; 1 from the step on in which the episode was cut off, by the horizon or because the pass ended:
  /// the value of what is then seen would follow. Never both.
  Field<std::uint8_t> truncated;
  EpisodeTable episode;         ///< [S, B, ...]
  Field<std::int32_t> group;    ///< [B] GRPO group within the batch; -1: absent, nothing else of it counts
  Field<std::int64_t> version;  ///< [T, B] weight version that made the decision

  /// An episode of row b ended, either way, in decision t or (where the row was not reset) before it.
  bool ended(std::int64_t t, std::int64_t b) const {
    const std::int64_t last = terminated.extents()[2] - 1;
    return (terminated.at(t).at(b)[last] | truncated.at(t).at(b)[last]) != 0;
  }
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::Observation, frames, proprioception, instruction);
BOOST_HANA_ADAPT_STRUCT(dvla::EpisodeTable, seed, decision, step, end, success, final_observation,
                        final_value);
BOOST_HANA_ADAPT_STRUCT(dvla::Transition, observation, action, reward, terminated, truncated, episode, group,
                        version);

namespace dvla {

struct BatchShape {
  std::int64_t decisions = 0;  ///< T
  std::int64_t episodes = 0;   ///< B: rows; each is one episode where rows are not reset within a pass
  std::int64_t chunk = 0;      ///< C
  std::int64_t table = 1;      ///< S; above 1 rows are reset within a pass
  bool values = false;         ///< the model has values
};

/// Extents and devices (no storage) of an observation record with leading dimensions `leading` ([T+1, B] or [B]).
inline Observation observation_layout(const ObservationSpec& spec, Extents leading) {
  auto with = [&](std::initializer_list<std::int64_t> rest) {
    Extents all = Extents(rest);
    for (int i = leading.rank() - 1; i >= 0; --i) all = all.prepend(leading[i]);
    return all;
  };
  Observation observation;
  for (std::size_t i = 0; i < spec.cameras.size(); ++i) {
    const CameraSpec& camera = spec.cameras[i];
    observation.frames.at(i) =
        Field<std::uint8_t>(with({camera.height, camera.width, 3}), nullptr, camera.device);
  }
  if (spec.proprioception > 0)
    observation.proprioception =
        Field<float>(with({spec.proprioception}), nullptr, spec.proprioception_device);
  observation.instruction = Field<std::int32_t>(with({}));
  return observation;
}

/// What the episodes of a batch ended with, flat, and in which row of it entry i of [S, B] has its own.
inline Observation final_observations(const Transition& transition) {
  const EpisodeTable& table = transition.episode;
  return cut_record(table.size() > 1 ? table.final_observation : transition.observation,
                    [](auto field) { return field.flat(); });
}
inline std::int64_t final_row(const EpisodeTable& table, std::int64_t i) {
  const std::int64_t B = table.seed.extents()[1];
  return table.size() > 1 ? i : (table.decision[i] + 1) * B + i % B;
}

/// Extents (no storage) of a batch's Transition.
inline Transition transition_layout(const ObservationSpec& observation, const ActionSpec& action,
                                    BatchShape shape) {
  const auto [T, B, C, S, values] = shape;
  Transition transition;
  transition.observation = observation_layout(observation, {T + 1, B});
  transition.action = Field<float>({T, B, C, action.dimensions});
  transition.reward = Field<float>({T, B, C});
  transition.terminated = Field<std::uint8_t>({T, B, C});
  transition.truncated = Field<std::uint8_t>({T, B, C});
  EpisodeTable& episode = transition.episode;
  episode.seed = Field<std::uint64_t>({S, B});
  episode.decision = episode.step = Field<std::int32_t>({S, B});
  episode.end = episode.success = Field<std::uint8_t>({S, B});
  if (S > 1) episode.final_observation = observation_layout(observation, {S, B});
  if (values) episode.final_value = Field<float>({S, B});
  transition.group = Field<std::int32_t>({B});
  transition.version = Field<std::int64_t>({T, B});
  return transition;
}

}  // namespace dvla
