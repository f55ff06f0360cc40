// Camera frames as a vision tower takes them.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/_upsample_bicubic2d_aa.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/upsample_bilinear2d.h>

#include <algorithm>
#include <cstdint>

namespace dvla::layers {

/// Where a frame stands in the square that it is padded to.
enum class Padding : std::uint8_t { around, before };

/// What of a frame a smaller picture shows: lerobot's does not antialias, and keeps numbers between bytes
/// (policies/common/vla_utils.py, resize_with_pad_torch; resize_with_pad for SmolVLA); openpi's does and rounds to bytes, as PIL does
/// (openpi_client/image_tools.py).
enum class Resizing : std::uint8_t { lerobot, openpi };

/// frames: [n, H, W, 3], uint8. [n, 3, side, side], float32 in [-1, 1]: their longer side is made `side` long (bilinear), and
/// what is missing of the other is black: on both sides, as for pi0.5, or above and to the left, as for SmolVLA. Frames of
/// that size are not resampled.
inline at::Tensor resized_with_pad(const at::Tensor& frames, std::int64_t side,
                                   Padding padding = Padding::around, Resizing way = Resizing::lerobot) {
  at::Tensor x = frames.permute({0, 3, 1, 2}).to(at::kFloat);
  const std::int64_t height = x.size(2), width = x.size(3);
  if (height != side || width != side) {
    const double ratio = std::max(static_cast<double>(width) / static_cast<double>(side),
                                  static_cast<double>(height) / static_cast<double>(side));
    const auto down = static_cast<std::int64_t>(static_cast<double>(height) / ratio),
               across = static_cast<std::int64_t>(static_cast<double>(width) / ratio);
    if (way == Resizing::openpi)  // rows, then columns, each rounded to bytes, halves up
      for (const std::int64_t rows : {height, down})
        x = at::_upsample_bilinear2d_aa(x.contiguous(), {rows, across}, /*align_corners=*/false)
                .add_(0.5)
                .floor_();
    else
      x = at::upsample_bilinear2d(x, {down, across}, /*align_corners=*/false);
    const std::int64_t share = padding == Padding::around ? 2 : 1;
    const std::int64_t above = (side - down) / share, left = (side - across) / share;
    x = at::constant_pad_nd(x.clamp(0, 255), {left, side - across - left, above, side - down - above}, 0);
  }
  return x / 255 * 2 - 1;
}

/// frames: [n, H, W, 3], uint8. [n, 3, side, side], float32 in [0, 1]: stretched to a square (bicubic, antialiased) and rounded to
/// bytes, as torchvision's resize does for RLinf (its prismatic/processing_prismatic.py). Frames of that size are not resampled.
inline at::Tensor resized_bicubic(const at::Tensor& frames, std::int64_t side) {
  at::Tensor x = frames.permute({0, 3, 1, 2}).to(at::kFloat);
  if (x.size(2) != side || x.size(3) != side)
    x = at::_upsample_bicubic2d_aa(x.contiguous(), {side, side}, /*align_corners=*/false)
            .clamp(0, 255)
            .round();
  return x / 255;
}

/// x: [n, 3, H, W] in [0, 1]. [n, 6, H, W]: normalised as DINOv2 takes it, then as SigLIP does.
inline at::Tensor normalised_twice(const at::Tensor& x) {
  const auto channels = [](float red, float green, float blue) {
    return at::tensor({red, green, blue}).view({1, 3, 1, 1});
  };
  return at::cat({(x - channels(0.485f, 0.456f, 0.406f)) / channels(0.229f, 0.224f, 0.225f), (x - 0.5) / 0.5},
                 1);
}

}  // namespace dvla::layers
