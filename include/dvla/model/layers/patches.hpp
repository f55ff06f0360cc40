// Image patches, as a convolution whose stride is its width has them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dvla/model/linear.hpp"

namespace dvla::layers {

/// image: [n, 3, H, W], whole patches. [n, patches, 3 * patch * patch], row by row.
inline at::Tensor patches(const at::Tensor& image, std::int64_t patch) {
  const std::int64_t n = image.size(0), down = image.size(2) / patch, across = image.size(3) / patch;
  return image.view({n, 3, down, patch, across, patch})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({n, down * across, 3 * patch * patch});
}

/// `convolution`: its weight is [d, 3, patch, patch]. [n, patches, d], in the image's precision.
inline at::Tensor patch_embedding(const at::Tensor& image, const Linear& convolution) {
  return convolution.flat()(patches(image, convolution.weight.size(-1)));
}
/// `kernel`: the convolution's, [d, 3, patch, patch], and its bias [d] or nothing. [n, patches, d], in the image's precision.
inline at::Tensor patch_embedding(const at::Tensor& image, const at::Tensor& kernel, const at::Tensor& bias) {
  Linear convolution;
  convolution.weight = kernel;
  convolution.bias = bias;
  return patch_embedding(image, convolution);
}

/// Of a square image's patches, x: [n, side * side, d], blocks of `block` x `block` become one token: [n, (side / block)^2,
/// block * block * d], a block's patches row by row.
inline at::Tensor blocks_of_patches(const at::Tensor& x, std::int64_t side, std::int64_t block) {
  const std::int64_t n = x.size(0), d = x.size(2), down = side / block;
  return x.reshape({n, down, block, down, block, d})
      .permute({0, 1, 3, 2, 4, 5})
      .reshape({n, down * down, block * block * d});
}

}  // namespace dvla::layers
