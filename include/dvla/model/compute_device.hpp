// Where a network computes, seen from host memory: the same place, or a GPU, to which its inputs and weights
// are copied and from which outputs and gradients come back. All copies are asynchronous on the calling
// lane's stream; whoever needs one waits for that stream's event and for nothing else. Includes c10 and ATen,
// no CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/TensorOptions.h>

#include <optional>

#include "dvla/core/device.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/memory/lane_stream.hpp"

namespace dvla::detail {

/// A place on the stream of the lane that called set().
class StreamMark {
 public:
  void set() {
    if (!event_) event_.emplace(c10::DeviceType::CUDA);
    event_->record(lane_stream());
  }
  /// What this lane puts on its stream from here on waits for the mark; this thread does not.
  void block() const {
    if (event_) event_->block(lane_stream());
  }
  /// This thread waits.
  void wait() const {
    if (event_) event_->synchronize();
  }

 private:
  std::optional<c10::Event> event_;
};

class ComputeDevice {
 public:
  /// The host itself: nothing is copied.
  ComputeDevice() = default;
  /// Throws ConfigError where that device cannot be.
  explicit ComputeDevice(Device device) : apart_(device != Device::cpu) {
    check_device(device);
    if (apart_) device_ = cuda_device();
  }
  /// For tests without a GPU: computes on the CPU, in memory of its own, by the same copies.
  static ComputeDevice apart_on_the_host() {
    ComputeDevice device;
    device.apart_ = true;
    return device;
  }

  /// Whether host memory and the device's are two.
  bool apart() const { return apart_; }
  bool is_cuda() const { return device_.is_cuda(); }
  at::TensorOptions here() const { return at::TensorOptions(at::kFloat).device(device_); }
  /// Of tensors on the host that are copied: pinned, so that a copy is the GPU's work.
  at::TensorOptions host() const { return at::TensorOptions(at::kFloat).pinned_memory(is_cuda()); }

  /// While it lives, this thread works on its lane's stream.
  c10::OptionalStreamGuard enter() const {
    return c10::OptionalStreamGuard(is_cuda() ? std::optional(lane_stream()) : std::nullopt);
  }
  /// At what this lane has put on its stream so far.
  void set(StreamMark& mark) const {
    if (is_cuda()) mark.set();
  }

  /// `tensor` may be changed again once this lane's stream has come by.
  at::Tensor upload(const at::Tensor& tensor) const {
    if (!is_cuda()) return tensor;
    const EnvironmentPool scope;
    return tensor.to(device_, tensor.scalar_type(), /*non_blocking=*/true);
  }
  /// Waits, by `mark`, until it is there.
  at::Tensor download(const at::Tensor& tensor, StreamMark& mark) const {
    if (!apart_) return tensor;
    at::Tensor copy = at::empty(tensor.sizes(), host());
    copy.copy_(tensor.detach(), /*non_blocking=*/true);
    set(mark);
    mark.wait();
    return copy;
  }

 private:
  struct EnvironmentPool {
    EnvironmentPool() { in_environment_pool = true; }
    ~EnvironmentPool() { in_environment_pool = false; }
    EnvironmentPool(const EnvironmentPool&) = delete;
    EnvironmentPool& operator=(const EnvironmentPool&) = delete;
  };

  c10::Device device_{c10::DeviceType::CPU};
  bool apart_ = false;
};

}  // namespace dvla::detail
