// The calls of a trainer on a model that may have a value head, for its tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "dvla/model/concept.hpp"
#include "dvla/testing/model.hpp"

namespace dvla_test {

inline std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// Some rows that a model has acted on, and the calls of a trainer.
template <class M>
struct Calls {
  explicit Calls(M& which, const dvla::ModelInputs& given, std::int64_t n = 24)
      : model(which),
        inputs(given),
        observation(dvla::observation_layout(inputs.observation, {n}), heap),
        decision(model.decision_layout({n}), heap),
        storage(static_cast<std::size_t>(n * inputs.chunk * inputs.action.dimensions)),
        action({n, inputs.chunk, inputs.action.dimensions}, storage.data()),
        log_prob(storage.size()),
        entropy(storage.size()) {
    dvla::testing::fill_observation(*observation, inputs.observation, 4);
    for (std::int64_t row = 0; row < n; ++row) rows.push_back(row);
    if constexpr (dvla::HasValues<M>) value.resize(static_cast<std::size_t>(decision->value.count()));
  }
  void act(dvla::Decoding decoding = dvla::Decoding::sample) {
    model.act(*observation, rows, decoding, 7, *decision, action);
  }
  void forward() { model.forward(*observation, *decision, rows, log_prob, entropy); }
  void forward_with_values() { model.forward(*observation, *decision, rows, log_prob, entropy, value); }
  std::vector<float> values() {
    std::vector<float> all(value.size());
    model.values(*observation, rows, all);
    return all;
  }
  static std::vector<float> slopes(std::size_t count, double step) {
    std::vector<float> all(count);
    for (std::size_t i = 0; i < count; ++i)
      all[i] = static_cast<float>(0.3 + std::sin(step * static_cast<double>(i)));
    return all;
  }
  std::vector<float> of_log_prob() const { return slopes(log_prob.size(), 1.3); }
  std::vector<float> of_entropy() const { return slopes(entropy.size(), 0.7); }
  std::vector<float> of_value() const { return slopes(value.size(), 2.1); }
  void backward() { model.backward(of_log_prob(), of_entropy()); }
  void backward_with_values() { model.backward(of_log_prob(), of_entropy(), of_value()); }
  /// What backward_with_values() is the gradient of.
  double loss() {
    forward_with_values();
    double sum = 0;
    const auto add = [&](const std::vector<float>& slope, const std::vector<float>& of) {
      for (std::size_t i = 0; i < of.size(); ++i)
        sum += static_cast<double>(slope[i]) * static_cast<double>(of[i]);
    };
    add(of_log_prob(), log_prob), add(of_entropy(), entropy), add(of_value(), value);
    return sum;
  }

  M& model;
  dvla::ModelInputs inputs;
  dvla::OwnedRecord<dvla::Observation> observation;
  dvla::OwnedRecord<typename M::Decision> decision;
  std::vector<float> storage;
  dvla::Field<float> action;
  std::vector<float> log_prob, entropy, value;
  std::vector<std::int64_t> rows;
};

}  // namespace dvla_test
