// What weights are to everybody who is no model: named parameters, and the spans of memory in which the
// trainable ones lie. A *unit* is what is gathered, stepped and sent together (a transformer block, the
// embeddings, a head): its trainable parameters lie one after the other, and so do their gradients. Design:
// "Weights". Owns no memory, includes no torch; model/concept.hpp says what a model promises about it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/core/dtype.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// To the nearest bfloat16, halves to even; what is not finite stays so.
inline std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (!std::isfinite(value)) return static_cast<std::uint16_t>(bits >> 16 | (std::isnan(value) ? 0x40 : 0));
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(std::uint16_t value) { return std::bit_cast<float>(std::uint32_t{value} << 16); }
/// Without arithmetic on denormal floats, which threads that compute take for 0.
inline float from_f16(std::uint16_t value) {
  const std::uint32_t exponent = value >> 10 & 31U, fraction = value & 1023U;
  const float magnitude =
      exponent == 0 ? static_cast<float>(fraction) * 0x1p-24F
                    : std::bit_cast<float>((exponent == 31 ? 255U : exponent + 112U) << 23 | fraction << 13);
  return (value & 0x8000U) != 0 ? -magnitude : magnitude;
}

/// How the optimiser treats a parameter: factors of the algorithm's learning rate and weight decay.
struct OptimiserGroup {
  double learning_rate = 1, weight_decay = 1;
  bool operator==(const OptimiserGroup&) const = default;
};

/// One tensor of a model.
struct Parameter {
  std::string name;  ///< the public checkpoint's, where there is one; unique within the model
  std::vector<std::int64_t> shape;
  Dtype dtype = Dtype::f32;
  Device device = Device::cpu;
  std::size_t unit = 0;
  bool trainable = true;
  bool apart = false;  ///< beside the model that its family publishes: an adapter, a head of another's
  OptimiserGroup group{};
  std::string alias_of{};     ///< not empty: it is that parameter under another name, and is kept once
  std::byte* data = nullptr;  ///< its elements, row-major
  bool mapped = false;        ///< they lie in a file that is mapped, and are never written

  std::int64_t count() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(count()) * bytes_of(dtype); }
};

/// Where a frozen parameter's elements lie already, or null: asked while a model is made, for as long as it
/// lives.
using FrozenViews = std::function<const std::byte*(const Parameter&)>;

/// `count` elements from `offset` on of the trainable weights, unit after unit as one row.
struct WeightRange {
  std::int64_t offset = 0, count = 0;
  bool operator==(const WeightRange&) const = default;
};

/// The same in bytes, which a plane sees.
struct ByteRange {
  std::size_t offset = 0, bytes = 0;
  bool operator==(const ByteRange&) const = default;
};
inline std::size_t bytes_in(std::span<const ByteRange> ranges) {
  std::size_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.bytes;
  return bytes;
}

/// A stretch of a unit's trainable elements that the optimiser treats alike.
struct OptimiserRun {
  std::int64_t count = 0;
  OptimiserGroup group{};
};

/// The trainable parameters of a unit, none where all of it is frozen. All have one dtype.
struct WeightUnit {
  Dtype dtype = Dtype::f32;
  std::span<std::byte> values{};     ///< what the model computes with
  std::span<float> gradients{};      ///< an element each; empty while the model holds none
  std::vector<OptimiserRun> runs{};  ///< in order; together all elements

  std::int64_t count() const { return static_cast<std::int64_t>(values.size() / bytes_of(dtype)); }
  /// Of a unit in float32.
  std::span<float> floats() const {
    return {reinterpret_cast<float*>(values.data()), values.size() / sizeof(float)};
  }
};

/// Elements and bytes of a model's trainable weights.
inline std::int64_t trainable_count(std::span<const WeightUnit> units) {
  std::int64_t count = 0;
  for (const WeightUnit& unit : units) count += unit.count();
  return count;
}
inline std::size_t trainable_bytes(std::span<const WeightUnit> units) {
  std::size_t bytes = 0;
  for (const WeightUnit& unit : units) bytes += unit.values.size();
  return bytes;
}

/// Reads or writes bytes of the trainable weights, unit after unit as one row of bytes: `visit(here, done)` is
/// given the pieces of [offset, offset + bytes) in order, and how many bytes came before.
template <class Visit>
void for_each_piece(std::span<const WeightUnit> units, std::size_t offset, std::size_t bytes, Visit visit) {
  std::size_t done = 0;
  for (const WeightUnit& unit : units) {
    if (done == bytes) return;
    if (offset >= unit.values.size()) {
      offset -= unit.values.size();
      continue;
    }
    const std::span<std::byte> here =
        unit.values.subspan(offset, std::min(bytes - done, unit.values.size() - offset));
    visit(here, done);
    done += here.size();
    offset = 0;
  }
  if (done != bytes)
    throw Error("weights: a stretch of bytes reaches ", bytes - done,
                " beyond the model's trainable weights; trainer and sampler must have the same model");
}
inline void read_weights(std::span<const WeightUnit> units, std::size_t offset, std::span<std::byte> out) {
  for_each_piece(units, offset, out.size(), [&](std::span<std::byte> here, std::size_t done) {
    std::memcpy(out.data() + done, here.data(), here.size());
  });
}
inline void write_weights(std::span<const WeightUnit> units, std::size_t offset,
                          std::span<const std::byte> in) {
  for_each_piece(units, offset, in.size(), [&](std::span<std::byte> here, std::size_t done) {
    std::memcpy(here.data(), in.data() + done, here.size());
  });
}

/// From one model's trainable weights into another's. Throws Error where they are not of the same extents,
/// and then changes nothing. Returns the bytes written.
inline std::size_t copy_weights(std::span<const WeightUnit> from, std::span<const WeightUnit> to) {
  const auto alike = [](const WeightUnit& one, const WeightUnit& other) {
    return one.dtype == other.dtype && one.values.size() == other.values.size();
  };
  if (!std::equal(from.begin(), from.end(), to.begin(), to.end(), alike))
    throw Error("weights: ", trainable_bytes(from), " trainable bytes do not fit into ", trainable_bytes(to),
                "; trainer and sampler must have the same model");
  std::size_t bytes = 0;
  for (std::size_t unit = 0; unit < from.size(); ++unit) {
    if (from[unit].values.empty()) continue;
    std::memcpy(to[unit].values.data(), from[unit].values.data(), from[unit].values.size());
    bytes += from[unit].values.size();
  }
  return bytes;
}

/// Values of the given dtype as float32, and back; both of as many elements.
inline void to_floats(std::span<const std::byte> values, Dtype dtype, std::span<float> out) {
  if (dtype == Dtype::f16) throw Error("weights: f16 has no conversion on the host; use bf16");
  if (dtype == Dtype::f32) {
    if (!out.empty()) std::memcpy(out.data(), values.data(), out.size_bytes());
    return;
  }
  const auto* from = reinterpret_cast<const std::uint16_t*>(values.data());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = from_bf16(from[i]);
}
inline void from_floats(std::span<const float> in, Dtype dtype, std::span<std::byte> values) {
  if (dtype == Dtype::f16) throw Error("weights: f16 has no conversion on the host; use bf16");
  if (dtype == Dtype::f32) {
    if (!in.empty()) std::memcpy(values.data(), in.data(), in.size_bytes());
    return;
  }
  auto* to = reinterpret_cast<std::uint16_t*>(values.data());
  for (std::size_t i = 0; i < in.size(); ++i) to[i] = to_bf16(in[i]);
}

}  // namespace dvla
