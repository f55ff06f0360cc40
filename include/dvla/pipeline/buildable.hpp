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

template <class Policy>
struct says_what_to_include : Policy::template missing<false> {
  using said = void;
};

}  // namespace detail

template <class Pipeline>
consteval bool buildable() {
  using Missing = typename decltype(detail::first_missing_of<Pipeline>(typename Pipeline::policies{}))::type;
  if constexpr (!std::is_base_of_v<mistake::none, Pipeline>) {
    return false;  // the composition's own error has said why
  } else if constexpr (!std::is_void_v<Missing>) {
    using said [[maybe_unused]] = typename detail::says_what_to_include<Missing>::said;
    return false;
  } else {
    using Environment = machinery_t<typename Pipeline::environment, Pipeline>;
    using Model = machinery_t<typename Pipeline::model, Pipeline>;
    constexpr bool environment_fits = EnvironmentMachinery<Environment>;
    constexpr bool fits = environment_fits && ModelMachinery<Model>;
    if constexpr (!environment_fits) {
      static_assert(EnvironmentMachinery<Environment>,
                    "dvla: the environment lacks a member, or has it with other types, that "
                    "EnvironmentMachinery asks for (environment/concept.hpp); the note below names it");
    } else if constexpr (!requires { typename Model::Decision; }) {
      static_assert(
          requires { typename Model::Decision; },
          "dvla: the model has no `Decision`, the record from which a sample's log-probability is "
          "computed again (model/concept.hpp)");
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
