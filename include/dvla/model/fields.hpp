// Fields of records as torch's tensors, for models of one's own: without a copy, or the rows that a call asks
// for, gathered; and back.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/index_select.h>

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/field.hpp"

namespace dvla {

/// All of `field`, in place: [..] of float, int (int32) or byte (uint8). The field's memory must outlive it, and
/// is the host's, else an Error.
template <class Element>
at::Tensor tensor_of(const Field<Element>& field) {
  static_assert(std::same_as<Element, float> || std::same_as<Element, std::int32_t> ||
                    std::same_as<Element, std::uint8_t>,
                "dvla: tensor_of takes fields of float, std::int32_t and std::uint8_t");
  if (field.device() != Device::cpu)
    throw Error(std::string("tensor_of reads fields on cpu, and this one lies on ") +
                enum_name(field.device()));
  constexpr at::ScalarType type = std::same_as<Element, float>          ? at::kFloat
                                  : std::same_as<Element, std::int32_t> ? at::kInt
                                                                        : at::kByte;
  return at::from_blob(field.data(), {field.extents().sizes().data(), field.extents().sizes().size()}, type);
}
/// Row numbers, in place.
inline at::Tensor index_of(std::span<const std::int64_t> rows) {
  auto* first = const_cast<std::int64_t*>(rows.data());  // from_blob has no const form; only read
  return at::from_blob(first, {std::ssize(rows)}, at::kLong);
}
/// The given rows of its first dimension, gathered; in place, where they are all of them in order.
template <class Element>
at::Tensor tensor_of(const Field<Element>& field, std::span<const std::int64_t> rows) {
  bool all = std::ssize(rows) == field.extents()[0];
  for (std::size_t i = 0; all && i < rows.size(); ++i) all = rows[i] == static_cast<std::int64_t>(i);
  return all ? tensor_of(field) : at::index_select(tensor_of(field), 0, index_of(rows));
}
/// Writes `from`, [n, ..] of float, to the given n rows of `field`.
inline void copy_rows(const at::Tensor& from, const Field<float>& field, std::span<const std::int64_t> rows) {
  tensor_of(field).index_copy_(0, index_of(rows), from);
}

}  // namespace dvla
