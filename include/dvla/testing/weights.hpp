// All of a model's weights, or their gradients, as one list: what suites and tests look at and change. Torch-free.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "dvla/model/concept.hpp"

namespace dvla::testing::detail {

/// The trainable weights as float32, or the gradients, unit after unit.
template <class Model>
std::vector<float> weights_of(const Model& model) {
  std::vector<float> all;
  for (const WeightUnit& unit : model.units()) {
    std::vector<float> values(static_cast<std::size_t>(unit.count()));
    to_floats(unit.values, unit.dtype, values);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}
template <class Model>
void set_weights(Model& model, std::span<const float> values) {
  for (const WeightUnit& unit : model.units()) {
    const auto count = static_cast<std::size_t>(unit.count());
    from_floats(values.first(count), unit.dtype, unit.values);
    values = values.subspan(count);
  }
  weights_written(model);
}
template <class Model>
std::vector<float> gradients_of(const Model& model) {
  std::vector<float> all;
  for (const WeightUnit& unit : model.units())
    all.insert(all.end(), unit.gradients.begin(), unit.gradients.end());
  return all;
}
template <class Model>
void zero_gradients(const Model& model) {
  for (const WeightUnit& unit : model.units()) std::ranges::fill(unit.gradients, 0.0f);
}
/// The bytes of what is frozen.
template <class Model>
std::vector<std::byte> frozen_bytes(const Model& model) {
  std::vector<std::byte> all;
  for (const Parameter& each : model.parameters())
    if (!each.trainable) all.insert(all.end(), each.data, each.data + each.bytes());
  return all;
}

}  // namespace dvla::testing::detail
