// buildable<Pipeline>(): whether the machinery of every policy is included and keeps its contract. Asked
// before anything of a run is instantiated, so that what is missing is one error with one sentence. Converts
// to true, or is that error and converts to false.
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
#include "dvla/pipeline/mistake.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/sharding/concept.hpp"
#include "dvla/trace/recorder.hpp"

namespace dvla {

// The compiler's own note below each of these sentences quotes the member that the concept asks for in vain.
namespace mistake {

template <class Environment>
struct environment_lacks_a_member {
  static_assert(EnvironmentMachinery<Environment>,
                "dvla: the environment lacks a member, or has it with other types, that EnvironmentMachinery "
                "asks for (environment/concept.hpp); the note below names it");
};

template <class Model>
struct model_lacks_a_member {
  static_assert(ModelMachinery<Model>,
                "dvla: the model lacks a member, or has it with other types, that ModelMachinery asks for "
                "(model/concept.hpp); the note below names it");
};

template <class Weights, class Model>
struct sharding_lacks_a_member {
  static_assert(ShardingMachinery<Weights, Model>,
                "dvla: the sharding lacks a member, or has it with other types, that ShardingMachinery asks "
                "for (sharding/concept.hpp); the note below names it");
};

}  // namespace mistake

namespace detail {

/// Of a policy whose machinery is not included, its own sentence.
template <class Policy, class Machinery>
struct not_included : std::type_identity<mistake::none> {};
template <class Policy>
struct not_included<Policy, no_machinery> : std::type_identity<typename Policy::template missing<false>> {};

template <class P, class Trace>
struct environment_check {
  using Policy = typename P::environment;
  using Knobs = knobs_t<Policy>;
  using Environment = typename machinery<Policy, P>::type;
  using type = mistake::first<
      typename not_included<Policy, Environment>::type,
      mistake::when<!EnvironmentMachinery<Environment>, mistake::environment_lacks_a_member<Environment>>,
      mistake::when<!std::constructible_from<Environment, const Knobs&, std::pmr::memory_resource&>,
                    mistake::environment_has_no_such_constructor<Environment, Knobs>>>;
};

template <class P, class Trace>
struct model_check {
  using Policy = typename P::model;
  using Knobs = knobs_t<Policy>;
  using Model = typename machinery<Policy, P>::type;
  using type = mistake::first < typename not_included<Policy, Model>::type, mistake::when < !requires {
    typename Model::Decision;
  }
  , mistake::model_has_no_decision < Model >>, mistake::when < !requires {
    requires Record<typename Model::Decision>;
  }
  , mistake::decision_is_not_reflected < Model >>, mistake::when < !requires(const Knobs& knobs) {
    std::int64_t{knobs.chunk};
  }
  , mistake::model_knobs_lack_chunk < Policy, Knobs >>,
      mistake::when<!std::constructible_from<Model, const Knobs&, const ModelInputs&, std::uint64_t>,
                    mistake::model_has_no_such_constructor<Model, Knobs>>,
      mistake::when<!std::constructible_from<Model, const Model&, ShareFrozen>,
                    mistake::model_shares_nothing<Model>>,
      mistake::when < !ModelMachinery<Model>, mistake::model_lacks_a_member < Model >>>
      ;
};

template <class P, class Policies = typename P::policies>
struct every_policy;
template <class P, class... Policies>
struct every_policy<P, list<Policies...>> {
  using not_included =
      mistake::first<typename detail::not_included<Policies, typename machinery<Policies, P>::type>::type...>;
};
template <class P, class Trace>
struct headers_check : std::type_identity<typename every_policy<P>::not_included> {};

template <class P, class Trace>
struct sharding_check {
  using Model = machinery_t<typename P::model, P>;
  using Weights = machinery_t<typename P::sharding, P>;
  using type =
      mistake::when<!ShardingMachinery<Weights, Model>, mistake::sharding_lacks_a_member<Weights, Model>>;
};

template <class P, class Trace>
struct algorithm_check {
  using Policy = typename P::algorithm;
  using Knobs = knobs_t<Policy>;
  using Model = machinery_t<typename P::model, P>;
  using Weights = machinery_t<typename P::sharding, P>;
  using Algorithm = machinery_t<Policy, P>;
  using type = mistake::first<mistake::when<!ConstructibleAlgorithm<Algorithm, Knobs>,
                                            mistake::algorithm_has_no_such_constructor<Policy, Knobs>>,
                              mistake::when<!UpdatingAlgorithm<Algorithm, Model, Weights, Trace>,
                                            mistake::algorithm_has_no_update<Policy>>,
                              mistake::when<!AlgorithmMachinery<Algorithm, Knobs, Model, Weights, Trace>,
                                            mistake::update_returns_no_stats<Policy>>>;
};

/// Stands in for the stages that a run gives its schedule.
struct any_stages {
  void sample(Token&) {}
  void train(Token&) {}
  void distribute(Token&) {}
  void receive(Token&) {}
};

template <class P, class Trace>
struct schedule_check {
  using Policy = typename P::schedule;
  using Knobs = knobs_t<Policy>;
  using type =
      mistake::first<mistake::when<!ScheduleMachinery<machinery_t<Policy, P>, any_stages, Trace>,
                                   mistake::schedule_has_no_run<Policy>>,
                     mistake::when<!ScheduleKnobs<Knobs>, mistake::schedule_lacks_a_knob<Policy, Knobs>>>;
};

/// The first mistake that a check finds. Each is made only where those before it found none: it may name what
/// they have checked.
template <class P, class Trace, template <class, class> class... Checks>
struct first_found : std::type_identity<mistake::none> {};
template <class P, class Trace, template <class, class> class Check, template <class, class> class... Rest>
struct first_found<P, Trace, Check, Rest...>
    : std::conditional_t<std::is_same_v<typename Check<P, Trace>::type, mistake::none>,
                         first_found<P, Trace, Rest...>, Check<P, Trace>> {};

/// What a user writes is asked first, before the machinery of others is made of it. A composition that is
/// wrong has said so itself.
template <class P, class Trace>
using mistake_in_machinery =
    typename std::conditional_t<std::is_base_of_v<mistake::none, P>,
                                first_found<P, Trace, environment_check, model_check, headers_check,
                                            sharding_check, algorithm_check, schedule_check>,
                                std::type_identity<mistake::none>>::type;

}  // namespace detail

/// `Trace` is the recorder that the run will have.
template <class Pipeline, class Trace = trace::Recorder>
struct buildable : detail::mistake_in_machinery<Pipeline, Trace> {
  constexpr operator bool() const {
    return std::is_base_of_v<mistake::none, Pipeline> &&
           std::is_same_v<detail::mistake_in_machinery<Pipeline, Trace>, mistake::none>;
  }
};

}  // namespace dvla
