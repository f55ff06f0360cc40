// Every trainer holds the whole model: parameters where the model has them, AdamW's two moments beside them,
// and float32 masters where the model computes in 16 bits. The counterpart of FSDP, and what one process
// uses, where nothing is communicated. Several actors are full replicas (data parallelism): gradients are
// summed over them before each step, so all take the same step. Torch-free. One thread at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/sharding/actors.hpp"
#include "dvla/sharding/descriptors.hpp"
#include "dvla/sharding/pieces.hpp"

namespace dvla {

template <ModelMachinery Model>
class UnshardedWeights {
 public:
  /// Masters and moments live in `memory` (the model pool). `model` must outlive this. Of several actors, all
  /// begin with the first one's weights.
  UnshardedWeights(Model& model, std::pmr::memory_resource& memory, const NoKnobs& = {},
                   const GroupSource& groups = lone_group)
      : model_(model),
        group_(groups("gradients")),
        whole_(units_to_train(model), ShardLayout(model.units(), 1), 0, memory),
        part_(parts()[static_cast<std::size_t>(actor())]) {
    for (const WeightUnit& unit : whole_.units())
      if (unit.count() > 0) group_->broadcast(unit.values, 0);
    weights_written(model_);
    take_parameters();
  }

  void zero_gradients() { whole_.zero_gradients(); }
  /// One optimiser step with the gradient accumulated by all actors, the same bits on each. Returns its norm
  /// before clipping; throws Error if that is not finite, and then changes no weight.
  double step(const AdamWKnobs& knobs) {
    for (const WeightUnit& unit : whole_.units()) {
      if (unit.count() == 0) continue;
      group_->sum(unit.gradients);
      traffic_.reduced +=
          2 * static_cast<std::int64_t>(unit.gradients.size_bytes()) * (actors() - 1) / actors();
    }
    const auto gradient_of = [&](std::size_t unit) { return whole_.units()[unit].gradients; };
    const double norm = std::sqrt(whole_.squared_norm(gradient_of));
    whole_.step(gradient_of, knobs, clip_scale(norm, knobs.max_grad_norm, whole_.steps()));
    weights_written(model_);
    return norm;
  }

  /// See sharding/actors.hpp.
  int actor() const { return group_->rank(); }
  int actors() const { return group_->size(); }
  void sum(std::span<double> values) { group_->sum(values); }
  void max(std::span<std::int64_t> values) { group_->max(values); }
  void begin_pass(const Pass&) {}

  /// Bytes that this actor has sent to the others: a sum sends a part of the gradient to each, and the sums
  /// back.
  ShardTraffic traffic() const { return traffic_; }

  /// Forgets the moments, keeps the weights: between warm start and reinforcement learning.
  void reset_optimiser() { whole_.reset(); }

  /// What each actor packs, in this order: an equal share of the trainable bytes. For whoever has a model and
  /// no weights, as a rollout.
  static std::vector<WeightPart> parts_of(const Model& model, int actors) {
    return equal_parts(trainable_bytes(model.units()), actors);
  }
  std::vector<WeightPart> parts() const { return parts_of(model_, actors()); }
  /// Bytes that `pack` writes: this actor's part of what the control plane carries.
  std::size_t packed_bytes() const { return bytes_in(part_); }
  void pack(std::span<std::byte> out) const { whole_.pack(part_, out); }
  /// The model is whole on every actor, always.
  void gather_all() {}

  /// One for each unit that trains: everything that a checkpoint has to hold, as views.
  std::vector<ShardPiece> pieces() { return whole_.pieces(); }
  std::int64_t& steps() { return whole_.steps(); }
  /// The model's values follow the masters.
  void refresh() {
    whole_.give_values();
    weights_written(model_);
  }
  /// The masters follow the model's values.
  void take_parameters() { whole_.take_values(); }

 private:
  Model& model_;
  std::shared_ptr<Group> group_;
  ShardTraffic traffic_;
  OwnedPieces whole_;
  WeightPart part_;  ///< what this actor packs
};

template <class Pipeline>
struct machinery<Unsharded, Pipeline> {
  using type = UnshardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
