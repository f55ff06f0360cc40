// Camera frames as OpenVLA-OFT's authors show them to their model (experiments/robot/openvla_utils.py at 213c5ff; TensorFlow's
// operators): through JPEG, as the data that it learned from are stored; stretched to a square (Lanczos, antialiased); and of that
// the middle nine tenths of the area alone, stretched again (bilinear), since training showed random parts of that size.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>

#include "dvla/io/jpeg.hpp"

namespace dvla::layers {

namespace detail {

/// [to, from]: what each new pixel has of each old one; rows sum to 1.
inline at::Tensor lanczos_shares(std::int64_t from, std::int64_t to) {
  constexpr double radius = 3;
  const auto kernel = [](double x) {
    const double at = std::numbers::pi * x;
    return std::abs(x) < 1e-3     ? 1.0
           : std::abs(x) > radius ? 0.0
                                  : radius * std::sin(at) * std::sin(at / radius) / (at * at);
  };
  const double step = static_cast<double>(from) / static_cast<double>(to), wide = std::max(step, 1.0);
  at::Tensor shares = at::zeros({to, from}, at::kFloat);
  for (std::int64_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * step;
    double sum = 0;
    const auto weight = [&](std::int64_t j) {
      return kernel((static_cast<double>(j) + 0.5 - centre) / wide);
    };
    for (std::int64_t j = 0; j < from; ++j) sum += weight(j);
    float* const row = shares.mutable_data_ptr<float>() + i * from;
    for (std::int64_t j = 0; j < from; ++j) row[j] = static_cast<float>(weight(j) / sum);
  }
  return shares;
}

/// [side, side]: of the part in the middle with `share` of the side, whose first and last pixels become the outermost ones.
inline at::Tensor crop_shares(std::int64_t side, double share) {
  at::Tensor shares = at::zeros({side, side}, at::kFloat);
  for (std::int64_t i = 0; i < side; ++i) {
    const double at = (1 - share) / 2 * static_cast<double>(side - 1) + static_cast<double>(i) * share;
    const auto below = static_cast<std::int64_t>(at);
    const auto part = static_cast<float>(at - static_cast<double>(below));
    float* const row = shares.mutable_data_ptr<float>() + i * side;
    row[below] += 1 - part;
    row[std::min(below + 1, side - 1)] += part;
  }
  return shares;
}

/// x: [n, 3, H, W]. [n, 3, down's rows, across's rows].
inline at::Tensor resampled(const at::Tensor& x, const at::Tensor& down, const at::Tensor& across) {
  return at::matmul(at::matmul(down, x), across.t());
}

}  // namespace detail

/// frames: [n, H, W, 3], uint8. [n, 3, side, side], float32 in [0, 1], the numbers of bytes. Frames of that size are not stretched
/// the first time, but go through JPEG all the same. Throws Error where libjpeg fails.
inline at::Tensor lanczos_crop(const at::Tensor& frames, std::int64_t side) {
  const at::Tensor stored = frames.contiguous().clone();
  const std::int64_t height = frames.size(1), width = frames.size(2), bytes = 3 * height * width;
  for (std::int64_t i = 0; i < frames.size(0); ++i)
    io::through_jpeg({stored.mutable_data_ptr<std::uint8_t>() + i * bytes, static_cast<std::size_t>(bytes)},
                     static_cast<int>(width), static_cast<int>(height));
  at::Tensor x = stored.permute({0, 3, 1, 2}).to(at::kFloat);
  if (height != side || width != side)
    x = detail::resampled(x, detail::lanczos_shares(height, side), detail::lanczos_shares(width, side))
            .round()
            .clamp(0, 255);
  const at::Tensor crop = detail::crop_shares(side, std::sqrt(0.9));
  // TensorFlow makes bytes of numbers in [0, 1] by 255.5 and without rounding.
  return (detail::resampled(x / 255, crop, crop).clamp(0, 1) * 255.5).floor() / 255;
}

}  // namespace dvla::layers
