// A model's weights as one contiguous float32 buffer and its gradients as another. The tensors that the
// network computes with are views into them: an optimiser steps the buffers, a control plane copies them, and
// autograd adds into the gradient views in place. Tensors stand in units (model/concept.hpp), which hooks are
// told about; without hooks that costs a comparison a unit.
//
// Where the network computes apart from host memory (compute_device.hpp), the two buffers are still what
// everybody else works on, pinned; the network's tensors are views of two more on the device. Weights are
// copied there before a call, unless written() has done so; gradients are copied there and back around a
// backward pass. Hooks are then told of all units at once, since the copies are of all.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
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

#include "dvla/model/compute_device.hpp"
#include "dvla/model/concept.hpp"

namespace dvla::detail {

class FlatParameters {
 public:
  FlatParameters() = default;
  /// What was put on a stream may still read these buffers.
  ~FlatParameters() {
    try {
      uploaded_.wait();
    } catch (const std::exception&) {
    }
  }
  FlatParameters(const FlatParameters&) = delete;
  FlatParameters& operator=(const FlatParameters&) = delete;

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

  /// Makes the buffers, zeroed, and all views. Once.
  void allocate(const ComputeDevice& device = {}) {
    const c10::InferenceMode ordinary(false);
    device_ = device;
    float *values = nullptr, *gradients = nullptr;
    if (device_.apart()) {
      host_values_ = at::zeros({count_}, device_.host());
      host_gradients_ = at::zeros({count_}, device_.host());
      far_values_ = at::empty({count_}, device_.here());
      far_gradients_ = at::empty({count_}, device_.here());
      values = far_values_.mutable_data_ptr<float>();
      gradients = far_gradients_.mutable_data_ptr<float>();
      values_ = host_values_.mutable_data_ptr<float>();
      gradients_ = host_gradients_.mutable_data_ptr<float>();
    } else {
      values_buffer_ = make_buffer();
      gradients_buffer_ = make_buffer();
      values = values_ = values_buffer_.get();
      gradients = gradients_ = gradients_buffer_.get();
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const NamedTensor& tensor = tensors_[i];
      const auto view = [&](float* of) {
        return at::for_blob(of + tensor.offset, tensor.shape)
            .options(device_.here())
            .target_device(device_.here().device())
            .make_tensor();
      };
      *members_[i] = view(values);
      members_[i]->requires_grad_(true);
      members_[i]->mutable_grad() = view(gradients);
    }
  }

  /// To be read and written until the next call of the network.
  std::span<float> values() {
    if (device_.apart()) {
      uploaded_.wait();
      written_ = false;
    }
    return {values_, static_cast<std::size_t>(count_)};
  }
  std::span<const float> values() const { return {values_, static_cast<std::size_t>(count_)}; }
  std::span<float> gradients() { return {gradients_, static_cast<std::size_t>(count_)}; }
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
            *members_[next],
            hooks == nullptr || device_.apart() ? nullptr : std::make_unique<Added>(*this, unit));
  }
  /// The values are what the network is to use until values() is called again.
  void written() {
    if (!device_.apart()) return;
    upload();
    written_ = true;
  }
  /// A call of the network begins, in the lane that makes it.
  void call_begins() {
    if (!device_.apart()) return;
    written_ ? uploaded_.block() : upload();
  }
  /// The network is about to use the unit.
  void before(std::size_t unit) const {
    if (hooks_ != nullptr && !device_.apart()) hooks_->before_unit(unit);
  }
  /// A backward pass is over: what it did not reach, it adds nothing to.
  void backward_done() {
    if (device_.apart()) {
      host_gradients_.copy_(far_gradients_, /*non_blocking=*/true);
      device_.set(downloaded_);
      downloaded_.wait();
    }
    if (hooks_ == nullptr) return;
    for (std::size_t unit = units_.size(); unit-- > 0;)
      if (waiting_[unit] > 0) hooks_->gradient_ready(unit);
    waiting_ = tensors_of_;
  }
  /// A backward pass begins.
  void backward_begins() {
    if (hooks_ != nullptr) waiting_ = tensors_of_;
    if (device_.apart()) far_gradients_.copy_(host_gradients_, /*non_blocking=*/true);
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

  void upload() {
    if (hooks_ != nullptr)
      for (std::size_t unit = 0; unit < units_.size(); ++unit) hooks_->before_unit(unit);
    far_values_.copy_(host_values_, /*non_blocking=*/true);
    device_.set(uploaded_);
  }

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
  float *values_ = nullptr, *gradients_ = nullptr;  ///< in host memory
  Buffer values_buffer_, gradients_buffer_;         ///< or, where the device is apart:
  ComputeDevice device_;
  at::Tensor host_values_, host_gradients_, far_values_, far_gradients_;
  StreamMark uploaded_, downloaded_;
  bool written_ = false;  ///< far_values_ are the values
};

}  // namespace dvla::detail
