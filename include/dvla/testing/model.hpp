// Conformance suite of models: what ModelMachinery promises and a compiler can't check. Framework-free: each
// check returns sentences, one per broken promise, so it runs under any test framework.
//     auto faults = dvla::testing::check_model([](std::uint64_t seed) { return MyModel(knobs, inputs, seed);
//     },
//                                              inputs);
//     CHECK(faults.empty());
// Models need not be movable: the maker's result is never moved. Takes a second or two with a small model;
// does not measure whether the model learns, nor time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/self_test.hpp"

namespace dvla::testing {

/// Fills an observation with noise: frames of all values, proprioception N(0, 1), instructions of the table.
inline void fill_observation(Observation& observation, const ObservationSpec& spec, std::uint64_t seed) {
  SplitMix64 random(seed);
  for (auto& frames : observation.frames)
    for (auto& value : frames.span()) value = static_cast<std::uint8_t>(random.below(256));
  for (auto& value : observation.proprioception.span()) value = static_cast<float>(random.normal());
  for (auto& value : observation.instruction.span())
    value = static_cast<std::int32_t>(random.below(spec.instructions.size()));
}

namespace detail {

template <ModelMachinery Model>
struct ModelBatch {
  using Decision = typename Model::Decision;

  ModelBatch(const Model& model, const ModelInputs& inputs, std::int64_t n)
      : rows(n),
        elements(inputs.chunk * inputs.action.dimensions),
        observation(observation_layout(inputs.observation, {n}), *std::pmr::new_delete_resource()),
        decision(model.decision_layout({n}), *std::pmr::new_delete_resource()),
        action_storage(static_cast<std::size_t>(n * elements)),
        action({n, inputs.chunk, inputs.action.dimensions}, action_storage.data()) {
    fill_observation(*observation, inputs.observation, 11);
    for (std::int64_t i = 0; i < n; ++i) order.push_back(i);
  }
  void act(Model& model, Decoding decoding, std::uint64_t seed) {
    model.act(*observation, decoding, seed, *decision, action);
  }
  std::vector<float> log_prob(Model& model, std::span<const std::int64_t> of) {
    std::vector<float> values(of.size() * static_cast<std::size_t>(elements)), entropy(values.size());
    model.forward(*observation, *decision, of, values, entropy);
    last_entropy = entropy;
    return values;
  }
  /// sum of weights * log_prob + 0.3 * weights * entropy: a scalar for the gradient checks.
  double scalar(Model& model, std::span<const std::int64_t> of) {
    const std::vector<float> values = log_prob(model, of);
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto e = static_cast<std::size_t>(of[i / static_cast<std::size_t>(elements)] * elements) +
                     i % static_cast<std::size_t>(elements);
      sum += weight(e) * (static_cast<double>(values[i]) + 0.3 * static_cast<double>(last_entropy[i]));
    }
    return sum;
  }
  /// forward and backward of that scalar.
  void accumulate(Model& model, std::span<const std::int64_t> of) {
    std::vector<float> d_log_prob = log_prob(model, of), d_entropy(d_log_prob.size());
    for (std::size_t i = 0; i < d_log_prob.size(); ++i) {
      const auto e = static_cast<std::size_t>(of[i / static_cast<std::size_t>(elements)] * elements) +
                     i % static_cast<std::size_t>(elements);
      d_log_prob[i] = static_cast<float>(weight(e));
      d_entropy[i] = static_cast<float>(0.3 * weight(e));
    }
    model.backward(d_log_prob, d_entropy);
  }
  static double weight(std::size_t element) { return 0.5 + static_cast<double>(element * 7 % 11) / 11; }

  std::int64_t rows, elements;
  OwnedRecord<Observation> observation;
  OwnedRecord<Decision> decision;
  std::vector<float> action_storage;
  Field<float> action;
  std::vector<std::int64_t> order;
  std::vector<float> last_entropy;
};

template <Record Type>
std::vector<std::byte> bytes_of(const Type& record) {
  std::vector<std::byte> all;
  for_each_field(record, [&](const char*, const auto& field) {
    const auto bytes = std::as_bytes(field.span());
    all.insert(all.end(), bytes.begin(), bytes.end());
  });
  return all;
}

inline double norm(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}
inline double distance(std::span<const float> left, std::span<const float> right) {
  double sum = 0;
  for (std::size_t i = 0; i < left.size(); ++i) {
    const double difference = static_cast<double>(left[i]) - static_cast<double>(right[i]);
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

}  // namespace detail

/// `make(seed)` returns a model for `inputs`. Each returned sentence says which promise is broken, and how
/// far.
template <class Make>
std::vector<std::string> check_model(Make make, const ModelInputs& inputs) {
  using Model = decltype(make(std::uint64_t{1}));
  static_assert(ModelMachinery<Model>, "check_model: make(seed) must return a ModelMachinery");
  std::vector<std::string> faults;
  const auto expect = [&](bool holds, const std::string& sentence) {
    if (!holds) faults.push_back(sentence);
  };
  const std::unique_ptr<Model> owner(new Model(make(1))), twin_owner(new Model(make(1)));
  Model &model = *owner, &twin = *twin_owner;
  const std::span<float> weights = model.parameters(), gradients = model.gradients();
  const auto same = [](const auto& left, const auto& right) { return std::ranges::equal(left, right); };

  // The buffers.
  expect(!weights.empty() && weights.size() == gradients.size(),
         "parameters() and gradients() differ in size");
  expect(std::ranges::all_of(gradients, [](float g) { return g == 0; }), "gradients do not start at 0");
  std::int64_t next = 0;
  for (const NamedTensor& tensor : model.tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t extent : tensor.shape) count *= extent;
    expect(tensor.offset >= next, "tensor '" + tensor.name + "' overlaps the one before it");
    next = tensor.offset + count;
    const auto named = [&](const NamedTensor& other) { return other.name == tensor.name; };
    expect(std::ranges::count_if(model.tensors(), named) == 1,
           "the name '" + tensor.name + "' is not unique");
  }
  expect(next <= std::ssize(weights), "tensors() reaches beyond parameters()");
  expect(same(weights, twin.parameters()), "the same seed gives other initial weights");
  {
    const std::unique_ptr<Model> other(new Model(make(2)));
    expect(!same(weights, other->parameters()), "another seed gives the same initial weights");
  }

  // Sampling.
  detail::ModelBatch<Model> batch(model, inputs, 12), again(twin, inputs, 12);
  const std::vector<float> start(weights.begin(), weights.end());
  batch.act(model, Decoding::sample, 5);
  again.act(twin, Decoding::sample, 5);
  expect(detail::bytes_of(*batch.decision) == detail::bytes_of(*again.decision) &&
             batch.action_storage == again.action_storage,
         "act with the same weights, inputs and seed gives another result");
  again.act(twin, Decoding::sample, 6);
  expect(batch.action_storage != again.action_storage, "act with another seed gives the same actions");
  expect(std::ranges::all_of(batch.action_storage, [](float a) { return a >= -1 && a <= 1; }),
         "act gives actions outside [-1, 1]");
  again.act(twin, Decoding::mode, 6);
  const std::vector<float> mode = again.action_storage;
  again.act(twin, Decoding::mode, 6);
  expect(mode == again.action_storage, "the mode is not the same twice");
  expect(same(weights, start) && std::ranges::all_of(gradients, [](float g) { return g == 0; }),
         "act changes weights or gradients");

  // Ratio 1, whatever the rows and their order.
  const auto ratio = [&](std::span<const std::int64_t> rows, const std::string& which) {
    const RatioError worst = ratio_error(model, *batch.observation, *batch.decision, rows);
    expect(worst.error <= 1e-5, "the ratio of " + which + " is off by " + std::to_string(worst.error));
  };
  std::vector<std::int64_t> reversed(batch.order.rbegin(), batch.order.rend());
  ratio(batch.order, "all rows");
  ratio(reversed, "all rows in reverse");
  ratio(std::span(reversed).subspan(3, 5), "five rows");
  ratio(std::span(reversed).subspan(4, 1), "a single row");

  // Gradients: the sum of parts, in place, as central differences have them.
  batch.accumulate(model, batch.order);
  const std::vector<float> whole(gradients.begin(), gradients.end());
  const double size = detail::norm(whole);
  expect(std::isfinite(size) && size > 0, "the gradient is zero or not finite");
  std::ranges::fill(gradients, 0.0f);
  batch.accumulate(model, std::span(reversed).subspan(0, 5));
  batch.accumulate(model, std::span(reversed).subspan(5));
  expect(detail::distance(gradients, whole) <= 1e-4 * size,
         "gradients of two parts do not add up to the whole's");
  expect(model.parameters().data() == weights.data() && model.gradients().data() == gradients.data(),
         "the buffers moved");
  expect(std::ranges::all_of(twin.gradients(), [](float g) { return g == 0; }),
         "a backward of one model writes to another's gradients");

  SplitMix64 random(17);
  std::vector<float> direction(weights.size());
  for (int trial = 0; trial < 4; ++trial) {
    // Along the gradient, over its four quarters in turn, with noise: large enough a derivative to be
    // measured.
    double expected = 0, length = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      const bool inside = trial == 0 || i % 3 == static_cast<std::size_t>(trial - 1);
      direction[i] = inside ? whole[i] + static_cast<float>(0.3 * random.normal() * size /
                                                            std::sqrt(static_cast<double>(whole.size())))
                            : 0.0f;
    }
    length = detail::norm(direction);
    for (std::size_t i = 0; i < direction.size(); ++i) {
      direction[i] /= static_cast<float>(length);
      expected += static_cast<double>(direction[i]) * static_cast<double>(whole[i]);
    }
    const double step = 2e-3;
    const auto at = [&](double along) {
      for (std::size_t i = 0; i < direction.size(); ++i)
        weights[i] =
            static_cast<float>(static_cast<double>(start[i]) + along * static_cast<double>(direction[i]));
      return batch.scalar(model, batch.order);
    };
    // Fourth-order central difference.
    const double measured = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
    std::ranges::copy(start, weights.begin());
    expect(std::abs(measured - expected) <= 0.01 * std::abs(expected) + 1e-4 * size,
           "central differences give " + std::to_string(measured) +
               " along a direction where the gradient says " + std::to_string(expected));
  }

  // Imitation.
  std::ranges::fill(gradients, 0.0f);
  const double loss = model.imitate(*batch.observation, batch.action, batch.order, 1.0);
  const std::vector<float> full(gradients.begin(), gradients.end());
  expect(std::isfinite(loss) && detail::norm(full) > 0, "imitate gives no finite loss or no gradient");
  const double twin_loss = twin.imitate(*batch.observation, batch.action, batch.order, 0.5);
  expect(std::abs(twin_loss - loss) <= 1e-5 * std::abs(loss), "imitate of equal models gives other losses");
  std::vector<float> doubled(twin.gradients().begin(), twin.gradients().end());
  for (float& value : doubled) value *= 2;
  expect(detail::distance(doubled, full) <= 1e-4 * detail::norm(full),
         "imitate's gradient is not proportional to its scale");
  expect(same(weights, start), "imitate changes the weights");

  // New weights written from outside are the ones that are used.
  for (float& value : weights) value *= 1.05f;
  const RatioError moved = ratio_error(model, *batch.observation, *batch.decision, batch.order);
  expect(moved.error > 1e-4, "weights written into parameters() are not used");
  return faults;
}

}  // namespace dvla::testing
