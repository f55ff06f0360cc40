// What a type needs to fill the sharding slot, and what its machinery offers: the trainer's weights with
// their gradients and AdamW's moments. The policy is checked when a pipeline is composed, the machinery when
// it is built (pipeline/buildable.hpp). No torch.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory_resource>
#include <span>

#include "dvla/core/machinery.hpp"

namespace dvla {

struct AdamWKnobs;  // algorithm/adamw.hpp
struct AdamWState;  // algorithm/adamw.hpp

/// Optional: `spans_processes`: the model is spread over several processes.
template <class Type>
concept ShardingPolicy = NamedPolicyFor<Type, sharding_slot>;

/// - constructor `(model, memory)`: the moments live in `memory` and begin at 0; both outlive the weights.
/// - `zero_gradients()`; `step(knobs)` is one AdamW step with the accumulated gradient and returns its norm
/// before
///   clipping. A norm that is not finite is an Error, and nothing changes.
/// - `reset_optimiser()` forgets moments and step counter and keeps the weights.
/// - `packed_bytes()`, `pack(bytes)`: this trainer's part of the weights as they stand; of a single trainer
/// the
///   whole, as model.parameters() has it. A buffer of another size is an Error. Does not change anything.
/// - `state()`: views of everything that a checkpoint has to hold; writing through them restores it.
/// - One thread at a time. The training lane steps, the distribution lane packs; the run lets them take
/// turns. testing/sharding.hpp checks all of that.
template <class Type, class Model>
concept ShardingMachinery = std::constructible_from<Type, Model&, std::pmr::memory_resource&> &&
    requires(Type& weights, const AdamWKnobs& knobs, std::span<std::byte> bytes) {
  weights.zero_gradients();
  { weights.step(knobs) } -> std::convertible_to<double>;
  weights.reset_optimiser();
  { weights.packed_bytes() } -> std::convertible_to<std::size_t>;
  weights.pack(bytes);
  { weights.state() } -> std::same_as<AdamWState&>;
};

}  // namespace dvla
