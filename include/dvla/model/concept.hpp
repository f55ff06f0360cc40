// What a model's machinery offers: sampling for the rollout, log-probabilities with a backward pass for the
// trainer, imitation for the warm start, and its weights as named parameters in units. No torch here: a model
// may be written with torch, by hand, or with anything else. The algorithm's arithmetic meets it on spans:
// the algorithm computes d loss / d log_prob, the model carries that back to its weights.
//
// Legend: n rows of this call, N rows of a flattened batch, C control steps a chunk, A action dimensions,
// E = C * A log-prob elements a decision, laid out [C, A].
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/handoff/stages.hpp"

namespace dvla {

/// How actions are drawn: from the policy's distribution (rollouts) or its mode (evaluation).
enum class Decoding { sample, mode };

/// Says that a constructor makes a copy which shares what is frozen.
struct ShareFrozen {};
inline constexpr ShareFrozen share_frozen{};

/// Which way a call goes through a model's units.
enum class Direction : std::uint8_t { forward, backward };

/// Is told which unit a model works at, in the thread that calls the model.
class UnitHooks {
 public:
  /// Its parameters are read from now on; may wait, may throw.
  virtual void before_unit(std::size_t unit, Direction direction) = 0;
  /// They are not read any more, until before_unit names it again.
  virtual void after_unit(std::size_t unit, Direction direction) = 0;
  /// This backward pass adds nothing more to its gradients.
  virtual void gradient_ready(std::size_t unit) = 0;

 protected:
  ~UnitHooks() = default;
};

/// - `Decision`: a record with everything needed to recompute the sample's log-probability; it has a member
///   `log_prob`, Field<float> [.., C, A], the behaviour policy's.
/// - `decision_layout(leading)`: extents of that record.
/// - `act(observation[N], rows[n], decoding, seed, decision[N], action[N,C,A])`: draws for these rows,
///   ascending, and writes nothing of others. The same weights, inputs and seed give the same result; a row's
///   random numbers do not depend on which others there are. Keeps nothing for a backward pass.
/// - `forward(observation[N], decision[N], rows[n], log_prob[n*E], entropy[n*E])`: log-probabilities of
///   stored decisions under the current weights. `backward(d_log_prob[n*E], d_entropy[n*E])` adds to the
///   gradients; once per forward. With the same weights as the behaviour policy, exp(log_prob -
///   decision.log_prob) is 1: within 1e-5 in float32, and as model/self_test.hpp says in 16 bits.
/// - `imitate(observation[N], action[N,C,A], rows[n], scale)`: behaviour cloning: returns the mean loss of
///   the rows and adds scale * d(mean loss) to the gradients.
/// - `parameters()`: all of them, frozen and aliased ones included. Does not change for the life of the
///   model but for `device`'s addresses in `data`, which stay too.
/// - `units()`: the trainable ones as spans, by unit. Their addresses stay for the life of the model; the
///   gradients' as long as they are held.
/// - `hold_gradients(holds)`: makes gradients, all 0, or drops them; a call that changes nothing does
///   nothing. A new model has none, and then backward and imitate are an Error.
/// - constructor `(original, share_frozen)`: another model that computes the same: it refers to the same
///   frozen parameters, for which the original must outlive it, owns its trainable ones, and holds no
///   gradients.
/// - `hook_units(hooks)`: until the next such call, `hooks` is told before a unit's parameters are read, and
///   that they are not any more; and once a unit and backward pass (or imitate) that its gradient is complete.
///   A forward or imitate uses each unit once, in ascending order, its backward pass in descending order, and
///   a unit's gradient is complete before the unit two below it is used; `act` may use them in any order, as
///   often as it likes, and need not say that it does not read them any more. A call to `values` is a forward.
///   nullptr, as at the beginning: nobody is told.
/// - One thread at a time per model object; different objects are independent, copies included.
template <class Type>
concept ModelMachinery = Record<typename Type::Decision> &&
    std::constructible_from<Type, const Type&, ShareFrozen> &&
    requires(Type& model, const Type& view, Extents leading, const Observation& observation,
             typename Type::Decision& decision, Field<float> action, Decoding decoding, std::uint64_t seed,
             std::span<const std::int64_t> rows, std::span<float> out, std::span<const float> in, int threads,
             UnitHooks* hooks) {
  { view.decision_layout(leading) } -> std::same_as<typename Type::Decision>;
  { decision.log_prob } -> std::convertible_to<Field<float>>;
  model.act(observation, rows, decoding, seed, decision, action);
  model.forward(observation, decision, rows, out, out);
  model.backward(in, in);
  { model.imitate(observation, action, rows, 1.0) } -> std::convertible_to<double>;
  { view.parameters() } -> std::convertible_to<const std::vector<Parameter>&>;
  { view.units() } -> std::convertible_to<const std::vector<WeightUnit>&>;
  model.hold_gradients(true);
  model.hook_units(hooks);
  /// Called once by each lane that will use models, in its own thread: how many cores it may use.
  Type::use_threads(threads);
};

/// A model with a value head. `Decision` then has a member `value`, Field<float> [.., V]: what `act` thought
/// its observation worth, V values a decision (1, or C: one a control step).
/// - `values(observation[N], rows[n], value[n*V])`: the same for any observations: for bootstrapping.
/// - `forward(observation, decision, rows, log_prob, entropy, value[n*V])` gives values too, and
///   `backward(d_log_prob, d_entropy, d_value[n*V])` takes the loss's slope in them. The forms without values
///   are those of ModelMachinery: with a slope of 0.
template <class Type>
concept HasValues = ModelMachinery<Type> &&
    requires(Type& model, const Observation& observation, const typename Type::Decision& decision,
             std::span<const std::int64_t> rows, std::span<float> out, std::span<const float> in) {
  { decision.value } -> std::convertible_to<Field<float>>;
  model.values(observation, rows, out);
  model.forward(observation, decision, rows, out, out, out);
  model.backward(in, in, in);
};

/// A model that knows a reference policy, which its training does not change (without its adapters, for one).
/// - `reference(observation[N], decision[N], rows[n], log_prob[n*E])`: log-probabilities of stored decisions under it.
///   For hooks it is a forward; keeps nothing for a backward pass.
template <class Type>
concept HasReference = ModelMachinery<Type> &&
    requires(Type& model, const Observation& observation, const typename Type::Decision& decision,
             std::span<const std::int64_t> rows, std::span<float> out) {
  model.reference(observation, decision, rows, out);
};

/// A model that WithValue can wrap: where its inputs ask for a value head it has one, beside the same policy
/// as without, and gives the values that HasValues speaks of. Its policy says so by `static constexpr bool
/// takes_value_head = true;`.
/// - `act(observation[N], rows[n], decoding, seed, decision[N], action[N,C,A], value[N,V])`; the form without
///   `value` computes none.
/// - `values`, and `forward` and `backward` with values, as HasValues has them.
template <class Type>
concept TakesValueHead = ModelMachinery<Type> &&
    requires(Type& model, const Observation& observation, typename Type::Decision& decision,
             Field<float> action, Decoding decoding, std::uint64_t seed, std::span<const std::int64_t> rows,
             std::span<float> out, std::span<const float> in) {
  model.act(observation, rows, decoding, seed, decision, action, action);
  model.values(observation, rows, out);
  model.forward(observation, decision, rows, out, out, out);
  model.backward(in, in, in);
};

/// Optional: a model that computes elsewhere than where units() has its weights.
/// - `weights_written()`: the caller has written to them; copies them where they are computed with, in the
///   calling lane. Called after each writing, before the next call that computes.
/// - `enter_lane(kind)`: called in each lane's thread, and again where the thread goes over to another lane's
///   work: the calls that follow are on that lane's stream.
template <class Type>
concept ModelElsewhere = requires(Type& model, lane_kind kind) {
  model.weights_written();
  Type::enter_lane(kind);
};

/// To be called by whoever has written to a model's weights.
template <class Model>
void weights_written(Model& model) {
  if constexpr (ModelElsewhere<Model>) model.weights_written();
}

/// Whether any of it is computed in 16 bits.
template <class Model>
bool computes_in_16_bits(const Model& model) {
  const auto& all = model.parameters();
  return std::any_of(all.begin(), all.end(), [](const Parameter& each) { return each.dtype != Dtype::f32; });
}

/// Low-rank adapters beside the linear layers of a model, which is frozen (Hu et al., arXiv 2106.09685): a
/// layer's output gets (alpha / rank) * B (A x). A is drawn, B begins at 0.
struct Adapters {
  int rank = 0;  ///< 0: none, all parameters train
  double alpha = 16;
  std::string targets{};  ///< ECMAScript regular expression that a layer's whole name matches; empty: all
  FrozenViews base{};     ///< of the frozen model, where it computes in host memory; empty: nowhere
};

/// Before a layer's name in the names of its adapter, `.lora_A.weight` and `.lora_B.weight` behind it: PEFT's.
inline constexpr std::string_view adapter_prefix = "base_model.model.";

/// A value head beside the action head of a model that takes one (WithValue, model/with_value.hpp).
struct ValueHead {
  std::int64_t values = 0;  ///< V a decision; 0: no head
  OptimiserGroup group{};   ///< of all its parameters
};

/// What a model is built for: matched against its needs by its constructor `(knobs, inputs, seed)`, which
/// throws ConfigError in one sentence when they do not fit.
struct ModelInputs {
  ObservationSpec observation;
  ActionSpec action;
  std::int64_t chunk = 0;  ///< C
  /// Where it is to compute: not on the CPU only where its policy says `runs_on_cuda`.
  Device device = Device::cpu;
  /// Only for models that name their linear layers (model/parameters.hpp).
  Adapters adapters{};
  /// Only for models that take a value head (TakesValueHead).
  ValueHead value_head{};
};

/// Where the fields of an observation must lie that a model is given: in host memory, unless its machinery has
/// `static constexpr Device reads_on`.
template <class Model>
inline constexpr Device reads_on = [] {
  if constexpr (requires { Model::reads_on; }) return Model::reads_on;
  return Device::cpu;
}();

/// Throws ConfigError where an environment gives a field elsewhere than the model reads it.
inline void check_devices(const ObservationSpec& given, std::string_view environment, Device read,
                          std::string_view model) {
  const auto check = [&](const std::string& field, Device lies) {
    if (lies != read)
      throw ConfigError("the environment " + std::string(environment) + " gives " + field + " on " +
                        enum_name(lies) + ", and the model " + std::string(model) + " reads it on " +
                        enum_name(read) + "; choose others of one device");
  };
  for (const CameraSpec& camera : given.cameras)
    check("the frames of its camera '" + camera.name + "'", camera.device);
  if (given.proprioception > 0) check("its proprioception", given.proprioception_device);
}

/// What a model is going to take, said by its machinery's `plan(knobs, inputs, sampling_rows, training_rows)`
/// before it is made: where a model has this static member, a run prints and checks it before it allocates.
struct ModelPlan {
  std::vector<Parameter> parameters{};  ///< as parameters(), without addresses
  std::size_t decision_bytes = 0;       ///< of one decision's record
  std::size_t sampling_bytes = 0;       ///< activations of an act with so many rows, at the peak
  std::size_t training_bytes = 0;       ///< of a forward and backward, with what the graph keeps
  std::size_t cloning_bytes = 0;        ///< of an imitate, where that takes more
  std::vector<std::string> notes{};     ///< for people, a line each: where its weights come from
};
template <class Type, class Knobs>
concept PlanningModel = requires(const Knobs& knobs, const ModelInputs& inputs, std::int64_t rows) {
  { Type::plan(knobs, inputs, rows, rows) } -> std::same_as<ModelPlan>;
};

}  // namespace dvla
