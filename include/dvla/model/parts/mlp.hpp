// Linear layers with exact GELUs between them, as OpenVLA's projector has them: `name`.fc1, `name`.fc2 and so on, with biases.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dvla/model/layers/gated_mlp.hpp"
#include "dvla/model/parts/decoder_layer.hpp"

namespace dvla::parts {

class Mlp {
 public:
  /// `widths`: of the input, of what lies between, of the output.
  void declare(Parameters& all, const std::string& name, const std::vector<std::int64_t>& widths) {
    layers_.resize(widths.size() - 1);
    for (std::size_t i = 0; i < layers_.size(); ++i)
      all.declare_linear(name + ".fc" + std::to_string(i + 1), widths[i + 1], widths[i], layers_[i],
                         matrix(widths[i]), true);
  }
  at::Tensor operator()(at::Tensor x) const {
    for (std::size_t i = 0; i < layers_.size(); ++i)
      x = layers_[i](i == 0 ? x : layers::activated(x, layers::Activation::gelu));
    return x;
  }

 private:
  std::vector<Linear> layers_;
};

}  // namespace dvla::parts
