// From a policy to the class that does its work. A shipped policy is a torch-free *descriptor*; the policy's
// own header specialises `machinery` with the run-time class:
//     template <class Task, class Pipeline>
//     struct machinery<MuJoCo<Task>, Pipeline> { using type = MujocoBatch<Task>; };
// A user's policy that specialises nothing is its own machinery. Asking for the machinery of a descriptor
// whose header is not included fails with one sentence, from the descriptor's member template `missing`.
// Naming, composing and describing need no machinery.
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "dvla/core/slot.hpp"

namespace dvla {

/// What every policy brings: its slot, a printable name, and a plain struct of what users tune (NoKnobs if
/// nothing).
template <class Type, class Slot>
concept NamedPolicyFor = PolicyFor<Type, Slot> && requires {
  { Type::name } -> std::convertible_to<std::string_view>;
  typename Type::knobs;
};

/// A policy that only describes: `template <bool Never> struct missing { static_assert(Never, "..."); };`
template <class Type>
concept Descriptor = Policy<Type> && requires {
  typename Type::template missing<false>;
};

namespace detail {

struct no_machinery {};

template <class Policy, class Machinery>
struct included_machinery {
  using type = Machinery;
};
template <class Policy>
struct included_machinery<Policy, no_machinery> : Policy::template missing<false> {
  using type = no_machinery;
};

/// Compile-time facts that a policy may state; false where it does not.
template <class Policy>
concept spans_processes = static_cast<bool>(Policy::spans_processes);
template <class Policy>
concept separates_roles = static_cast<bool>(Policy::separates_roles);
template <class Policy>
concept needs_values = static_cast<bool>(Policy::needs_values);
template <class Policy>
concept runs_on_cuda = static_cast<bool>(Policy::runs_on_cuda);
template <class Policy>
concept has_value_head = static_cast<bool>(Policy::has_value_head);

/// A placement covers both roles unless it says otherwise.
template <class Policy>
concept covers_roles = (!requires { Policy::has_rollouts; } || static_cast<bool>(Policy::has_rollouts)) &&
                       (!requires { Policy::has_actors; } || static_cast<bool>(Policy::has_actors));

}  // namespace detail

template <class Policy, class Pipeline>
struct machinery {
  using type = std::conditional_t<Descriptor<Policy>, detail::no_machinery, Policy>;
};

/// The run-time class; a descriptor without its header is one error here.
template <class Policy, class Pipeline>
using machinery_t =
    typename detail::included_machinery<Policy, typename machinery<Policy, Pipeline>::type>::type;

}  // namespace dvla
