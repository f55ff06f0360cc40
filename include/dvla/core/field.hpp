// Field<T>: a typed view with run-time extents, contiguous, row-major; the unit that records are made of.
// Owns nothing: storage is a pool block (memory/), so a Field is copied freely and read where it was born.
// Not a tensor: no arithmetic, no strides, no broadcasting. A model wraps `data()` without a copy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// Up to six extents, outermost first. An unused dimension is absent, not 1. More are an Error.
class Extents {
 public:
  static constexpr int max_rank = 6;
  constexpr Extents() = default;
  constexpr Extents(std::initializer_list<std::int64_t> sizes) {
    for (std::int64_t size : sizes) add(size);
  }
  constexpr int rank() const { return rank_; }
  constexpr std::int64_t operator[](int i) const { return sizes_[static_cast<std::size_t>(i)]; }
  /// Number of elements; 1 for rank 0.
  constexpr std::int64_t count() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= sizes_[static_cast<std::size_t>(i)];
    return n;
  }
  /// The extents behind the first `n` dimensions.
  constexpr Extents tail(int n = 1) const {
    Extents rest;
    for (int i = n; i < rank_; ++i) rest.add((*this)[i]);
    return rest;
  }
  /// `first` put before these extents.
  constexpr Extents prepend(std::int64_t first) const {
    Extents more{first};
    for (std::int64_t size : sizes()) more.add(size);
    return more;
  }
  constexpr std::span<const std::int64_t> sizes() const {
    return {sizes_.data(), static_cast<std::size_t>(rank_)};
  }
  friend constexpr bool operator==(const Extents&, const Extents&) = default;

 private:
  constexpr void add(std::int64_t size) {
    if (rank_ == max_rank) throw Error("Extents hold at most 6 sizes, and more were given");
    sizes_[static_cast<std::size_t>(rank_++)] = size;
  }

  std::array<std::int64_t, max_rank> sizes_{};
  int rank_ = 0;
};

/// A view of `extents().count()` elements at `data()`. A Field with no storage yet has data() == nullptr
/// and still knows its extents: that is how a record's layout is described before it is placed. Only what
/// computes on `device()` may read or write the elements.
template <class Element>
class Field {
 public:
  using element_type = Element;
  constexpr Field() = default;
  constexpr explicit Field(Extents extents, Element* data = nullptr, Device device = Device::cpu)
      : data_(data), extents_(extents), device_(device) {}

  constexpr Element* data() const { return data_; }
  constexpr const Extents& extents() const { return extents_; }
  constexpr Device device() const { return device_; }
  constexpr std::int64_t count() const { return extents_.rank() == 0 ? 0 : extents_.count(); }
  constexpr std::size_t bytes() const { return static_cast<std::size_t>(count()) * sizeof(Element); }
  /// Absent: the environment or model does not have this field (rank 0).
  constexpr bool absent() const { return extents_.rank() == 0; }
  constexpr std::span<Element> span() const { return {data_, static_cast<std::size_t>(count())}; }
  constexpr Element& operator[](std::int64_t i) const { return data_[i]; }
  constexpr void place(Element* data) { data_ = data; }

  /// Element `index` of the first dimension: [T, B, ...] at t is [B, ...].
  constexpr Field at(std::int64_t index) const {
    if (absent()) return {};
    const Extents rest = extents_.tail();
    return Field(rest, data_ == nullptr ? nullptr : data_ + index * rest.count(), device_);
  }
  /// Elements [first, first + length) of the first dimension.
  constexpr Field rows(std::int64_t first, std::int64_t length) const {
    if (absent()) return {};
    const Extents rest = extents_.tail();
    return Field(rest.prepend(length), data_ == nullptr ? nullptr : data_ + first * rest.count(), device_);
  }
  /// The first two dimensions as one: [T, B, ...] is [T*B, ...].
  constexpr Field flat() const {
    if (absent()) return {};
    return Field(extents_.tail(2).prepend(extents_[0] * extents_[1]), data_, device_);
  }

 private:
  Element* data_ = nullptr;
  [[no_unique_address]] Extents extents_;  // whose padding holds the device
  Device device_ = Device::cpu;
};

}  // namespace dvla
