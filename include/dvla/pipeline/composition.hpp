// Pipeline<Parts...>: nine policies composed at compile time. Stage words group, and refuse what is not
// theirs; every policy finds its slot by `using slot`, so order is free, and it may stand bare; what is not
// named has a default, which may look at its neighbours. Design: "Slots". Types only: no torch, no machinery,
// nothing at run time but describe().
#pragma once

#include <string>
#include <string_view>
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

/// One list behind the other; for decltype.
template <class... First, class... Second>
auto operator+(list<First...>, list<Second...>) -> list<First..., Second...>;

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
using flat_t = decltype((list<>{} + ... + typename flat<Parts>::type{}));

template <class... Entries>
auto policies_of(list<Entries...>) -> list<typename Entries::policy...>;
template <class... Parts>
using policies_of_t = decltype(policies_of(flat_t<Parts...>{}));

/// The first of `Policies` that fills the slot.

template <class Policies, class Slot, class Default>
struct found {
  using type = Default;
};
template <class First, class... Rest, class Slot, class Default>
struct found<list<First, Rest...>, Slot, Default>
    : std::conditional_t<PolicyFor<First, Slot>, std::type_identity<First>,
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

/// Whether the stage word (void: none) may hold a policy of that slot.
template <class Slot, class Word>
inline constexpr bool held_by = is_one_of<Slot, typename Word::holds>;
template <class Slot>
inline constexpr bool held_by<Slot, void> = true;

template <class Type>
concept NamesASlot = Policy<Type> && is_one_of<typename Type::slot, all_slots>;

// What can be wrong with a composition. Each function is true, or its first mistake is one error with one
// sentence, and it is false: then nothing is asked of what would rest on it, and Pipeline goes on with the
// best table it can make, so that nothing else fails.

/// What a policy says of its own arguments.
template <class Policy>
consteval bool arguments_are_sound() {
  if constexpr (requires { Policy::is_sound(); }) return Policy::is_sound();
  return true;
}

/// One policy alone, in the stage word around it.
template <class Entry>
consteval bool policy_is_sound() {
  using Policy = typename Entry::policy;
  using Word = typename Entry::word;
  if constexpr (StageWord<Policy>)
    static_assert(never<Word, Policy>,
                  "dvla: a stage word stands inside another one; write them side by side: "
                  "Pipeline<Sampler<Toy>, Trainer<GRPO>>");
  else if constexpr (requires { typename Policy::template in<void>; })
    static_assert(never<Policy>,
                  "dvla: InProcess fills either plane; say which: DataPlane<InProcess> or "
                  "ControlPlane<InProcess>");
  else if constexpr (!NamesASlot<Policy>)
    static_assert(never<Policy>,
                  "dvla: this is not a policy; a policy is a complete struct with `using slot = "
                  "dvla::environment_slot;` or another of the nine slots (core/slot.hpp)");
  else if constexpr (!arguments_are_sound<Policy>())
    return false;
  else if constexpr (!held_by<typename Policy::slot, Word>)
    static_assert(
        never<Word, Policy, typename Policy::slot>,
        "dvla: this stage word holds a policy of a slot that is not its own (the arguments are word, "
        "policy and slot): Sampler holds environment and model; Trainer algorithm, sharding and model; "
        "DataPlane, ControlPlane, Memory, Placement and Schedule the slot they are named after; move "
        "the policy there, or write it without a word");
  else if constexpr (!requires { std::string_view(Policy::name); })
    static_assert(never<Policy>,
                  "dvla: this policy has no name; add `static constexpr std::string_view name = \"...\";`");
  else if constexpr (!requires { typename Policy::knobs; })
    static_assert(never<Policy>,
                  "dvla: this policy has no knobs; add `using knobs = MyKnobs;`, or `using knobs = "
                  "dvla::NoKnobs;` if there is nothing to tune");
  else if constexpr (!ReflectedKnobs<knobs_t<Policy>>)
    static_assert(
        never<Policy, knobs_t<Policy>>,
        "dvla: this policy's knobs are not reflected; add BOOST_HANA_ADAPT_STRUCT(Knobs, members...) "
        "and knob_docs beside the struct (core/knobs.hpp)");
  else if constexpr ((PolicyFor<Policy, algorithm_slot> && !AlgorithmPolicy<Policy>) ||
                     (PolicyFor<Policy, schedule_slot> && !SchedulePolicy<Policy>))
    static_assert(
        never<Policy>,
        "dvla: this algorithm or schedule does not say how old weights may be; add `static constexpr "
        "int max_staleness = 0;` or more (algorithm/concept.hpp, schedule/concept.hpp)");
  else
    return true;
  return false;
}

consteval bool slots_are_filled_once(list<>) { return true; }
template <class First, class... Rest>
consteval bool slots_are_filled_once(list<First, Rest...>) {
  using other = found_t<list<Rest...>, typename First::slot, void>;
  if constexpr (std::is_void_v<other>)
    return slots_are_filled_once(list<Rest...>{});
  else
    static_assert(never<typename First::slot, First, other>,
                  "dvla: two policies fill the same slot; name only one of them, or swap with "
                  "P::replace<Policy>");
  return false;
}

/// Between policies that are right alone.
template <class Chosen>
consteval bool policies_fit() {
  using environment = typename Chosen::environment;
  using model = typename Chosen::model;
  using algorithm = typename Chosen::algorithm;
  using sharding = typename Chosen::sharding;
  using data_plane = typename Chosen::data_plane;
  using control_plane = typename Chosen::control_plane;
  using placement = typename Chosen::placement;
  using schedule = typename Chosen::schedule;
  if constexpr (std::is_same_v<environment, unnamed<environment_slot>>)
    static_assert(
        never<Chosen>,
        "dvla: no environment is named, and it has no default; add Sampler<MuJoCo<Push>>, Sampler<Toy> "
        "or your own");
  else if constexpr (std::is_same_v<algorithm, unnamed<algorithm_slot>>)
    static_assert(never<Chosen>,
                  "dvla: no algorithm is named, and it has no default; add Trainer<GRPO> or your own");
  else if constexpr (schedule::max_staleness > algorithm::max_staleness)
    static_assert(never<schedule, algorithm>,
                  "dvla: the schedule lets weights grow older than the algorithm's max_staleness; lower "
                  "Swimlane<Max>, or take a correction that allows more, such as BasicGRPO<DecoupledClip>");
  else if constexpr (needs_values<algorithm> && !has_value_head<model>)
    static_assert(never<algorithm, model>,
                  "dvla: the algorithm needs values, and the model has no value head; wrap the model, as in "
                  "WithValue<TinyVLA<>>, use a critic-free algorithm such as GRPO, or write a model with "
                  "`static constexpr bool has_value_head = true;`");
  else if constexpr (!covers_roles<placement>)
    static_assert(never<placement>,
                  "dvla: the placement must cover both roles, and has no rollouts or no actors; give both a "
                  "share: Separated<3, 1>");
  else if constexpr (separates_roles<placement> && !spans_processes<data_plane>)
    static_assert(never<data_plane, placement>,
                  "dvla: this data plane stays inside one process, and the placement separates rollouts from "
                  "actors; use DataPlane<C10d>, or Placement<CoLocated>");
  else if constexpr (separates_roles<placement> && !spans_processes<control_plane>)
    static_assert(
        never<control_plane, placement>,
        "dvla: this control plane stays inside one process, and the placement separates rollouts from "
        "actors; use ControlPlane<Gloo>, or Placement<CoLocated>");
  else if constexpr (spans_processes<sharding> && !spans_processes<data_plane>)
    static_assert(
        never<sharding, data_plane>,
        "dvla: the sharding spans processes, and the data plane that is named stays inside one; leave "
        "the data plane out (its default then spans processes), or use DataPlane<C10d>");
  else
    return true;
  return false;
}

template <class Pipeline, class... Entries>
consteval bool composition_is_sound(list<Entries...>) {
  if constexpr (sizeof...(Entries) == 0)
    static_assert(never<Pipeline>,
                  "dvla: an empty Pipeline; name at least an environment and an algorithm: "
                  "Pipeline<Sampler<MuJoCo<Push>>, Trainer<GRPO>>");
  else if constexpr ((policy_is_sound<Entries>() && ...))
    if constexpr (slots_are_filled_once(list<typename Entries::policy...>{}))
      return policies_fit<choice<list<typename Entries::policy...>>>();
  return false;
}

/// A base, so that what a composition says is asked as soon as it is used.
template <bool Sound>
struct composed {
  static constexpr bool is_sound = Sound;
};

template <class Kept, class New, class... Parts>
struct replaced;
template <class... Kept, class... New, class... Parts>
struct replaced<list<Kept...>, list<New...>, Parts...> {
  template <class Old>
  static constexpr bool stays = [] {
    if constexpr (Policy<Old>) return (!PolicyFor<New, typename Old::slot> && ...);
    return false;
  }();
  template <class... Rest>
  static auto with(list<Rest...>) -> Pipeline<Rest..., Parts...>;
  using type = decltype(with((list<>{} + ... + std::conditional_t<stays<Kept>, list<Kept>, list<>>{})));
};

}  // namespace detail

/// Nine policies. `P::environment` ... `P::schedule` are the policies, `P::policy<slot>` the same by slot,
/// `P::is_default<slot>` says whether it was named, `P::replace<Policy...>` is the pipeline with those in
/// their slots, `P::config` its run-time knobs, `P::table()` a hana::map from slot type to policy type
/// (table.hpp), `P::describe()` every choice as text. A wrong list is one error with one sentence.
template <class... Parts>
struct Pipeline
    : detail::composed<detail::composition_is_sound<Pipeline<Parts...>>(detail::flat_t<Parts...>{})> {
 private:
  using named = detail::policies_of_t<Parts...>;
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
  using policy = detail::found_t<policies, Slot, void>;
  template <class Slot>
  static constexpr bool is_default = std::is_void_v<detail::found_t<named, Slot, void>>;
  template <class... New>
  using replace = typename detail::replaced<named, detail::policies_of_t<New...>, New...>::type;
  using config = Config<Pipeline>;

  static constexpr auto table() {
    if constexpr (requires { table_of(policies{}); })
      return table_of(policies{});
    else
      static_assert(detail::never<Pipeline>, "dvla: P::table() needs #include <dvla/pipeline/table.hpp>");
  }
  static std::string describe() { return detail::describe<Pipeline>(); }
  /// The same of a configuration, `describe(config.run)`, with the adapter between model and environment.
  static std::string describe(const AdapterKnobs& run) { return detail::describe<Pipeline>(run); }
};

}  // namespace dvla
