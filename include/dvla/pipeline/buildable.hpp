// buildable<Pipeline>(): whether the machinery of every policy is included and keeps its contract. Asked
// before anything of a run is instantiated, so that what is missing is one error with one sentence. True, or
// that error and false.
#pragma once

#include <type_traits>

#include "dvla/core/machinery.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/pipeline/mistake.hpp"
#include "dvla/pipeline/table.hpp"

namespace dvla {

namespace detail {

template <class Policy, class Pipeline>
struct machinery_is_included
    : std::bool_constant<!std::is_same_v<typename machinery<Policy, Pipeline>::type, no_machinery>> {};

/// Stops at the first that is missing.
template <class Pipeline, class... Policies>
consteval bool all_included(list<Policies...>) {
  return std::conjunction_v<machinery_is_included<Policies, Pipeline>...>;
}

}  // namespace detail

template <class Pipeline>
consteval bool buildable() {
  if constexpr (!std::is_base_of_v<mistake::none, Pipeline>) {
    return false;  // the composition's own error has said why
  } else if constexpr (!detail::all_included<Pipeline>(typename Pipeline::policies{})) {
    return false;  // the descriptor has said what to include
  } else {
    using Environment = machinery_t<typename Pipeline::environment, Pipeline>;
    using Model = machinery_t<typename Pipeline::model, Pipeline>;
    constexpr bool environment_fits = EnvironmentMachinery<Environment>;
    constexpr bool fits = environment_fits && ModelMachinery<Model>;
    if constexpr (!environment_fits) {
      static_assert(EnvironmentMachinery<Environment>,
                    "dvla: the environment lacks a member, or has it with other types, that "
                    "EnvironmentMachinery asks for (environment/concept.hpp); the note below names it");
    } else if constexpr (!fits) {
      static_assert(
          ModelMachinery<Model>,
          "dvla: the model lacks a member, or has it with other types, that ModelMachinery asks for "
          "(model/concept.hpp); the note below names it");
    }
    return fits;
  }
}

}  // namespace dvla
