// What a type needs to fill the schedule slot, and what its machinery offers: a loop that takes batches
// through the four stages. The policy is checked when a pipeline is composed, the machinery when it is built
// (pipeline/buildable.hpp). No torch, no threads.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"

namespace dvla {

struct run_options;  // schedule/runner.hpp
struct run_result;   // schedule/runner.hpp

/// `max_staleness`: the largest number of versions that it lets weights be old. Optional: `default_knobs()`.
template <class Type>
concept SchedulePolicy = NamedPolicyFor<Type, schedule_slot> && requires {
  { Type::max_staleness } -> std::convertible_to<int>;
};

/// A static `run(stages, options, recorder)`:
/// - takes every batch through stages.sample, train, distribute and receive (handoff/stages.hpp), each in
///   batch order, exactly once, then through observe where the stages have it; blocks until all are through.
/// - A batch is trained at most options.staleness versions after the weights it was sampled with.
/// - What a stage throws ends the run as a LaneError that names lane and batch, with the original nested. A
///   wait between lanes that outlasts options.deadline ends it as a DeadlineError. Options out of range are a
///   ConfigError before anything is called.
/// - Once options.stop asks, no further batch starts and all that have started are finished.
/// testing/schedule.hpp checks all of that.
template <class Type, class Stages, class Recorder>
concept ScheduleMachinery = requires(Stages& stages, const run_options& options, Recorder& recorder) {
  { Type::run(stages, options, recorder) } -> std::same_as<run_result>;
};

/// What a run reads of a schedule's knobs. Optional: `staleness`, K at run time; 0 without it.
template <class Knobs>
concept ScheduleKnobs = requires(const Knobs& knobs) {
  { knobs.sampling_threads } -> std::convertible_to<int>;
  { knobs.training_threads } -> std::convertible_to<int>;
  { knobs.sampling_stages } -> std::convertible_to<int>;
  { knobs.deadline_s } -> std::convertible_to<double>;
};

}  // namespace dvla
