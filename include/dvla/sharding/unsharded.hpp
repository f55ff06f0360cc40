// Every trainer holds the whole model: parameters where the model has them, AdamW's two moments beside them.
// The counterpart of FSDP, and what one process uses, where nothing is communicated. Several actors are full
// replicas (data parallelism): gradients are summed over them before each step, so all take the same step.
// Torch-free. One thread at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/field.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/sharding/actors.hpp"
#include "dvla/sharding/descriptors.hpp"

namespace dvla {

template <ModelMachinery Model>
class UnshardedWeights {
 public:
  /// The moments live in `memory` (the model pool) and begin at 0. `model` must outlive this. Of several
  /// actors, all begin with the first one's weights.
  UnshardedWeights(Model& model, std::pmr::memory_resource& memory, const NoKnobs& = {},
                   const GroupSource& groups = lone_group)
      : model_(model),
        group_(groups("gradients")),
        moments_(2 * model.parameters().size(), 0.0F, &memory),
        state_{model.parameters(),
               {moments_.data(), model.parameters().size()},
               {moments_.data() + model.parameters().size(), model.parameters().size()},
               0} {
    group_->broadcast(std::as_writable_bytes(state_.parameter), 0);
  }
  UnshardedWeights(const UnshardedWeights&) = delete;
  UnshardedWeights& operator=(const UnshardedWeights&) = delete;

  void zero_gradients() {
    const std::span<float> gradients = model_.gradients();
    std::fill(gradients.begin(), gradients.end(), 0.0F);
  }
  /// One optimiser step with the gradient accumulated by all actors, the same bits on each. Returns its norm
  /// before clipping; throws Error if that is not finite, and then changes no weight.
  double step(const AdamWKnobs& knobs) {
    group_->sum(model_.gradients());
    traffic_.reduced += 2 * static_cast<std::int64_t>(model_.gradients().size_bytes()) * (actors() - 1) /
                        std::max(actors(), 1);
    return adamw_step(state_, model_.gradients(), knobs);
  }

  /// See sharding/actors.hpp.
  int actor() const { return group_->rank(); }
  int actors() const { return group_->size(); }
  void sum(std::span<double> values) { group_->sum(values); }
  void max(std::span<std::int64_t> values) { group_->max(values); }
  void begin_micro_batch(bool) {}

  /// Bytes that this actor has sent to the others: a sum sends a part of the gradient to each, and the sums
  /// back.
  ShardTraffic traffic() const { return traffic_; }

  /// Forgets the moments, keeps the weights: between warm start and reinforcement learning.
  void reset_optimiser() {
    std::fill(moments_.begin(), moments_.end(), 0.0F);
    state_.step = 0;
  }

  /// What each actor packs, in this order: an equal share of model.parameters(). For whoever has a model and
  /// no weights, as a rollout.
  static std::vector<WeightPart> parts_of(Model& model, int actors) {
    return equal_parts(std::ssize(model.parameters()), actors);
  }
  std::vector<WeightPart> parts() const { return parts_of(model_, actors()); }
  /// Bytes that `pack` writes: this actor's part of what the control plane carries.
  std::size_t packed_bytes() const { return share().size_bytes(); }
  void pack(std::span<std::byte> out) const {
    if (out.size() != packed_bytes())
      throw Error("UnshardedWeights::pack: the buffer has " + std::to_string(out.size()) +
                  " bytes, this actor's part of the weights " + std::to_string(packed_bytes()));
    if (!out.empty()) std::memcpy(out.data(), share().data(), out.size());
  }
  /// model.parameters() is whole on every actor, always.
  void gather_all() {}

  /// Everything that a checkpoint has to hold, as views.
  AdamWState& state() { return state_; }
  std::vector<ShardPiece> pieces() {
    return {{{0, std::ssize(state_.parameter)}, state_.parameter, state_.first_moment, state_.second_moment}};
  }
  /// As ShardedWeights has them: here the model's parameters are the weights.
  void refresh() {}
  void take_parameters() {}

 private:
  std::span<const float> share() const {
    const auto [first, count] =
        share_of(static_cast<std::int64_t>(state_.parameter.size()), actors(), actor());
    return state_.parameter.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  }

  Model& model_;
  std::shared_ptr<Group> group_;
  ShardTraffic traffic_;
  std::pmr::vector<float> moments_;
  AdamWState state_;
};

template <class Pipeline>
struct machinery<Unsharded, Pipeline> {
  using type = UnshardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
