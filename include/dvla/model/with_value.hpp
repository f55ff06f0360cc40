// WithValue's machinery: any model that takes a value head (TakesValueHead, model/concept.hpp), asked for one.
// A decision's record gets what `act` thought its observation worth, and the head trains at a rate of its own,
// beside a frozen model too: WithValue and LoRA may stand in either order. The policy is the same as without,
// to the bit; it shares its body with the head, so a loss of values moves both. In TinyVLA the head is a query
// of its own through the transformer's blocks and a small MLP, in the published models an MLP over what the language
// model puts out. No head on a detached body, no distribution over
// values, no normalisation of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "dvla/core/machinery.hpp"
#include "dvla/core/members.hpp"
#include "dvla/core/record.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/extents_with.hpp"

namespace dvla {

/// A model's record of a decision, and its values.
template <class Base>
struct ValueDecision : Base {
  Field<float> value;  ///< [.., V], V = 1 or C, by `value_level`
};

}  // namespace dvla

template <class Base>
struct boost::hana::accessors_impl<dvla::ValueDecision<Base>>
    : dvla::more_members<Base, &dvla::ValueDecision<Base>::value> {};

namespace dvla {

/// Fulfils HasValues. One thread at a time per object, as Base.
template <class Base>
class ValueModel : public Base {
  static_assert(TakesValueHead<Base>,
                "dvla: WithValue<Model> wraps a model whose machinery gives values as TakesValueHead says "
                "(model/concept.hpp); add act with values, values, and forward and backward with values");

 public:
  using Decision = ValueDecision<typename Base::Decision>;

  /// Throws as Base does.
  template <class BaseKnobs>
  ValueModel(const ValueKnobs<BaseKnobs>& knobs, const ModelInputs& inputs, std::uint64_t seed)
      : Base(knobs, with_head(knobs, inputs), seed), values_(values_of(knobs, inputs)) {}

  ValueModel(const ValueModel& original, ShareFrozen)
      : Base(original, share_frozen), values_(original.values_) {}

  template <class BaseKnobs>
  static ModelPlan plan(const ValueKnobs<BaseKnobs>& knobs, const ModelInputs& inputs,
                        std::int64_t sampling_rows, std::int64_t training_rows) {
    ModelPlan plan = Base::plan(knobs, with_head(knobs, inputs), sampling_rows, training_rows);
    const std::size_t own = static_cast<std::size_t>(values_of(knobs, inputs)) * sizeof(float);
    plan.decision_bytes += (own + record_alignment - 1) / record_alignment * record_alignment;
    return plan;
  }

  Decision decision_layout(const Extents& leading) const {
    return {Base::decision_layout(leading), Field<float>(extents_with(leading, {values_}))};
  }

  void act(const Observation& observation, std::span<const std::int64_t> rows, Decoding decoding,
           std::uint64_t seed, Decision& decision, Field<float> action) {
    Base::act(observation, rows, decoding, seed, decision, action, decision.value);
  }

 private:
  template <class Knobs>
  static std::int64_t values_of(const Knobs& knobs, const ModelInputs& inputs) {
    return knobs.value_level == RewardLevel::action ? inputs.chunk : 1;
  }
  template <class Knobs>
  static ModelInputs with_head(const Knobs& knobs, ModelInputs inputs) {
    inputs.value_head = {values_of(knobs, inputs), {.learning_rate = knobs.value_learning_rate}};
    return inputs;
  }

  std::int64_t values_;  ///< V
};

template <class Model, class Pipeline>
struct machinery<WithValue<Model>, Pipeline> {
  using base = typename machinery<Model, Pipeline>::type;
  using type =
      std::conditional_t<std::is_same_v<base, detail::no_machinery>, detail::no_machinery, ValueModel<base>>;
};

}  // namespace dvla
