// buildable<Pipeline>(): whether the machinery of every policy is included and keeps its contract. Asked
// before anything of a run is instantiated, so that what is missing is one error with one sentence. True, or
// that error and false.
#pragma once

#include <type_traits>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/mistake.hpp"
#include "dvla/pipeline/table.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/sharding/concept.hpp"
#include "dvla/trace/recorder.hpp"

namespace dvla {

namespace detail {

/// The first policy whose machinery is missing, or void.
template <class Pipeline, class... Policies>
struct first_missing {
  using type = void;
};
template <class Pipeline, class First, class... Rest>
struct first_missing<Pipeline, First, Rest...>
    : std::conditional_t<std::is_same_v<typename machinery<First, Pipeline>::type, no_machinery>,
                         std::type_identity<First>, first_missing<Pipeline, Rest...>> {};

template <class Pipeline, class... Policies>
consteval auto first_missing_of(list<Policies...>) {
  return std::type_identity<typename first_missing<Pipeline, Policies...>::type>{};
}

/// Instantiating this is the mistake's one error.
template <class Mistake>
struct says : Mistake {
  using said = void;
};

/// Stands in for the stages that a run gives its schedule.
struct any_stages {
  void sample(Token&) {}
  void train(Token&) {}
  void distribute(Token&) {}
  void receive(Token&) {}
};

/// The first mistake in the machinery of algorithm and schedule; what they stand on is good.
template <class Pipeline, class Trace>
consteval auto mistake_in_machinery() {
  using Algorithm = typename Pipeline::algorithm;
  using Schedule = typename Pipeline::schedule;
  using Model = machinery_t<typename Pipeline::model, Pipeline>;
  using Weights = machinery_t<typename Pipeline::sharding, Pipeline>;
  using Learner = machinery_t<Algorithm, Pipeline>;
  if constexpr (!ConstructibleAlgorithm<Learner, knobs_t<Algorithm>>)
    return std::type_identity<mistake::algorithm_has_no_such_constructor<Algorithm, knobs_t<Algorithm>>>{};
  else if constexpr (!UpdatingAlgorithm<Learner, Model, Weights, Trace>)
    return std::type_identity<mistake::algorithm_has_no_update<Algorithm>>{};
  else if constexpr (!AlgorithmMachinery<Learner, knobs_t<Algorithm>, Model, Weights, Trace>)
    return std::type_identity<mistake::update_returns_no_stats<Algorithm>>{};
  else if constexpr (!ScheduleMachinery<machinery_t<Schedule, Pipeline>, any_stages, Trace>)
    return std::type_identity<mistake::schedule_has_no_run<Schedule>>{};
  else if constexpr (!ScheduleKnobs<knobs_t<Schedule>>)
    return std::type_identity<mistake::schedule_lacks_a_knob<Schedule, knobs_t<Schedule>>>{};
  else
    return std::type_identity<mistake::none>{};
}

}  // namespace detail

/// `Trace` is the recorder that the run will have.
template <class Pipeline, class Trace = trace::Recorder>
consteval bool buildable() {
  using Missing = typename decltype(detail::first_missing_of<Pipeline>(typename Pipeline::policies{}))::type;
  if constexpr (!std::is_base_of_v<mistake::none, Pipeline>) {
    return false;  // the composition's own error has said why
  } else if constexpr (!std::is_void_v<Missing>) {
    using said [[maybe_unused]] = typename detail::says<typename Missing::template missing<false>>::said;
    return false;
  } else {
    using Environment = machinery_t<typename Pipeline::environment, Pipeline>;
    using Model = machinery_t<typename Pipeline::model, Pipeline>;
    if constexpr (!EnvironmentMachinery<Environment>) {
      static_assert(EnvironmentMachinery<Environment>,
                    "dvla: the environment lacks a member, or has it with other types, that "
                    "EnvironmentMachinery asks for (environment/concept.hpp); the note below names it");
    } else if constexpr (!requires { typename Model::Decision; }) {
      static_assert(
          requires { typename Model::Decision; },
          "dvla: the model has no `Decision`, the record from which a sample's log-probability is "
          "computed again (model/concept.hpp)");
    } else if constexpr (!ModelMachinery<Model>) {
      static_assert(
          ModelMachinery<Model>,
          "dvla: the model lacks a member, or has it with other types, that ModelMachinery asks for "
          "(model/concept.hpp); the note below names it");
    } else {
      using Weights = machinery_t<typename Pipeline::sharding, Pipeline>;
      if constexpr (!ShardingMachinery<Weights, Model>) {
        static_assert(ShardingMachinery<Weights, Model>,
                      "dvla: the sharding lacks a member, or has it with other types, that ShardingMachinery "
                      "asks for (sharding/concept.hpp); the note below names it");
      } else {
        using Mistake = typename decltype(detail::mistake_in_machinery<Pipeline, Trace>())::type;
        using said [[maybe_unused]] = typename detail::says<Mistake>::said;
        return std::is_same_v<Mistake, mistake::none>;
      }
    }
    return false;
  }
}

}  // namespace dvla
