// OpenVLA-OFT's head for continuous actions (its authors call it L1 regression): what Llama puts out for a control step's
// action tokens, side by side, through a residual MLP to the step's action. Names are those of the authors' action_head files.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/relu.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dvla/model/layers/norm.hpp"
#include "dvla/model/parts/decoder_layer.hpp"

namespace dvla::parts {

class RegressionHead {
 public:
  /// `width`: of an action token; a step has `dimensions` of them, and as many numbers.
  void declare(Parameters& all, const std::string& name, std::int64_t width, std::int64_t dimensions,
               std::size_t blocks = 2) {
    const std::int64_t wide = dimensions * width;
    in_.norm.declare(all, name + ".layer_norm1", wide);
    all.declare_linear(name + ".fc1", width, wide, in_.linear, matrix(wide), true);
    blocks_.resize(blocks);
    for (std::size_t i = 0; i < blocks; ++i) {
      const std::string of = name + ".mlp_resnet_blocks." + std::to_string(i) + ".ffn.";
      blocks_[i].norm.declare(all, of + "0", width);
      all.declare_linear(of + "1", width, width, blocks_[i].linear, matrix(width), true);
    }
    out_.norm.declare(all, name + ".layer_norm2", width);
    all.declare_linear(name + ".fc2", dimensions, width, out_.linear, matrix(width), true);
  }
  /// x: [n, C, A * d]. The result is [n, C, A].
  at::Tensor operator()(const at::Tensor& x) const {
    at::Tensor y = at::relu(in_(x));
    for (const Step& block : blocks_) y = y + at::relu(block(y));
    return out_(y);
  }

 private:
  struct Norm {
    at::Tensor weight, bias;
    void declare(Parameters& all, const std::string& name, std::int64_t width) {
      all.declare(name + ".weight", {width}, weight, {1, 0});
      all.declare(name + ".bias", {width}, bias);
    }
  };
  struct Step {
    Norm norm;
    Linear linear;
    /// torch's own eps, 1e-5, unlike the towers'.
    at::Tensor operator()(const at::Tensor& x) const {
      return linear(layers::layer_norm(x, norm.weight, norm.bias, 1e-5));
    }
  };
  Step in_, out_;
  std::vector<Step> blocks_;
};

}  // namespace dvla::parts
