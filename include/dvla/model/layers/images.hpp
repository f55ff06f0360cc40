// Camera frames as a vision tower takes them.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/upsample_bilinear2d.h>

#include <algorithm>
#include <cstdint>

namespace dvla::layers {

/// frames: [n, H, W, 3], uint8. [n, 3, side, side], float32 in [-1, 1]: their longer side is made `side` long (bilinear, without
/// antialiasing), and what is missing of the other is black on both sides, as lerobot has it
/// (policies/common/vla_utils.py, resize_with_pad_torch). Frames of that size are not resampled.
inline at::Tensor resized_with_pad(const at::Tensor& frames, std::int64_t side) {
  at::Tensor x = frames.permute({0, 3, 1, 2}).to(at::kFloat) / 255;
  const std::int64_t height = x.size(2), width = x.size(3);
  if (height != side || width != side) {
    const double ratio = std::max(static_cast<double>(width) / static_cast<double>(side),
                                  static_cast<double>(height) / static_cast<double>(side));
    const auto down = static_cast<std::int64_t>(static_cast<double>(height) / ratio),
               across = static_cast<std::int64_t>(static_cast<double>(width) / ratio);
    x = at::upsample_bilinear2d(x, {down, across}, /*align_corners=*/false).clamp(0, 1);
    const std::int64_t above = (side - down) / 2, left = (side - across) / 2;
    x = at::constant_pad_nd(x, {left, side - across - left, above, side - down - above}, 0);
  }
  return x * 2 - 1;
}

}  // namespace dvla::layers
