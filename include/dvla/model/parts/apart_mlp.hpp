// Linear layers with an activation between them, in float32 whatever the model's precision is: the heads that reinforcement learning
// puts beside a published model. They train beside a frozen model too, have no adapters, and draw from a stream of their own, so that
// the model starts as it does without them. Weights start as in RLinf's value_head.py: N(0, 2 / outputs), the last layer's N(0, 0.02^2),
// biases 0. Names are those of torch's Sequential: `name`.mlp.0, `name`.mlp.2 and so on.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dvla/model/parameters.hpp"

namespace dvla::parts {

class ApartMlp {
 public:
  using Activation = at::Tensor (*)(const at::Tensor&);
  /// What differs between such heads; `stream` is that of InitialValues, not 0.
  struct Kind {
    Activation activation = nullptr;
    bool last_bias = true;
    std::int64_t stream = 1;
  };

  /// `in`, `within`, `out_width`: widths of the input, of what lies between, of the output.
  void declare(Parameters& all, const std::string& name, std::int64_t in,
               const std::vector<std::int64_t>& within, std::int64_t out_width, Kind kind,
               OptimiserGroup group = {}) {
    std::vector<std::int64_t> widths{in};
    widths.insert(widths.end(), within.begin(), within.end());
    widths.push_back(out_width);
    activation_ = kind.activation;
    layers_.resize(widths.size() - 1);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::string of = name + ".mlp." + std::to_string(2 * i);
      const std::int64_t out = widths[i + 1];
      const bool last = i + 1 == layers_.size();
      const double scale = last ? 0.02 : std::sqrt(2 / static_cast<double>(out));
      all.declare_apart(of + ".weight", {out, widths[i]}, layers_[i].weight, {0, scale, kind.stream}, group);
      if (!last || kind.last_bias)
        all.declare_apart(of + ".bias", {out}, layers_[i].bias, {0, 0, kind.stream}, group);
    }
  }
  /// x: [.., in], the result [.., out] in float32.
  at::Tensor operator()(const at::Tensor& x) const {
    at::Tensor y = layers_.front()(x.to(at::kFloat));
    for (std::size_t i = 1; i < layers_.size(); ++i) y = layers_[i](activation_(y));
    return y;
  }

 private:
  Activation activation_ = nullptr;
  std::vector<Linear> layers_;
};

}  // namespace dvla::parts
