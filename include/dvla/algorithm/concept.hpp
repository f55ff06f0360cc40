// What a type needs to fill the algorithm slot, and what its machinery offers the training lane. The policy
// is checked when a pipeline is composed, the machinery when it is built (pipeline/buildable.hpp). No torch:
// an algorithm meets models through log-probabilities on spans (model/concept.hpp).
#pragma once

#include <concepts>
#include <cstdint>

#include "dvla/core/machinery.hpp"

namespace dvla {

struct BatchShape;   // core/observation.hpp
struct Transition;   // core/observation.hpp
struct UpdateStats;  // algorithm/update_stats.hpp
namespace trace {
struct Off;  // trace/off.hpp
}

/// `max_staleness`: the largest number of versions that the weights behind its data may be old. Optional:
/// `needs_values`: the model must have a value head; `takes_several_episodes`: rows may begin another episode
/// within a pass (EpisodeTable), else run.auto_reset is refused.
template <class Type>
concept AlgorithmPolicy = NamedPolicyFor<Type, algorithm_slot> && requires {
  { Type::max_staleness } -> std::convertible_to<int>;
};

template <class Type>
inline constexpr bool takes_several_episodes = false;
template <class Type>
requires requires { Type::takes_several_episodes; }
inline constexpr bool takes_several_episodes<Type> = Type::takes_several_episodes;

namespace detail {
/// Stands in for the before_step that a run passes.
struct any_before_step {
  void operator()() const {}
};

/// How a run makes the machinery.
template <class Type, class Knobs>
concept ConstructibleAlgorithm =
    std::constructible_from<Type, const Knobs&, BatchShape, std::int64_t, std::uint64_t>;

/// How a run calls it, whatever comes back.
template <class Type, class Model, class Weights, class Trace>
concept UpdatingAlgorithm = requires(Type& algorithm, Model& model, Weights& weights,
                                     const Transition& transition, const typename Model::Decision& decision,
                                     std::int64_t batch, any_before_step& before_step, Trace& trace) {
  algorithm.update(model, weights, transition, decision, batch, before_step, trace);
};
}  // namespace detail

/// - constructor `(knobs, shape, action dimensions, seed)`: `shape` is the extent of every batch to come.
/// Throws
///   ConfigError where knobs and shape do not fit.
/// - `update(model, weights, transition, decision, batch, before_step, trace)`: all that is to be learned
/// from one
///   batch: model.forward, d loss / d log-prob, model.backward, weights.step, as often as it likes. The
///   records are only read. `batch` counts from 0 and is the version of the weights that are trained;
///   afterwards they are version batch + 1, whether or not there was anything to learn.
/// - Rows whose group is -1 are absent (their rollout died, or their environment failed): nothing else of them
///   counts.
/// - `before_step()` is called exactly once, before the first change of the weights, and also by an update
/// that
///   changes nothing: until it returns, the last version may still be being read elsewhere. If it throws, the
///   update lets that through and has changed nothing.
/// - `Trace` has span(name, batch); the algorithm says with it what it spends time on.
/// - One thread at a time. The same inputs give the same bits.
/// testing/algorithm.hpp checks all of that.
template <class Type, class Knobs, class Model, class Weights, class Trace = trace::Off>
concept AlgorithmMachinery = detail::ConstructibleAlgorithm<Type, Knobs> &&
    detail::UpdatingAlgorithm<Type, Model, Weights, Trace> &&
    requires(Type& algorithm, Model& model, Weights& weights, const Transition& transition,
             const typename Model::Decision& decision, std::int64_t batch,
             detail::any_before_step& before_step, Trace& trace) {
  {
    algorithm.update(model, weights, transition, decision, batch, before_step, trace)
    } -> std::same_as<UpdateStats>;
};

}  // namespace dvla
