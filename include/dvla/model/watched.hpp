// A network that tells whoever compares it with another one of its activations.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>

namespace dvla::detail {

class Watched {
 public:
  /// Is told of activations by name, as the recorded ones are called (test/golden/model).
  using Watch = std::function<void(const std::string&, const at::Tensor&)>;

  void watch(Watch watch) { watch_ = std::move(watch); }

 protected:
  bool watched() const { return watch_ != nullptr; }
  void see(const std::string& name, const at::Tensor& value) const {
    if (watch_) watch_(name, value);
  }

 private:
  Watch watch_;
};

}  // namespace dvla::detail
