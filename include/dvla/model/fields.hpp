// Fields of records as torch's tensors, for models of one's own: without a copy, or the rows that a call asks
// for, gathered.
#pragma once

#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>

#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

#include "dvla/core/field.hpp"

namespace dvla {

/// All of `field`, in place: [..] of float, int (int32) or byte (uint8). The field's memory must outlive it.
template <class Element>
at::Tensor tensor_of(const Field<Element>& field) {
  static_assert(std::same_as<Element, float> || std::same_as<Element, std::int32_t> ||
                    std::same_as<Element, std::uint8_t>,
                "dvla: tensor_of takes fields of float, std::int32_t and std::uint8_t");
  constexpr at::ScalarType type = std::same_as<Element, float>          ? at::kFloat
                                  : std::same_as<Element, std::int32_t> ? at::kInt
                                                                        : at::kByte;
  return at::from_blob(field.data(), {field.extents().sizes().data(), field.extents().sizes().size()}, type);
}
/// The given rows of its first dimension, gathered; all of it, in place, where `rows` is empty, as in act().
template <class Element>
at::Tensor tensor_of(const Field<Element>& field, std::span<const std::int64_t> rows) {
  if (rows.empty()) return tensor_of(field);
  auto* first = const_cast<std::int64_t*>(rows.data());  // from_blob has no const form; only read
  return at::index_select(tensor_of(field), 0, at::from_blob(first, {std::ssize(rows)}, at::kLong));
}

}  // namespace dvla
