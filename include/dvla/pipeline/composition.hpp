// Pipeline<Parts...>: nine policies composed at compile time. Stage words only group; every policy finds its
// slot by `using slot`, so order is free; what is not named has a default, which may look at its neighbours.
// Design: "Slots". Types only: no torch, no machinery, nothing at run time but describe().
#pragma once

#include <string>
#include <type_traits>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/descriptors.hpp"
#include "dvla/control_plane/descriptors.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/slot.hpp"
#include "dvla/data_plane/descriptors.hpp"
#include "dvla/environment/descriptors.hpp"
#include "dvla/fwd.hpp"
#include "dvla/memory/descriptors.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/describe.hpp"
#include "dvla/pipeline/mistake.hpp"
#include "dvla/pipeline/table.hpp"
#include "dvla/placement/descriptors.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/schedule/descriptors.hpp"
#include "dvla/sharding/descriptors.hpp"

namespace dvla {

namespace detail {

template <class Slot, class... Parts>
struct stage_word {
  using fills = Slot;  // void: any slot
  using parts = list<Parts...>;
};

}  // namespace detail

template <class... Parts>
struct Sampler : detail::stage_word<void, Parts...> {};
template <class... Parts>
struct Trainer : detail::stage_word<void, Parts...> {};
template <class... Parts>
struct DataPlane : detail::stage_word<data_plane_slot, Parts...> {};
template <class... Parts>
struct ControlPlane : detail::stage_word<control_plane_slot, Parts...> {};
template <class... Parts>
struct Memory : detail::stage_word<memory_slot, Parts...> {};
template <class... Parts>
struct Placement : detail::stage_word<placement_slot, Parts...> {};
template <class... Parts>
struct Schedule : detail::stage_word<schedule_slot, Parts...> {};

namespace detail {

/// A policy as it was written, and the slot of the stage word around it (void: any).
template <class Policy, class WordsSlot>
struct entry {
  using policy = Policy;
  using words_slot = WordsSlot;
};

template <class... Lists>
struct joined {
  using type = list<>;
};
template <class... Types>
struct joined<list<Types...>> {
  using type = list<Types...>;
};
template <class... First, class... Second, class... Rest>
struct joined<list<First...>, list<Second...>, Rest...> : joined<list<First..., Second...>, Rest...> {};

template <class Part, class WordsSlot>
struct flat {
  using type = list<entry<Part, WordsSlot>>;
};
template <class Parts, class WordsSlot>
struct flat_parts;
template <class... Parts, class WordsSlot>
struct flat_parts<list<Parts...>, WordsSlot> : joined<typename flat<Parts, WordsSlot>::type...> {};
template <class Part, class WordsSlot>
requires requires {
  typename Part::fills;
  typename Part::parts;
}
struct flat<Part, WordsSlot> : flat_parts<typename Part::parts, typename Part::fills> {};
template <class Part, class WordsSlot>
requires requires { sizeof(typename Part::template in<WordsSlot>); }
struct flat<Part, WordsSlot> {
  using type = list<entry<typename Part::template in<WordsSlot>::type, WordsSlot>>;
};

template <class Policies, class Slot, class Default>
struct found {
  using type = Default;
};
template <class First, class... Rest, class Slot, class Default>
struct found<list<First, Rest...>, Slot, Default>
    : std::conditional_t<PolicyFor<typename First::policy, Slot>, std::type_identity<typename First::policy>,
                         found<list<Rest...>, Slot, Default>> {};
template <class Policies, class Slot, class Default>
using found_t = typename found<Policies, Slot, Default>::type;

/// Stands where a required policy is missing, so that one error stays one.
template <class Slot>
struct unnamed {
  using slot = Slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "(missing)";
  static constexpr int max_staleness = 1024;
};

template <class Algorithm>
inline constexpr int default_staleness = 1;
template <AlgorithmPolicy Algorithm>
inline constexpr int default_staleness<Algorithm> = Algorithm::max_staleness < 1 ? 0 : 1;

/// The nine, named or by default. Defaults that look at their neighbours are here and nowhere else.
template <class Policies>
struct choice {
  using environment = found_t<Policies, environment_slot, unnamed<environment_slot>>;
  using model = found_t<Policies, model_slot, TinyVLA<>>;
  using algorithm = found_t<Policies, algorithm_slot, unnamed<algorithm_slot>>;
  using sharding = found_t<Policies, sharding_slot, Unsharded>;
  using memory = found_t<Policies, memory_slot, DualPool>;
  using placement = found_t<Policies, placement_slot, CoLocated>;
  using schedule = found_t<Policies, schedule_slot, Swimlane<default_staleness<algorithm>>>;

  static constexpr bool many = spans_processes<sharding> || separates_roles<placement>;
  static constexpr bool many_weights =
      many || spans_processes<found_t<Policies, control_plane_slot, unnamed<control_plane_slot>>>;
  using data_plane =
      found_t<Policies, data_plane_slot, std::conditional_t<many_weights, C10d, InProcessData>>;
  using control_plane =
      found_t<Policies, control_plane_slot,
              std::conditional_t<many || spans_processes<data_plane>, Gloo, InProcessWeights>>;
};

template <class Policies>
inline constexpr bool names_a_slot = false;
template <Policy Type>
inline constexpr bool names_a_slot<Type> = []<class... Slots>(list<Slots...>) {
  return (std::is_same_v<typename Type::slot, Slots> || ...);
}(all_slots{});

template <class Policy>
inline constexpr bool states_a_mistake = false;
template <class Policy>
requires requires { typename Policy::mistake; }
inline constexpr bool states_a_mistake<Policy> = !std::is_same_v<typename Policy::mistake, mistake::none>;

/// What is wrong with one policy alone.
template <class Policy, class WordsSlot>
consteval auto mistake_in() {
  if constexpr (requires { typename Policy::template in<void>; }) {
    return std::type_identity<mistake::slot_is_open<Policy>>{};
  } else if constexpr (!names_a_slot<Policy>) {
    return std::type_identity<mistake::not_a_policy<Policy>>{};
  } else if constexpr (states_a_mistake<Policy>) {
    return std::type_identity<typename Policy::mistake>{};
  } else if constexpr (!std::is_void_v<WordsSlot> && !PolicyFor<Policy, WordsSlot>) {
    return std::type_identity<mistake::wrong_stage_word<Policy, WordsSlot>>{};
  } else if constexpr (!requires {
                         { Policy::name } -> std::convertible_to<std::string_view>;
                       }) {
    return std::type_identity<mistake::policy_has_no_name<Policy>>{};
  } else if constexpr (!requires { typename Policy::knobs; }) {
    return std::type_identity<mistake::policy_has_no_knobs<Policy>>{};
  } else if constexpr (!ReflectedKnobs<typename Policy::knobs>) {
    return std::type_identity<mistake::knobs_are_not_reflected<Policy, typename Policy::knobs>>{};
  } else if constexpr ((PolicyFor<Policy, algorithm_slot> && !AlgorithmPolicy<Policy>) ||
                       (PolicyFor<Policy, schedule_slot> && !SchedulePolicy<Policy>)) {
    return std::type_identity<mistake::policy_has_no_max_staleness<Policy>>{};
  } else {
    return std::type_identity<mistake::none>{};
  }
}

template <class Pipeline, class Chosen>
consteval auto mistake_between() {
  if constexpr (std::is_same_v<typename Chosen::environment, unnamed<environment_slot>>) {
    return std::type_identity<mistake::no_environment<Pipeline>>{};
  } else if constexpr (std::is_same_v<typename Chosen::algorithm, unnamed<algorithm_slot>>) {
    return std::type_identity<mistake::no_algorithm<Pipeline>>{};
  } else if constexpr (Chosen::schedule::max_staleness > Chosen::algorithm::max_staleness) {
    return std::type_identity<mistake::schedule_is_staler_than_the_algorithm_allows<
        typename Chosen::schedule, typename Chosen::algorithm>>{};
  } else if constexpr (needs_values<typename Chosen::algorithm> && !has_value_head<typename Chosen::model>) {
    return std::type_identity<
        mistake::algorithm_needs_a_value_head<typename Chosen::algorithm, typename Chosen::model>>{};
  } else if constexpr (!covers_roles<typename Chosen::placement>) {
    return std::type_identity<mistake::placement_leaves_a_role_out<typename Chosen::placement>>{};
  } else if constexpr (separates_roles<typename Chosen::placement> &&
                       !spans_processes<typename Chosen::data_plane>) {
    return std::type_identity<
        mistake::zero_copy_between_separate_roles<typename Chosen::data_plane, typename Chosen::placement>>{};
  } else if constexpr (separates_roles<typename Chosen::placement> &&
                       !spans_processes<typename Chosen::control_plane>) {
    return std::type_identity<mistake::in_process_weights_between_separate_roles<
        typename Chosen::control_plane, typename Chosen::placement>>{};
  } else if constexpr (spans_processes<typename Chosen::sharding> &&
                       !spans_processes<typename Chosen::data_plane>) {
    return std::type_identity<mistake::sharding_spans_more_than_the_data_plane<
        typename Chosen::sharding, typename Chosen::data_plane>>{};
  } else {
    return std::type_identity<mistake::none>{};
  }
}

template <class... Entries>
struct first_alone {
  using type = mistake::none;
};
template <class First, class... Rest>
struct first_alone<First, Rest...> {
  using here = typename decltype(mistake_in<typename First::policy, typename First::words_slot>())::type;
  using type = typename std::conditional_t<std::is_same_v<here, mistake::none>, first_alone<Rest...>,
                                           std::type_identity<here>>::type;
};

template <class... Entries>
struct first_duplicate {
  using type = mistake::none;
};
template <class First, class... Rest>
struct first_duplicate<First, Rest...> {
  using policy = typename First::policy;
  using other = found_t<list<Rest...>, typename policy::slot, void>;
  using type = typename std::conditional_t<
      std::is_void_v<other>, first_duplicate<Rest...>,
      std::type_identity<mistake::two_policies_fill_one_slot<typename policy::slot, policy, other>>>::type;
};

/// The first mistake in the list, or mistake::none.
template <class Pipeline, class Chosen, class... Entries>
consteval auto first_mistake(list<Entries...>) {
  if constexpr (sizeof...(Entries) == 0) {
    return std::type_identity<mistake::nothing_is_named<Pipeline>>{};
  } else if constexpr (!std::is_same_v<typename first_alone<Entries...>::type, mistake::none>) {
    return first_alone<Entries...>{};
  } else if constexpr (!std::is_same_v<typename first_duplicate<Entries...>::type, mistake::none>) {
    return first_duplicate<Entries...>{};
  } else {
    return mistake_between<Pipeline, Chosen>();
  }
}

template <class Kept, class New, class... Parts>
struct replaced;
template <class... Kept, class... New, class... Parts>
struct replaced<list<Kept...>, list<New...>, Parts...> {
  template <class Old>
  static constexpr bool stays = [] {
    if constexpr (!Policy<typename Old::policy>)
      return false;
    else
      return (!PolicyFor<typename New::policy, typename Old::policy::slot> && ...);
  }();
  template <class Rest>
  struct wrap;
  template <class... Rest>
  struct wrap<list<Rest...>> {
    using type = Pipeline<Rest..., Parts...>;
  };
  using type = typename wrap<
      typename joined<std::conditional_t<stays<Kept>, list<typename Kept::policy>, list<>>...>::type>::type;
};

}  // namespace detail

/// Nine policies. `P::environment` ... `P::schedule` are the policies, `P::policy<slot>` the same by slot,
/// `P::is_default<slot>` says whether it was named, `P::replace<Policy...>` is the pipeline with those in
/// their slots, `P::config` its run-time knobs, `P::table()` a hana::map from slot type to policy type,
/// `P::describe()` every choice as text. A wrong list is one error: see mistake.hpp.
template <class... Parts>
struct Pipeline : decltype(detail::first_mistake<
                           Pipeline<Parts...>,
                           detail::choice<typename detail::flat_parts<detail::list<Parts...>, void>::type>>(
                      typename detail::flat_parts<detail::list<Parts...>, void>::type{}))::type {
 private:
  using named = typename detail::flat_parts<detail::list<Parts...>, void>::type;
  using chosen = detail::choice<named>;

 public:
  using environment = typename chosen::environment;
  using model = typename chosen::model;
  using algorithm = typename chosen::algorithm;
  using sharding = typename chosen::sharding;
  using data_plane = typename chosen::data_plane;
  using control_plane = typename chosen::control_plane;
  using memory = typename chosen::memory;
  using placement = typename chosen::placement;
  using schedule = typename chosen::schedule;

  using policies = detail::list<environment, model, algorithm, sharding, data_plane, control_plane, memory,
                                placement, schedule>;
  template <class Slot>
  using policy = typename detail::at_slot<policies, Slot>::type;
  template <class Slot>
  static constexpr bool is_default = std::is_void_v<detail::found_t<named, Slot, void>>;
  template <class... New>
  using replace =
      typename detail::replaced<named, typename detail::flat_parts<detail::list<New...>, void>::type,
                                New...>::type;
  using config = Config<Pipeline>;

  static constexpr auto table() { return detail::table(policies{}); }
  static std::string describe() { return detail::describe<Pipeline>(); }
};

}  // namespace dvla
