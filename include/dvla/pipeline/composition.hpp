// Pipeline<Parts...>: nine policies composed at compile time. Stage words group, and refuse what is not
// theirs; every policy finds its slot by `using slot`, so order is free, and it may stand bare; what is not
// named has a default, which may look at its neighbours. Design: "Slots". Types only: no torch, no machinery,
// nothing at run time but describe().
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
#include "dvla/pipeline/describe.hpp"
#include "dvla/pipeline/mistake.hpp"
#include "dvla/placement/descriptors.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/schedule/descriptors.hpp"
#include "dvla/sharding/descriptors.hpp"

namespace dvla {

namespace detail {

/// `Slots`: what the word may hold.
template <class Slots, class... Parts>
struct stage_word {
  using holds = Slots;
  using parts = list<Parts...>;
};

}  // namespace detail

template <class... Parts>
struct Sampler : detail::stage_word<detail::list<environment_slot, model_slot>, Parts...> {};
template <class... Parts>
struct Trainer : detail::stage_word<detail::list<algorithm_slot, sharding_slot, model_slot>, Parts...> {};
template <class... Parts>
struct DataPlane : detail::stage_word<detail::list<data_plane_slot>, Parts...> {};
template <class... Parts>
struct ControlPlane : detail::stage_word<detail::list<control_plane_slot>, Parts...> {};
template <class... Parts>
struct Memory : detail::stage_word<detail::list<memory_slot>, Parts...> {};
template <class... Parts>
struct Placement : detail::stage_word<detail::list<placement_slot>, Parts...> {};
template <class... Parts>
struct Schedule : detail::stage_word<detail::list<schedule_slot>, Parts...> {};

namespace detail {

template <class Part>
concept StageWord = requires {
  typename Part::holds;
  typename Part::parts;
};

/// A policy as it was written, and the stage word around it (void: none).
template <class Policy, class Word>
struct entry {
  using policy = Policy;
  using word = Word;
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

/// What a part means in a word that holds `Slots`: a type that offers itself to several slots (InProcess) is
/// the policy of the one slot that there is.
template <class Part, class Slots>
struct meant : std::type_identity<Part> {};
template <class Part, class Slot>
requires requires { sizeof(typename Part::template in<Slot>); }
struct meant<Part, list<Slot>> : Part::template in<Slot> {};

template <class Part>
struct flat : std::type_identity<list<entry<Part, void>>> {};
template <StageWord Word>
struct flat<Word> {
  template <class... Parts>
  static auto entries(list<Parts...>)
      -> list<entry<typename meant<Parts, typename Word::holds>::type, Word>...>;
  using type = decltype(entries(typename Word::parts{}));
};

/// The entries of a pipeline's parts, stage words opened.
template <class... Parts>
using flat_t = typename joined<typename flat<Parts>::type...>::type;

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

template <class Slot, class Slots>
inline constexpr bool is_one_of = false;
template <class Slot, class... Slots>
inline constexpr bool is_one_of<Slot, list<Slots...>> = (std::is_same_v<Slot, Slots> || ...);

template <class Type>
concept NamesASlot = Policy<Type> && is_one_of<typename Type::slot, all_slots>;

/// What a policy says is wrong with its own arguments.
template <class Policy>
struct own_mistake : std::type_identity<mistake::none> {};
template <class Policy>
requires requires { typename Policy::mistake; }
struct own_mistake<Policy> : std::type_identity<typename Policy::mistake> {};

/// What the stage word around a policy says.
template <class Policy, class Word>
struct words_mistake
    : std::type_identity<mistake::when<!is_one_of<typename Policy::slot, typename Word::holds>,
                                       mistake::wrong_stage_word<Word, Policy, typename Policy::slot>>> {};
template <class Policy>
struct words_mistake<Policy, void> : std::type_identity<mistake::none> {};

/// What is wrong with one policy alone.
template <class Policy, class Word>
    struct mistake_in : std::type_identity < mistake::first <
                        mistake::when<StageWord<Policy>, mistake::stage_word_in_a_stage_word<Word, Policy>>,
    mistake::when < requires {
  typename Policy::template in<void>;
}, mistake::slot_is_open < Policy >>, mistake::not_a_policy < Policy >>> {};
template <NamesASlot Policy, class Word>
    struct mistake_in<Policy, Word> : std::type_identity < mistake::first <
                                      typename own_mistake<Policy>::type,
    typename words_mistake<Policy, Word>::type, mistake::when < !requires {
  std::string_view(Policy::name);
}, mistake::policy_has_no_name < Policy >>, mistake::when < !requires {
  typename Policy::knobs;
}
, mistake::policy_has_no_knobs < Policy >>,
    mistake::when<!ReflectedKnobs<knobs_t<Policy>>,
                  mistake::knobs_are_not_reflected<Policy, knobs_t<Policy>>>,
    mistake::when < (PolicyFor<Policy, algorithm_slot> && !AlgorithmPolicy<Policy>) ||
        (PolicyFor<Policy, schedule_slot> && !SchedulePolicy<Policy>),
    mistake::policy_has_no_max_staleness < Policy >>>> {};

/// What is wrong between policies that are right alone.
template <class Pipeline, class C>
struct mistake_between
    : std::type_identity<mistake::first<
          mistake::when<std::is_same_v<typename C::environment, unnamed<environment_slot>>,
                        mistake::no_environment<Pipeline>>,
          mistake::when<std::is_same_v<typename C::algorithm, unnamed<algorithm_slot>>,
                        mistake::no_algorithm<Pipeline>>,
          mistake::when<(C::schedule::max_staleness > C::algorithm::max_staleness),
                        mistake::schedule_is_staler_than_the_algorithm_allows<typename C::schedule,
                                                                              typename C::algorithm>>,
          mistake::when<needs_values<typename C::algorithm> && !has_value_head<typename C::model>,
                        mistake::algorithm_needs_a_value_head<typename C::algorithm, typename C::model>>,
          mistake::when<!covers_roles<typename C::placement>,
                        mistake::placement_leaves_a_role_out<typename C::placement>>,
          mistake::when<
              separates_roles<typename C::placement> && !spans_processes<typename C::data_plane>,
              mistake::zero_copy_between_separate_roles<typename C::data_plane, typename C::placement>>,
          mistake::when<separates_roles<typename C::placement> && !spans_processes<typename C::control_plane>,
                        mistake::in_process_weights_between_separate_roles<typename C::control_plane,
                                                                           typename C::placement>>,
          mistake::when<spans_processes<typename C::sharding> && !spans_processes<typename C::data_plane>,
                        mistake::sharding_spans_more_than_the_data_plane<typename C::sharding,
                                                                         typename C::data_plane>>>> {};

template <class... Entries>
struct duplicate : std::type_identity<mistake::none> {};
template <class First, class... Rest>
struct duplicate<First, Rest...> {
  using policy = typename First::policy;
  using other = found_t<list<Rest...>, typename policy::slot, void>;
  using type =
      mistake::first<mistake::when<!std::is_void_v<other>,
                                   mistake::two_policies_fill_one_slot<typename policy::slot, policy, other>>,
                     typename duplicate<Rest...>::type>;
};

/// The first mistake in the list, or mistake::none. What comes later is asked only of what is right so far.
template <class Pipeline, class... Entries>
consteval auto first_mistake(list<Entries...>) {
  using alone =
      mistake::first<mistake::when<sizeof...(Entries) == 0, mistake::nothing_is_named<Pipeline>>,
                     typename mistake_in<typename Entries::policy, typename Entries::word>::type...>;
  if constexpr (!std::is_same_v<alone, mistake::none>)
    return std::type_identity<alone>{};
  else if constexpr (!std::is_same_v<typename duplicate<Entries...>::type, mistake::none>)
    return duplicate<Entries...>{};
  else
    return mistake_between<Pipeline, choice<list<Entries...>>>{};
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
/// their slots, `P::config` its run-time knobs, `P::table()` a hana::map from slot type to policy type
/// (table.hpp), `P::describe()` every choice as text. A wrong list is one error: see mistake.hpp.
template <class... Parts>
struct Pipeline : decltype(detail::first_mistake<Pipeline<Parts...>>(detail::flat_t<Parts...>{}))::type {
 private:
  using named = detail::flat_t<Parts...>;
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
  using replace = typename detail::replaced<named, detail::flat_t<New...>, New...>::type;
  using config = Config<Pipeline>;

  static constexpr auto table() {
    if constexpr (requires { table_of(policies{}); })
      return table_of(policies{});
    else
      static_assert(mistake::never<Pipeline>, "dvla: P::table() needs #include <dvla/pipeline/table.hpp>");
  }
  static std::string describe() { return detail::describe<Pipeline>(); }
  /// The same of a configuration, `describe(config.run)`, with the adapter between model and environment.
  static std::string describe(const AdapterKnobs& run) { return detail::describe<Pipeline>(run); }
};

}  // namespace dvla
