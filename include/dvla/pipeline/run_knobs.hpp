// What a user tunes about a run as a whole: where it writes, how long it lasts, its warm start and its
// checkpoints. The tenth section of a configuration, beside the nine slots.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/knobs.hpp"
#include "dvla/environment/adapter_knobs.hpp"
#include "dvla/placement/collectives.hpp"

namespace dvla {

/// What a row of the environment that fails takes out of its batch: an algorithm with groups loses the group,
/// or completes it without the row.
enum class FailureCosts : std::uint8_t { group, row };
template <>
inline constexpr auto enum_names<FailureCosts> = std::to_array<std::string_view>({"group", "row"});

/// Which of a model's weights a checkpoint has: what trains, for the configuration makes the others again, or
/// all of them.
enum class CheckpointWeights : std::uint8_t { trainable, whole };
template <>
inline constexpr auto enum_names<CheckpointWeights> = std::to_array<std::string_view>({"trainable", "whole"});

struct RunKnobs : AdapterKnobs {
  std::string name = "run";  ///< the run writes into folder/name
  std::string folder = "runs";
  std::int64_t seed = 1;
  int iterations = 150;      ///< batches trained on
  int checkpoint_every = 0;  ///< iterations; 0 = at the end only
  int keep_checkpoints = 2;
  CheckpointWeights checkpoint_weights = CheckpointWeights::trainable;
  int evaluation_episodes = 256;  ///< before and after training, on fresh seeds; 0 = none
  /// Instead of fresh seeds the environment's cases, each once: "all", or numbers and ranges as "0-9, 20".
  std::string evaluation_cases;
  FailureCosts failure_costs = FailureCosts::group;  ///< what an environment's row that fails takes along
  double failed_share = 0.5;     ///< of a batch's rows; more, and more than one, end the run
  double step_deadline_s = 300;  ///< of a call to environment or acting model; one that hangs ends the run
  int inference_rows = 0;        ///< of one call of the model when sampling, at most; 0 = all of a stage
  double reward_scale = 1;
  bool auto_reset = false;           ///< rows begin another episode at the chunk boundary after an end
  int pass_steps = 0;                ///< control steps of a pass under auto_reset; 0 = the horizon
  int episodes_per_row = 4;          ///< most episodes of a row in a pass, under auto_reset
  int demonstrations = 32;           ///< scripted-expert episodes to clone; 0 = no warm start
  double demonstration_noise = 0.3;  ///< standard deviation added to the expert's actions
  double imitation_target = 0.3;     ///< cloning stops at this success rate
  int imitation_steps = 400;         ///< or after this many steps
  int imitation_check = 5;  ///< steps between two looks at it: each plays an episode of every environment
  std::string resume;       ///< checkpoint to continue from; empty = start anew
  bool trace = true;        ///< write trace.json
  bool record = false;      ///< write hand_overs.json, which the schedule Replay repeats
  bool animation = true;    ///< write before.gif and after.gif; needs EGL or OSMesa
  bool quiet = false;       ///< no progress bar
  double heartbeat_s = 5;   ///< between ranks of a job; one silent for two is lost
  /// By what a job's actors sum and gather.
  Collectives collectives = Collectives::gloo;
  bool overwrite = false;      ///< may replace folder/name, or drop what is later than `resume`
  bool allow_changes = false;  ///< `resume` may change what the checkpoint's data and weights mean

  /// As a run keeps them for later: without what acts once.
  RunKnobs kept() const {
    RunKnobs copy = *this;
    copy.resume.clear();
    copy.overwrite = false;
    copy.allow_changes = false;
    return copy;
  }
};

namespace detail {
inline constexpr auto run_docs = std::to_array<KnobDoc>({
    {"name", "name of the run; it writes into folder/name"},
    {"folder", "where runs are written"},
    {"seed", "everything random follows from it", 0, 9.2e18},
    {"iterations", "batches to train on", 0, 1e9},
    {"checkpoint_every", "iterations between checkpoints; 0 = at the end only", 0, 1e9},
    {"keep_checkpoints", "checkpoints to keep", 1, 1e6},
    {"checkpoint_weights", "weights in a checkpoint: those that train, or the whole model, frozen ones too"},
    {"evaluation_episodes", "episodes of an evaluation, on fresh seeds; 0 = none", 0, 1e6},
    {"evaluation_cases", "the environment's cases to evaluate instead, each once: all, or as 0-9,20"},
    {"failure_costs",
     "what a row of the environment that fails takes out of the batch: its group, or the row"},
    {"failed_share", "of a batch's rows; when more have failed, and more than one, the run ends", 0, 1},
    {"step_deadline_s",
     "of one call to the environment, or to the model that acts: one that does not come back ends the run",
     0.1, 86400, "seconds"},
    {"inference_rows", "most rows of one call of the model when sampling; 0 = all of a stage", 0, 1e6},
    {"reward_scale", "every reward is multiplied by it", 1e-9, 1e9},
    {"auto_reset", "rows begin another episode where one ends; for algorithms that take several a row"},
    {"pass_steps", "length of a pass under auto_reset; 0 = the horizon", 0, 1e6, "control steps"},
    {"episodes_per_row", "most episodes of a row in a pass under auto_reset", 1, 1e6},
    {"demonstrations", "scripted-expert episodes to clone first; 0 = no warm start", 0, 1e6},
    {"demonstration_noise", "standard deviation added to the expert's actions", 0, 10},
    {"imitation_target", "success rate at which cloning stops", 0, 1},
    {"imitation_steps", "most optimiser steps of cloning", 0, 1e9},
    {"imitation_check", "steps of cloning between two checks, an episode of every environment each", 1, 1e9},
    {"resume", "checkpoint to continue from; empty = start anew"},
    {"trace", "write trace.json"},
    {"record", "write hand_overs.json: which weights decided where, for the schedule Replay"},
    {"animation", "write before.gif and after.gif; needs EGL or OSMesa"},
    {"quiet", "print nothing but warnings and errors"},
    {"heartbeat_s", "between the ranks of a job; a rank that is silent for two is lost", 0.01, 3600,
     "seconds"},
    {"collectives", "by what a job's actors sum gradients and gather weights; nccl needs device cuda"},
    {"overwrite", "replace an existing run of this name; with resume, drop its later checkpoints"},
    {"allow_changes",
     "resume although knobs are not the checkpoint's that say what its data and weights mean: the "
     "environment's and the model's, reward_scale, action_* and state_statistics"},
});
}  // namespace detail
template <>
inline constexpr auto knob_docs<RunKnobs> = joined_docs(detail::run_docs, knob_docs<AdapterKnobs>);

}  // namespace dvla

template <std::same_as<dvla::RunKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members_before<
          dvla::AdapterKnobs, &K::name, &K::folder, &K::seed, &K::iterations, &K::checkpoint_every,
          &K::keep_checkpoints, &K::checkpoint_weights, &K::evaluation_episodes, &K::evaluation_cases,
          &K::failure_costs, &K::failed_share, &K::step_deadline_s, &K::inference_rows, &K::reward_scale,
          &K::auto_reset, &K::pass_steps, &K::episodes_per_row, &K::demonstrations, &K::demonstration_noise,
          &K::imitation_target, &K::imitation_steps, &K::imitation_check, &K::resume, &K::trace, &K::record,
          &K::animation, &K::quiet, &K::heartbeat_s, &K::collectives, &K::overwrite, &K::allow_changes> {};
