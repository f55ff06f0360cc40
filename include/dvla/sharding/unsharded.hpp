// Every trainer holds the whole model: parameters where the model has them, AdamW's two moments beside them,
// and float32 masters where the model computes in 16 bits. The counterpart of FSDP, and what one process
// uses, where nothing is communicated. Several actors are full replicas (data parallelism): gradients are
// summed over them before each step, so all take the same step. Torch-free. One thread at a time.
#pragma once

#include <cmath>
#include <cstdint>
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
class UnshardedWeights : public OwnedPieces {
 public:
  /// Masters and moments live in `memory` (the model pool). `model` must outlive this. Of several actors, all
  /// begin with the first one's weights.
  UnshardedWeights(Model& model, std::pmr::memory_resource& memory, const NoKnobs& = {},
                   const GroupSource& groups = lone_group)
      : OwnedPieces(groups("gradients"), units_to_train(model), false, memory), model_(model) {
    weights_written(model_);
  }

  /// One optimiser step with the gradient accumulated by all actors, the same bits on each. Returns its norm
  /// before clipping; throws Error if that is not finite, and then changes no weight.
  double step(const AdamWKnobs& knobs) {
    for (const WeightUnit& unit : units_) {
      if (unit.count() == 0) continue;
      group_->sum(unit.gradients);
      traffic_.reduced +=
          2 * static_cast<std::int64_t>(unit.gradients.size_bytes()) * (actors() - 1) / actors();
    }
    const auto gradient_of = [&](std::size_t unit) { return units_[unit].gradients; };
    const double norm = std::sqrt(squared_gradient(gradient_of));
    step_pieces(gradient_of, knobs, clip_scale(norm, knobs.max_grad_norm, steps()));
    weights_written(model_);
    return norm;
  }

  /// See sharding/actors.hpp.
  void sum(std::span<double> values) { group_->sum(values); }
  void max(std::span<std::int64_t> values) { group_->max(values); }
  void begin_pass(const Pass&) {}

  /// Bytes that this actor has sent to the others: a sum sends a part of the gradient to each, and the sums
  /// back.
  ShardTraffic traffic() const { return traffic_; }

  /// What each actor packs, in this order: an equal share of the trainable bytes. For whoever has a model and
  /// no weights, as a rollout.
  static std::vector<WeightPart> parts_of(const Model& model, int actors) {
    return equal_parts(trainable_bytes(model.units()), actors);
  }
  /// The model is whole on every actor, always.
  void gather_all() {}
  /// The model's values follow the masters.
  void refresh() {
    give_values();
    weights_written(model_);
  }

 private:
  Model& model_;
  ShardTraffic traffic_;
};

template <class Pipeline>
struct machinery<Unsharded, Pipeline> {
  using type = UnshardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
