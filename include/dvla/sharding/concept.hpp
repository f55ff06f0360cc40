// What a type needs to fill the sharding slot, and what its machinery offers: the optimiser's side of the
// trainable weights, float32 masters where the model computes in 16 bits, and AdamW's moments. The policy is
// checked when a pipeline is composed, the machinery when it is built (pipeline/buildable.hpp). No torch.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "dvla/core/machinery.hpp"

namespace dvla {

struct AdamWKnobs;  // algorithm/adamw.hpp
struct ShardPiece;  // sharding/pieces.hpp

/// Optional: `spans_processes`: the model is spread over several processes.
template <class Type>
concept ShardingPolicy = NamedPolicyFor<Type, sharding_slot>;

/// - constructor `(model, memory)`: masters and moments live in `memory`, for trainable parameters only;
///   moments begin at 0. The model holds gradients from then on. Both outlive the weights.
/// - `zero_gradients()`; `step(knobs)` is one AdamW step with the accumulated gradient and returns its norm
///   before clipping. A norm that is not finite is an Error, and nothing changes.
/// - `reset_optimiser()` forgets moments and step counter and keeps the weights.
/// - `pieces()`, `steps()`: views of everything that a checkpoint has to hold, and the counter. After writing
///   masters through them `refresh()` brings the model up to date. `take_parameters()` is the other way
///   round: the model's values were written, and the masters follow.
/// - `packed_bytes()`, `pack(bytes)`: this trainer's part of the trainable weights as the model computes with
///   them; of a single trainer the whole, unit after unit. A buffer of another size is an Error. Does not
///   change anything.
/// - One thread at a time. The training lane steps, the distribution lane packs; the run lets them take
///   turns. testing/sharding.hpp checks all of that.
template <class Type, class Model>
concept ShardingMachinery = std::constructible_from<Type, Model&, std::pmr::memory_resource&> &&
    requires(Type& weights, const AdamWKnobs& knobs, std::span<std::byte> bytes) {
  weights.zero_gradients();
  { weights.step(knobs) } -> std::convertible_to<double>;
  weights.reset_optimiser();
  { weights.pieces() } -> std::same_as<std::vector<ShardPiece>>;
  { weights.steps() } -> std::same_as<std::int64_t&>;
  weights.refresh();
  weights.take_parameters();
  { weights.packed_bytes() } -> std::convertible_to<std::size_t>;
  weights.pack(bytes);
};

}  // namespace dvla
