// A model's weights as one contiguous float32 buffer and its gradients as another. The tensors that the
// network computes with are views into them: an optimiser steps the buffers, a control plane copies them, and
// autograd adds into the gradient views in place. Host memory only.
#pragma once

#include <ATen/ops/from_blob.h>

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
  /// Declares a tensor; `member` becomes its view when `allocate` is called, and must live until then.
  void declare(std::string name, std::vector<std::int64_t> shape, at::Tensor& member) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    tensors_.push_back({std::move(name), std::move(shape), count_});
    members_.push_back(&member);
    count_ += count;
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
    members_.clear();
  }

  std::span<float> values() { return {values_.get(), static_cast<std::size_t>(count_)}; }
  std::span<float> gradients() { return {gradients_.get(), static_cast<std::size_t>(count_)}; }
  const std::vector<NamedTensor>& tensors() const { return tensors_; }

 private:
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
  std::int64_t count_ = 0;
  Buffer values_, gradients_;
};

}  // namespace dvla::detail
