// What can be wrong with a composition: one class template per mistake, whose instantiation is one error with
// one sentence; the compiler prints the culprits as the template's arguments. Pipeline inherits from the
// first mistake of an ill-formed list, and goes on with the best table it can make, so that nothing else
// fails.
#pragma once

#include <type_traits>

namespace dvla::mistake {

template <class...>
inline constexpr bool never = false;

struct none {};

/// `Mistake` where it was made.
template <bool Made, class Mistake>
using when = std::conditional_t<Made, Mistake, none>;

namespace detail {
template <class... Mistakes>
struct first : std::type_identity<none> {};
template <class First, class... Rest>
struct first<First, Rest...> : std::type_identity<First> {};
template <class... Rest>
struct first<none, Rest...> : first<Rest...> {};
}  // namespace detail

/// The first of them that is one, or none. Naming a mistake is no error yet.
template <class... Mistakes>
using first = typename detail::first<Mistakes...>::type;

template <class Pipeline>
struct nothing_is_named {
  static_assert(never<Pipeline>,
                "dvla: an empty Pipeline; name at least an environment and an algorithm: "
                "Pipeline<Sampler<MuJoCo<Push>>, Trainer<GRPO>>");
};

template <class Type>
struct not_a_policy {
  static_assert(never<Type>,
                "dvla: this is not a policy; a policy is a complete struct with `using slot = "
                "dvla::environment_slot;` or another of the nine slots (core/slot.hpp)");
};

template <class Type>
struct slot_is_open {
  static_assert(never<Type>,
                "dvla: InProcess fills either plane; say which: DataPlane<InProcess> or "
                "ControlPlane<InProcess>");
};

template <class Word, class Policy, class Slot>
struct wrong_stage_word {
  static_assert(
      never<Word, Policy, Slot>,
      "dvla: this stage word holds a policy of a slot that is not its own (the arguments are word, "
      "policy and slot): Sampler holds environment and model; Trainer algorithm, sharding and model; "
      "DataPlane, ControlPlane, Memory, Placement and Schedule the slot they are named after; move "
      "the policy there, or write it without a word");
};

template <class Word, class Inner>
struct stage_word_in_a_stage_word {
  static_assert(never<Word, Inner>,
                "dvla: a stage word stands inside another one; write them side by side: "
                "Pipeline<Sampler<Toy>, Trainer<GRPO>>");
};

template <class Policy>
struct policy_has_no_name {
  static_assert(never<Policy>,
                "dvla: this policy has no name; add `static constexpr std::string_view name = \"...\";`");
};

template <class Policy>
struct policy_has_no_knobs {
  static_assert(never<Policy>,
                "dvla: this policy has no knobs; add `using knobs = MyKnobs;`, or `using knobs = "
                "dvla::NoKnobs;` if there is nothing to tune");
};

template <class Policy, class Knobs>
struct knobs_are_not_reflected {
  static_assert(never<Policy>,
                "dvla: this policy's knobs are not reflected; add BOOST_HANA_ADAPT_STRUCT(Knobs, members...) "
                "and knob_docs beside the struct (core/knobs.hpp)");
};

template <class Policy>
struct policy_has_no_max_staleness {
  static_assert(never<Policy>,
                "dvla: this algorithm or schedule does not say how old weights may be; add `static constexpr "
                "int max_staleness = 0;` or more (algorithm/concept.hpp, schedule/concept.hpp)");
};

template <class Slot, class First, class Second>
struct two_policies_fill_one_slot {
  static_assert(never<Slot>,
                "dvla: two policies fill the same slot; name only one of them, or swap with "
                "P::replace<Policy>");
};

template <class Pipeline>
struct no_environment {
  static_assert(
      never<Pipeline>,
      "dvla: no environment is named, and it has no default; add Sampler<MuJoCo<Push>>, Sampler<Toy> "
      "or your own");
};

template <class Pipeline>
struct no_algorithm {
  static_assert(never<Pipeline>,
                "dvla: no algorithm is named, and it has no default; add Trainer<GRPO> or your own");
};

template <class Schedule, class Algorithm>
struct schedule_is_staler_than_the_algorithm_allows {
  static_assert(never<Schedule>,
                "dvla: the schedule lets weights grow older than the algorithm's max_staleness; lower "
                "Swimlane<Max>, or take a correction that allows more, such as BasicGRPO<DecoupledClip>");
};

template <class Algorithm, class Model>
struct algorithm_needs_a_value_head {
  static_assert(never<Algorithm>,
                "dvla: the algorithm needs values, and the model has no value head; wrap the model, as in "
                "WithValue<TinyVLA<>>, use a critic-free algorithm such as GRPO, or write a model with "
                "`static constexpr bool has_value_head = true;`");
};

template <class Placement>
struct placement_leaves_a_role_out {
  static_assert(never<Placement>,
                "dvla: the placement must cover both roles, and has no rollouts or no actors; give both a "
                "share: Separated<3, 1>");
};

template <class DataPlane, class Placement>
struct zero_copy_between_separate_roles {
  static_assert(never<DataPlane>,
                "dvla: this data plane stays inside one process, and the placement separates rollouts from "
                "actors; use DataPlane<C10d>, or Placement<CoLocated>");
};

template <class ControlPlane, class Placement>
struct in_process_weights_between_separate_roles {
  static_assert(
      never<ControlPlane>,
      "dvla: this control plane stays inside one process, and the placement separates rollouts from "
      "actors; use ControlPlane<Gloo>, or Placement<CoLocated>");
};

template <class Sharding, class DataPlane>
struct sharding_spans_more_than_the_data_plane {
  static_assert(
      never<Sharding>,
      "dvla: the sharding spans processes, and the data plane that is named stays inside one; leave "
      "the data plane out (its default then spans processes), or use DataPlane<C10d>");
};

// What is wrong with a policy's machinery. Found when a pipeline is built: buildable.hpp.

template <class Environment, class Knobs>
struct environment_has_no_such_constructor {
  static_assert(
      never<Environment>,
      "dvla: a run makes this environment with (const Knobs&, std::pmr::memory_resource&), and it has "
      "no such constructor; add it (docs/slots/environment.md)");
};

template <class Model>
struct model_has_no_decision {
  static_assert(never<Model>,
                "dvla: the model has no `Decision`, the record from which a sample's log-probability is "
                "computed again (model/concept.hpp)");
};

template <class Model>
struct decision_is_not_reflected {
  static_assert(
      never<Model>,
      "dvla: the model's Decision is not reflected; add BOOST_HANA_ADAPT_STRUCT(Decision, members...) "
      "after the struct (core/record.hpp)");
};

template <class Policy, class Knobs>
struct model_knobs_lack_chunk {
  static_assert(never<Policy>,
                "dvla: a run reads the number of actions a decision from the model's knob `chunk`, and this "
                "model's knobs have none; add `int chunk = 1;` to them (docs/slots/model.md)");
};

template <class Model, class Knobs>
struct model_has_no_such_constructor {
  static_assert(
      never<Model>,
      "dvla: a run makes this model with (const Knobs&, const dvla::ModelInputs&, std::uint64_t seed), "
      "and it has no such constructor; add it (docs/slots/model.md)");
};

template <class Model>
struct model_shares_nothing {
  static_assert(
      never<Model>,
      "dvla: a run copies this model to sample from, and it has no constructor (const Model& original, "
      "dvla::ShareFrozen); add it, or `using Base::Base;` where a base has it (model/concept.hpp)");
};

template <class Algorithm, class Knobs>
struct algorithm_has_no_such_constructor {
  static_assert(
      never<Algorithm>,
      "dvla: a run makes this algorithm with (knobs, dvla::BatchShape, std::int64_t action dimensions, "
      "std::uint64_t seed), and it has no such constructor; add it (algorithm/concept.hpp)");
};

template <class Algorithm>
struct algorithm_has_no_update {
  static_assert(
      never<Algorithm>,
      "dvla: this algorithm has no update(model, weights, transition, decision, batch, before_step, "
      "trace) that a run can call; add it, with the types that algorithm/concept.hpp gives them");
};

template <class Algorithm>
struct update_returns_no_stats {
  static_assert(never<Algorithm>,
                "dvla: this algorithm's update returns something else than dvla::UpdateStats; return the "
                "figures of the update (algorithm/update_stats.hpp)");
};

template <class Schedule>
struct schedule_has_no_run {
  static_assert(never<Schedule>,
                "dvla: this schedule has no static dvla::run_result run(stages, const dvla::run_options&, "
                "recorder) that a run can call; add it (schedule/concept.hpp)");
};

template <class Schedule, class Knobs>
struct schedule_lacks_a_knob {
  static_assert(never<Schedule>,
                "dvla: a run reads sampling_threads, training_threads, sampling_stages and deadline_s of a "
                "schedule, and this one's knobs lack one of them; add it (schedule/concept.hpp)");
};

// What is wrong with a shipped policy's own arguments. A policy says so by a member type `mistake`.

template <int Max>
struct staleness_bound_is_out_of_range {
  static_assert(never<staleness_bound_is_out_of_range<Max>>,
                "dvla: Swimlane<Max> needs a staleness bound from 0 (synchronous) to 1024: Swimlane<1>");
};

template <int Rollouts, int Actors>
struct shares_are_negative {
  static_assert(
      never<shares_are_negative<Rollouts, Actors>>,
      "dvla: Separated<Rollouts, Actors> needs shares of at least 0: Separated<3, 1>, or Separated<> "
      "to choose at run time");
};

template <class Correction>
struct not_a_correction {
  static_assert(never<Correction>,
                "dvla: BasicGRPO<Correction> needs a staleness correction, and this is none: Uncorrected, "
                "DecoupledClip, or your own as algorithm/staleness.hpp says");
};

template <class Correction>
struct correction_does_not_join_the_knobs {
  static_assert(
      never<Correction>,
      "dvla: this staleness correction's knobs must derive from the algorithm's, whose knobs they join: "
      "template <class Algorithm> struct knobs : Algorithm { ... }; (algorithm/staleness.hpp)");
};

template <class Model>
struct not_a_model {
  static_assert(never<Model>,
                "dvla: LoRA<Model> wraps a model, and this is none: write LoRA<TinyVLA<>>, for example");
};
/// LoRA around a model whose layers have no names.
template <class Model>
struct takes_no_adapters {
  static_assert(
      never<Model>,
      "dvla: LoRA<Model> wraps a model that declares its linear layers by name (model/parameters.hpp) "
      "and says so by `static constexpr bool takes_adapters = true;`, and this one does not");
};
template <class Model>
struct value_head_of_no_model {
  static_assert(
      never<Model>,
      "dvla: WithValue<Model> wraps a model, and this is none: write WithValue<TinyVLA<>>, for example");
};
template <class Model>
struct has_a_value_head_already {
  static_assert(never<Model>,
                "dvla: WithValue<Model> gives a model a value head, and this one has one already; name it "
                "without WithValue");
};
/// WithValue around a model that gives no values where its inputs ask for them.
template <class Model>
struct takes_no_value_head {
  static_assert(never<Model>,
                "dvla: WithValue<Model> wraps a model that makes a value head where ModelInputs::value_head "
                "asks for one "
                "(TakesValueHead, model/concept.hpp) and says so by `static constexpr bool takes_value_head "
                "= true;`, and "
                "this one does not");
};

}  // namespace dvla::mistake
