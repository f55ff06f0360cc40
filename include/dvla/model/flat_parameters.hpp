// A model's weights as one contiguous float32 buffer and its gradients as another. The tensors that the
// network computes with are views into them: an optimiser steps the buffers, a control plane copies them, and
// autograd adds into the gradient views in place. Tensors stand in units (model/concept.hpp), which hooks are
// told about; without hooks that costs a comparison a unit. Host memory only.
#pragma once

#include <ATen/ops/from_blob.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "dvla/model/concept.hpp"

namespace dvla::detail {

class FlatParameters {
 public:
  /// Tensors that are declared from here on are a new unit.
  void begin_unit() { units_.push_back({count_, 0}); }
  /// Declares a tensor; `member` becomes its view when `allocate` is called, and must live as long as this.
  void declare(std::string name, std::vector<std::int64_t> shape, at::Tensor& member) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    tensors_.push_back({std::move(name), std::move(shape), count_});
    members_.push_back(&member);
    count_ += count;
    units_.back().count += count;
    tensors_of_.resize(units_.size());
    ++tensors_of_.back();
  }

  /// Makes the two buffers, zeroed, and all views. Once.
  void allocate() {
    const c10::InferenceMode ordinary(false);
    values_ = make_buffer();
    gradients_ = make_buffer();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const NamedTensor& tensor = tensors_[i];
      *members_[i] = at::from_blob(values_.get() + tensor.offset, tensor.shape, at::kFloat);
      members_[i]->requires_grad_(true);
      members_[i]->mutable_grad() = at::from_blob(gradients_.get() + tensor.offset, tensor.shape, at::kFloat);
    }
  }

  std::span<float> values() { return {values_.get(), static_cast<std::size_t>(count_)}; }
  std::span<float> gradients() { return {gradients_.get(), static_cast<std::size_t>(count_)}; }
  const std::vector<NamedTensor>& tensors() const { return tensors_; }

  const std::vector<WeightRange>& units() const { return units_; }
  /// nullptr: none, and autograd forgets that there were any.
  void hook(UnitHooks* hooks) {
    hooks_ = hooks;
    waiting_ = tensors_of_;
    std::size_t next = 0;
    for (std::size_t unit = 0; unit < units_.size(); ++unit)
      for (std::size_t i = 0; i < tensors_of_[unit]; ++i, ++next)
        torch::autograd::impl::set_post_acc_grad_hooks(
            *members_[next], hooks == nullptr ? nullptr : std::make_unique<Added>(*this, unit));
  }
  /// The network is about to use the unit.
  void before(std::size_t unit) const {
    if (hooks_ != nullptr) hooks_->before_unit(unit);
  }
  /// A backward pass is over: what it did not reach, it adds nothing to.
  void backward_done() {
    if (hooks_ == nullptr) return;
    for (std::size_t unit = units_.size(); unit-- > 0;)
      if (waiting_[unit] > 0) hooks_->gradient_ready(unit);
    waiting_ = tensors_of_;
  }
  /// A backward pass begins.
  void backward_begins() {
    if (hooks_ != nullptr) waiting_ = tensors_of_;
  }

 private:
  /// Autograd has added all of this pass's gradient to one of the unit's tensors.
  struct Added final : torch::autograd::PostAccumulateGradHook {
    Added(FlatParameters& of, std::size_t which) : all(of), unit(which) {}
    void operator()(const at::Tensor&) override {
      if (all.waiting_[unit] > 0 && --all.waiting_[unit] == 0) all.hooks_->gradient_ready(unit);
    }
    FlatParameters& all;
    std::size_t unit;
  };

  static constexpr std::align_val_t alignment{64};
  struct Release {
    void operator()(float* block) const { ::operator delete[](block, alignment); }
  };
  using Buffer = std::unique_ptr<float[], Release>;
  Buffer make_buffer() const {
    Buffer buffer(new (alignment) float[static_cast<std::size_t>(count_)]);
    std::fill_n(buffer.get(), count_, 0.0f);
    return buffer;
  }

  std::vector<NamedTensor> tensors_;
  std::vector<at::Tensor*> members_;
  std::vector<WeightRange> units_;
  std::vector<std::size_t> tensors_of_,
      waiting_;  ///< of each unit: its tensors; those without their gradient
  UnitHooks* hooks_ = nullptr;
  std::int64_t count_ = 0;
  Buffer values_, gradients_;
};

}  // namespace dvla::detail
