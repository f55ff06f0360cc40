// Every trainer holds the whole model: parameters where the model has them, AdamW's two moments beside them.
// The counterpart of FSDP, and what one process uses. Gradients come from the model; nothing is communicated.
// One thread at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <span>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/field.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/sharding/descriptors.hpp"

namespace dvla {

template <ModelMachinery Model>
class UnshardedWeights {
 public:
  /// The moments live in `memory` (the model pool) and begin at 0. `model` must outlive this.
  UnshardedWeights(Model& model, std::pmr::memory_resource& memory)
      : model_(model),
        moments_(2 * model.parameters().size(), 0.0F, &memory),
        state_{model.parameters(),
               {moments_.data(), model.parameters().size()},
               {moments_.data() + model.parameters().size(), model.parameters().size()},
               0} {}
  UnshardedWeights(const UnshardedWeights&) = delete;
  UnshardedWeights& operator=(const UnshardedWeights&) = delete;

  void zero_gradients() {
    const std::span<float> gradients = model_.gradients();
    std::fill(gradients.begin(), gradients.end(), 0.0F);
  }
  /// One optimiser step with the accumulated gradient. Returns its norm before clipping; throws Error if that
  /// is not finite, and then changes nothing.
  double step(const AdamWKnobs& knobs) { return adamw_step(state_, model_.gradients(), knobs); }

  /// Forgets the moments, keeps the weights: between warm start and reinforcement learning.
  void reset_optimiser() {
    std::fill(moments_.begin(), moments_.end(), 0.0F);
    state_.step = 0;
  }

  /// Bytes that `pack` writes: what the control plane carries.
  std::size_t packed_bytes() const { return state_.parameter.size_bytes(); }
  void pack(std::span<std::byte> out) const {
    if (out.size() != packed_bytes())
      throw Error("UnshardedWeights::pack: the buffer is not the size of the weights");
    std::memcpy(out.data(), state_.parameter.data(), out.size());
  }

  /// Everything that a checkpoint has to hold, as views.
  AdamWState& state() { return state_; }

 private:
  Model& model_;
  std::pmr::vector<float> moments_;
  AdamWState state_;
};

template <class Pipeline>
struct machinery<Unsharded, Pipeline> {
  using type = UnshardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
