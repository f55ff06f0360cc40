// What a model's machinery offers: sampling for the rollout, log-probabilities with a backward pass for the
// trainer, imitation for the warm start, and its weights as one contiguous float32 buffer. No torch here: a
// model may be written with torch, by hand, or with anything else. The algorithm's arithmetic meets it on
// spans: the algorithm computes d loss / d log_prob, the model carries that back to its weights.
//
// Legend: n rows of this call, N rows of a flattened batch, C control steps a chunk, A action dimensions,
// E = C * A log-prob elements a decision, laid out [C, A].
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/weight_range.hpp"
#include "dvla/handoff/stages.hpp"

namespace dvla {

/// How actions are drawn: from the policy's distribution (rollouts) or its mode (evaluation).
enum class Decoding { sample, mode };

/// One named tensor inside the flat weight buffer, for checkpoints.
struct NamedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  ///< in elements
};

/// - `Decision`: a record with everything needed to recompute the sample's log-probability; it has a member
///   `log_prob`, Field<float> [.., C, A], the behaviour policy's.
/// - `decision_layout(leading)`: extents of that record.
/// - `act(observation[n], decoding, seed, decision[n], action[n,C,A])`: draws; the same weights, inputs and
/// seed
///   give the same result. Keeps nothing for a backward pass.
/// - `forward(observation[N], decision[N], rows[n], log_prob[n*E], entropy[n*E])`: log-probabilities of
/// stored
///   decisions under the current weights. `backward(d_log_prob[n*E], d_entropy[n*E])` adds to the gradients;
///   once per forward. With the same weights as the behaviour policy, exp(log_prob - decision.log_prob) is 1
///   within 1e-5.
/// - `imitate(observation[N], action[N,C,A], rows[n], scale)`: behaviour cloning: returns the mean loss of
/// the rows
///   and adds scale * d(mean loss) to the gradients.
/// - `parameters()`, `gradients()`: the same number of floats, stable addresses for the life of the model.
/// - One thread at a time per model object; different objects are independent.
template <class Type>
concept ModelMachinery = Record<typename Type::Decision> &&
    requires(Type& model, const Type& view, Extents leading, const Observation& observation,
             typename Type::Decision& decision, Field<float> action, Decoding decoding, std::uint64_t seed,
             std::span<const std::int64_t> rows, std::span<float> out, std::span<const float> in,
             int threads) {
  { view.decision_layout(leading) } -> std::same_as<typename Type::Decision>;
  { decision.log_prob } -> std::convertible_to<Field<float>>;
  model.act(observation, decoding, seed, decision, action);
  model.forward(observation, decision, rows, out, out);
  model.backward(in, in);
  { model.imitate(observation, action, rows, 1.0) } -> std::convertible_to<double>;
  { model.parameters() } -> std::convertible_to<std::span<float>>;
  { model.gradients() } -> std::convertible_to<std::span<float>>;
  { view.tensors() } -> std::convertible_to<const std::vector<NamedTensor>&>;
  /// Called once by each lane that will use models, in its own thread: how many cores it may use.
  Type::use_threads(threads);
};

/// Is told which unit a model works at, in the thread that calls the model.
class UnitHooks {
 public:
  virtual void before_unit(
      std::size_t unit) = 0;  ///< its parameters are read from now on; may wait, may throw
  virtual void gradient_ready(
      std::size_t unit) = 0;  ///< this backward pass adds nothing more to its gradients

 protected:
  ~UnitHooks() = default;
};

/// Optional: a model in units, so that sharding (sharding/fsdp.hpp) can let their parameters and gradients
/// travel while others are worked at.
/// - `units()`: ascending ranges that cover the flat buffer, in the order in which a forward pass needs them
///   first.
/// - `hook_units(hooks)`: until the next such call, `hooks` is told before a unit's parameters are read (by
///   any call, as often as the model likes), and once a unit and backward pass (or imitate) that its gradient
///   is complete. nullptr, as at the beginning: nobody is.
template <class Type>
concept ModelOfUnits = requires(Type& model, const Type& view, UnitHooks* hooks) {
  { view.units() } -> std::convertible_to<std::vector<WeightRange>>;
  model.hook_units(hooks);
};

/// Optional: `trainable()`: the ranges of the flat buffer that training changes, where not all of it does (as
/// with LoRA): what a control plane sends in its form `trainable`. Sampling is right whatever it says: where
/// anything else has changed, the whole is sent.
template <class Type>
concept ModelOfTrainable = requires(const Type& view) {
  { view.trainable() } -> std::convertible_to<std::vector<WeightRange>>;
};

/// Optional: a model that computes elsewhere than in parameters(), which it copies before each call.
/// - `parameters() const`: to be read.
/// - `weights_written()`: parameters() are now what the caller wants: copies them at once, in the calling
///   lane, so that later calls need not. A new call of parameters() ends that; who writes through a span from
///   before calls this again after each writing, or never.
/// - `enter_lane(kind)`: called in each lane's thread, and again where the thread goes over to another lane's
///   work: the calls that follow are on that lane's stream.
template <class Type>
concept ModelElsewhere = requires(Type& model, const Type& view, lane_kind kind) {
  { view.parameters() } -> std::convertible_to<std::span<const float>>;
  model.weights_written();
  Type::enter_lane(kind);
};

/// A model's weights, to be read. Unlike parameters() of a model that computes elsewhere it says nothing
/// about writing, so another lane than the model's may call it.
template <class Model>
std::span<const float> weights_of(Model& model) {
  if constexpr (requires { std::as_const(model).parameters(); })
    return std::as_const(model).parameters();
  else
    return model.parameters();
}

/// What a model is built for: matched against its needs by its constructor `(knobs, inputs, seed)`, which
/// throws ConfigError in one sentence when they do not fit.
struct ModelInputs {
  ObservationSpec observation;
  ActionSpec action;
  std::int64_t chunk = 0;  ///< C
  /// Where it is to compute: not on the CPU only where its policy says `runs_on_cuda`.
  Device device = Device::cpu;
};

}  // namespace dvla
