// The trainable weights that one actor steps, unit by unit: float32 masters, AdamW's moments and the step
// itself. What every sharding is made of, whether the actor steps whole units or a part of each. Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/sharding/shard_layout.hpp"

namespace dvla {

/// A stretch of the trainable weights that an actor steps, as views: the float32 masters (where the model
/// computes in float32, the model's own values) and AdamW's moments.
struct ShardPiece {
  WeightRange range;
  std::span<float> weight, first_moment, second_moment;
  std::array<std::span<float>, 3> values() const { return {first_moment, second_moment, weight}; }
};

/// One AdamW step of a piece with gradient * scale. The piece is [first, first + its size) of the unit's
/// trainable elements; each run of these has its own factors of learning rate and weight decay. `steps`:
/// taken before.
inline void step_piece(const WeightUnit& unit, std::int64_t first, const ShardPiece& piece,
                       std::span<const float> gradient, const AdamWKnobs& knobs, double scale,
                       std::int64_t steps) {
  const std::int64_t last = first + std::ssize(gradient);
  std::int64_t begin = 0;
  for (const OptimiserRun& run : unit.runs) {
    const std::int64_t from = std::max(begin, first), to = std::min(begin + run.count, last);
    begin += run.count;
    if (from >= to) continue;
    const auto cut = [&](auto whole) {
      return whole.subspan(static_cast<std::size_t>(from - first), static_cast<std::size_t>(to - from));
    };
    AdamWState state{cut(piece.weight), cut(piece.first_moment), cut(piece.second_moment), steps};
    AdamWKnobs own = knobs;
    own.learning_rate *= run.group.learning_rate;
    own.weight_decay *= run.group.weight_decay;
    adamw_update(state, cut(gradient), own, scale);
  }
}

/// A model's units, which hold gradients from now on. Throws Error where one is not what
/// model/concept.hpp says.
template <class Model>
std::vector<WeightUnit> units_to_train(Model& model) {
  model.hold_gradients(true);
  std::vector<WeightUnit> units = model.units();
  for (std::size_t i = 0; i < units.size(); ++i) {
    std::int64_t of_runs = 0;
    for (const OptimiserRun& run : units[i].runs) of_runs += run.count;
    const std::int64_t count = units[i].count(), gradients = std::ssize(units[i].gradients);
    if (of_runs != count || gradients != count)
      throw Error("unit ", i, " of the model has ", count,
                  " trainable elements, but its optimiser runs have ", of_runs, " and its gradients ",
                  gradients, "; all three must be equal");
  }
  return units;
}

/// One actor's share of the trainable weights, and what every sharding answers alike. One thread at a time.
class OwnedPieces {
 public:
  OwnedPieces(const OwnedPieces&) = delete;
  OwnedPieces& operator=(const OwnedPieces&) = delete;

  /// See sharding/actors.hpp.
  int actor() const { return group_->rank(); }
  int actors() const { return group_->size(); }

  void zero_gradients() {
    for (const WeightUnit& unit : units_) std::fill(unit.gradients.begin(), unit.gradients.end(), 0.0F);
  }
  /// Forgets the moments, keeps the weights: between warm start and reinforcement learning.
  void reset_optimiser() {
    for (const Owned& each : owned_)
      for (const std::span<float> moments : {each.piece.first_moment, each.piece.second_moment})
        std::fill(moments.begin(), moments.end(), 0.0F);
    steps_ = 0;
  }
  /// One for each unit of which the actor steps anything: all that a checkpoint has to hold, as views, and the
  /// counter.
  std::vector<ShardPiece> pieces() const {
    std::vector<ShardPiece> all;
    for (const Owned& each : owned_) all.push_back(each.piece);
    return all;
  }
  std::int64_t& steps() { return steps_; }
  /// The masters follow the model's values, all of which were written, alike on every actor. Masters that round
  /// to the values are kept, with what rounding loses, so that values which were only handed round leave a
  /// resumed state as it is.
  void take_parameters() {
    std::vector<std::byte> rounded;
    for (const Owned& each : owned_) {
      const Dtype dtype = units_[each.unit].dtype;
      if (dtype == Dtype::f32) continue;
      rounded.resize(each.values.size());
      from_floats(each.piece.weight, dtype, rounded);
      if (!std::equal(rounded.begin(), rounded.end(), each.values.begin()))
        to_floats(each.values, dtype, each.piece.weight);
    }
  }

  /// What each actor packs, in this order: its part of what the control plane carries.
  const std::vector<WeightPart>& parts() const { return parts_; }
  std::size_t packed_bytes() const { return bytes_in(part()); }
  /// This actor's part as the model computes with it, piece after piece.
  void pack(std::span<std::byte> out) const {
    if (out.size() != packed_bytes())
      throw Error("pack: the buffer has ", out.size(), " bytes, this actor's part of the weights ",
                  packed_bytes());
    for (const ByteRange& range : part()) {
      read_weights(units_, range.offset, out.first(range.bytes));
      out = out.subspan(range.bytes);
    }
  }

 protected:
  /// Of `units`, whose values become the first actor's on all of `group`, this actor steps its part where they
  /// are `sharded`, else all. Masters (where the model computes in 16 bits) and moments live in `memory`.
  OwnedPieces(std::shared_ptr<Group> group, std::vector<WeightUnit> units, bool sharded,
              std::pmr::memory_resource& memory)
      : group_(std::move(group)),
        units_(std::move(units)),
        layout_(units_, sharded ? actors() : 1),
        parts_(sharded ? layout_.parts() : equal_parts(trainable_bytes(units_), actors())) {
    const int owner = sharded ? actor() : 0;
    for (std::size_t unit = 0; unit < units_.size(); ++unit) {
      const WeightUnit& here = units_[unit];
      if (here.count() > 0) group_->broadcast(here.values, 0);
      const auto part = layout_.within(unit, owner);
      const auto first = static_cast<std::size_t>(part.offset), count = static_cast<std::size_t>(part.count);
      if (count == 0) continue;
      const bool masters = here.dtype != Dtype::f32;
      const std::span<float> state(states_.emplace_back((masters ? 3 : 2) * count, 0.0F, &memory));
      const ShardPiece piece{layout_.range(unit, owner),
                             masters ? state.subspan(2 * count) : here.floats().subspan(first, count),
                             state.first(count), state.subspan(count, count)};
      const std::size_t bytes = bytes_of(here.dtype);
      owned_.push_back({unit, part.offset, here.values.subspan(first * bytes, count * bytes), piece});
    }
    take_parameters();
  }
  ~OwnedPieces() = default;

  /// Of `gradient_of(unit)`, the piece's.
  template <class GradientOf>
  double squared_gradient(GradientOf gradient_of) const {
    double squares = 0;
    for (const Owned& each : owned_) squares += squared_norm(gradient_of(each.unit));
    return squares;
  }
  /// One AdamW step with gradient_of(unit) * scale; the model's values follow.
  template <class GradientOf>
  void step_pieces(GradientOf gradient_of, const AdamWKnobs& knobs, double scale) {
    for (const Owned& each : owned_)
      step_piece(units_[each.unit], each.first, each.piece, gradient_of(each.unit), knobs, scale, steps_);
    ++steps_;
    give_values();
  }
  /// The model's values follow the masters.
  void give_values() {
    for (const Owned& each : owned_)
      if (const Dtype dtype = units_[each.unit].dtype; dtype != Dtype::f32)
        from_floats(each.piece.weight, dtype, each.values);
  }
  const WeightPart& part() const { return parts_[static_cast<std::size_t>(actor())]; }

  std::shared_ptr<Group> group_;  ///< of the training lane's thread
  const std::vector<WeightUnit> units_;
  const ShardLayout layout_;

 private:
  struct Owned {
    std::size_t unit;
    std::int64_t first;           ///< of the unit's trainable elements
    std::span<std::byte> values;  ///< what the model computes with
    ShardPiece piece;
  };
  std::vector<WeightPart> parts_;
  std::vector<std::pmr::vector<float>> states_;  ///< a unit's moments, and masters
  std::vector<Owned> owned_;
  std::int64_t steps_ = 0;
};

}  // namespace dvla
