// buildable<Pipeline>(): whether the machinery of every policy is included and keeps its contract. Asked
// before anything of a run is instantiated, so that what is missing is one error with one sentence. True,
// or that error and false.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory_resource>
#include <type_traits>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/record.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/pipeline/composition.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/sharding/concept.hpp"
#include "dvla/trace/recorder.hpp"

namespace dvla {

namespace detail {

/// Those of the policies whose machinery is not included.
template <class Pipeline, class... Policies>
auto left_out(list<Policies...>) -> decltype((
    list<>{} + ... +
    std::conditional_t<std::is_same_v<typename machinery<Policies, Pipeline>::type, no_machinery>,
                       list<Policies>, list<>>{}));
template <class Pipeline, class Policies>
using left_out_t = decltype(left_out<Pipeline>(Policies{}));

consteval bool none_left_out(list<>) { return true; }
/// The first policy's own sentence is the error.
template <class First, class... Rest>
consteval bool none_left_out(list<First, Rest...>) {
  struct sentence : First::template missing<false> {};
  return false;
}

// As those of composition.hpp. Where a concept stands in a static_assert, the compiler's own note below the
// sentence quotes the member that it asks for in vain.

template <class Pipeline>
consteval bool environment_is_sound() {
  using Environment = typename machinery<typename Pipeline::environment, Pipeline>::type;
  using Knobs = knobs_t<typename Pipeline::environment>;
  if constexpr (!none_left_out(left_out_t<Pipeline, list<typename Pipeline::environment>>{}))
    return false;
  else if constexpr (!EnvironmentMachinery<Environment>)
    static_assert(
        EnvironmentMachinery<Environment>,
        "dvla: the environment lacks a member, or has it with other types, that EnvironmentMachinery "
        "asks for (environment/concept.hpp); the note below names it");
  else if constexpr (!std::constructible_from<Environment, const Knobs&, std::pmr::memory_resource&>)
    static_assert(
        never<Environment, Knobs>,
        "dvla: a run makes this environment with (const Knobs&, std::pmr::memory_resource&), and it has "
        "no such constructor; add it (docs/slots/environment.md)");
  else
    return true;
  return false;
}

template <class Pipeline>
consteval bool model_is_sound() {
  using Model = typename machinery<typename Pipeline::model, Pipeline>::type;
  using Knobs = knobs_t<typename Pipeline::model>;
  if constexpr (!none_left_out(left_out_t<Pipeline, list<typename Pipeline::model>>{}))
    return false;
  else if constexpr (!requires { typename Model::Decision; })
    static_assert(never<Model>,
                  "dvla: the model has no `Decision`, the record from which a sample's log-probability is "
                  "computed again (model/concept.hpp)");
  else if constexpr (!Record<typename Model::Decision>)
    static_assert(
        never<Model>,
        "dvla: the model's Decision is not reflected; add BOOST_HANA_ADAPT_STRUCT(Decision, members...) "
        "after the struct (core/record.hpp)");
  else if constexpr (!requires(const Knobs& knobs) { std::int64_t{knobs.chunk}; })
    static_assert(
        never<Model, Knobs>,
        "dvla: a run reads the number of actions a decision from the model's knob `chunk`, and this "
        "model's knobs have none; add `int chunk = 1;` to them (docs/slots/model.md)");
  else if constexpr (!std::constructible_from<Model, const Knobs&, const ModelInputs&, std::uint64_t>)
    static_assert(
        never<Model, Knobs>,
        "dvla: a run makes this model with (const Knobs&, const dvla::ModelInputs&, std::uint64_t seed), "
        "and it has no such constructor; add it (docs/slots/model.md)");
  else if constexpr (!std::constructible_from<Model, const Model&, ShareFrozen>)
    static_assert(
        never<Model>,
        "dvla: a run copies this model to sample from, and it has no constructor (const Model& original, "
        "dvla::ShareFrozen); add it, or `using Base::Base;` where a base has it (model/concept.hpp)");
  else if constexpr (!ModelMachinery<Model>)
    static_assert(ModelMachinery<Model>,
                  "dvla: the model lacks a member, or has it with other types, that ModelMachinery asks for "
                  "(model/concept.hpp); the note below names it");
  else
    return true;
  return false;
}

template <class Pipeline, class Trace>
consteval bool training_is_sound() {
  using Knobs = knobs_t<typename Pipeline::algorithm>;
  using Model = machinery_t<typename Pipeline::model, Pipeline>;
  using Weights = machinery_t<typename Pipeline::sharding, Pipeline>;
  using Algorithm = machinery_t<typename Pipeline::algorithm, Pipeline>;
  if constexpr (!ShardingMachinery<Weights, Model>)
    static_assert(
        ShardingMachinery<Weights, Model>,
        "dvla: the sharding lacks a member, or has it with other types, that ShardingMachinery asks "
        "for (sharding/concept.hpp); the note below names it");
  else if constexpr (!ConstructibleAlgorithm<Algorithm, Knobs>)
    static_assert(
        never<Algorithm, Knobs>,
        "dvla: a run makes this algorithm with (knobs, dvla::BatchShape, std::int64_t action dimensions, "
        "std::uint64_t seed), and it has no such constructor; add it (algorithm/concept.hpp)");
  else if constexpr (!UpdatingAlgorithm<Algorithm, Model, Weights, Trace>)
    static_assert(
        never<Algorithm>,
        "dvla: this algorithm has no update(model, weights, transition, decision, batch, before_step, "
        "trace) that a run can call; add it, with the types that algorithm/concept.hpp gives them");
  else if constexpr (!AlgorithmMachinery<Algorithm, Knobs, Model, Weights, Trace>)
    static_assert(never<Algorithm>,
                  "dvla: this algorithm's update returns something else than dvla::UpdateStats; return the "
                  "figures of the update (algorithm/update_stats.hpp)");
  else
    return true;
  return false;
}

/// Stands in for the stages that a run gives its schedule.
struct any_stages {
  void sample(Token&) {}
  void train(Token&) {}
  void distribute(Token&) {}
  void receive(Token&) {}
};

template <class Pipeline, class Trace>
consteval bool schedule_is_sound() {
  using Schedule = machinery_t<typename Pipeline::schedule, Pipeline>;
  using Knobs = knobs_t<typename Pipeline::schedule>;
  if constexpr (!ScheduleMachinery<Schedule, any_stages, Trace>)
    static_assert(never<Schedule>,
                  "dvla: this schedule has no static dvla::run_result run(stages, const dvla::run_options&, "
                  "recorder) that a run can call; add it (schedule/concept.hpp)");
  else if constexpr (!ScheduleKnobs<Knobs>)
    static_assert(never<Schedule, Knobs>,
                  "dvla: a run reads sampling_threads, training_threads, sampling_stages and deadline_s of a "
                  "schedule, and this one's knobs lack one of them; add it (schedule/concept.hpp)");
  else
    return true;
  return false;
}

}  // namespace detail

/// `Trace` is the recorder that the run will have. What a user writes is asked first, before the machinery of
/// others is made of it. A composition that is wrong has said so itself.
template <class Pipeline, class Trace = trace::Recorder>
consteval bool buildable() {
  if constexpr (!Pipeline::is_sound)
    return false;
  else if constexpr (!detail::environment_is_sound<Pipeline>())
    return false;
  else if constexpr (!detail::model_is_sound<Pipeline>())
    return false;
  else if constexpr (!detail::none_left_out(detail::left_out_t<Pipeline, typename Pipeline::policies>{}))
    return false;
  else if constexpr (!detail::training_is_sound<Pipeline, Trace>())
    return false;
  else
    return detail::schedule_is_sound<Pipeline, Trace>();
}

}  // namespace dvla
