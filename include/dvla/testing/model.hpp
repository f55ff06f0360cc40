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
#include <functional>
#include <memory>
#include <memory_resource>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/self_test.hpp"
#include "dvla/testing/findings.hpp"
#include "dvla/testing/weights.hpp"

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

/// What a model says of its units in a forward pass and its backward pass.
struct UnitLog final : UnitHooks {
  void before_unit(std::size_t unit, Direction direction) override {
    if (open) wrong("before_unit came for unit " + std::to_string(unit) + " without an after_unit before it");
    if (!visited.empty()) {
      const auto [earlier, way] = visited.back();
      if (way == direction && (direction == Direction::forward ? unit <= earlier : unit >= earlier))
        wrong("units are not used once each, in ascending order forwards and descending order backwards");
      if (way == Direction::backward && direction == Direction::forward)
        wrong("a forward use of a unit is told of after a backward one");
    }
    visited.emplace_back(unit, direction);
    ready_before.push_back(std::ssize(ready));
    open = true;
  }
  void after_unit(std::size_t unit, Direction direction) override {
    if (!open || visited.back() != std::pair(unit, direction))
      wrong("after_unit came for a unit that before_unit did not name last");
    open = false;
  }
  void gradient_ready(std::size_t unit) override { ready.push_back(unit); }

  /// `at_once`: the model computes elsewhere and may tell of all units when its weights were written.
  std::vector<std::string> faults(const std::vector<WeightUnit>& units, bool at_once) {
    for (std::size_t unit = 0; unit < units.size(); ++unit) {
      if (units[unit].count() == 0) continue;
      const auto told = [&](Direction direction) {
        return std::ranges::find(visited, std::pair(unit, direction)) != visited.end();
      };
      const std::string which = " for unit " + std::to_string(unit) + ", which trains";
      if (!told(Direction::forward) && !told(Direction::backward) && !(at_once && visited.empty()))
        wrong("before_unit was not called" + which);
      if (told(Direction::forward) && !told(Direction::backward))
        wrong("before_unit was called forwards and not backwards" + which);
      for (std::size_t i = 0; i < visited.size(); ++i)
        if (const auto [used, way] = visited[i];
            way == Direction::backward && used + 2 <= unit &&
            std::ranges::find(ready.begin(), ready.begin() + ready_before[i], unit) ==
                ready.begin() + ready_before[i]) {
          wrong("a backward pass uses a unit before the gradient of unit " + std::to_string(unit) +
                ", two or more above it, is complete");
          break;
        }
      if (std::ranges::count(ready, unit) != 1)
        wrong("gradient_ready was not called once for unit " + std::to_string(unit) + " in a backward pass");
    }
    if (open) wrong("after_unit is missing for the unit that was used last");
    return found.sentences;
  }

  std::vector<std::pair<std::size_t, Direction>> visited;
  std::vector<std::size_t> ready;
  std::vector<std::ptrdiff_t> ready_before;  ///< of each visit: how many were complete
  bool open = false;
  Findings found;  ///< so far

 private:
  void wrong(const std::string& what) { found(false, what); }
};

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
    model.act(*observation, order, decoding, seed, *decision, action);
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
    for (std::size_t i = 0; i < values.size(); ++i)
      sum += weight(of, i) * (static_cast<double>(values[i]) + 0.3 * static_cast<double>(last_entropy[i]));
    return sum;
  }
  /// forward and backward of that scalar.
  void accumulate(Model& model, std::span<const std::int64_t> of) {
    std::vector<float> d_log_prob = log_prob(model, of), d_entropy(d_log_prob.size());
    for (std::size_t i = 0; i < d_log_prob.size(); ++i) {
      d_log_prob[i] = static_cast<float>(weight(of, i));
      d_entropy[i] = static_cast<float>(0.3 * weight(of, i));
    }
    model.backward(d_log_prob, d_entropy);
  }
  /// Of the call's element i: that of its row's element, whichever rows stand before it.
  double weight(std::span<const std::int64_t> of, std::size_t i) const {
    const auto at = static_cast<std::int64_t>(i);
    const std::int64_t element = of[static_cast<std::size_t>(at / elements)] * elements + at % elements;
    return 0.5 + static_cast<double>(element * 7 % 11) / 11;
  }

  std::int64_t rows, elements;
  OwnedRecord<Observation> observation;
  OwnedRecord<Decision> decision;
  std::vector<float> action_storage;
  Field<float> action;
  std::vector<std::int64_t> order;
  std::vector<float> last_entropy;
};

inline double dot(std::span<const float> left, std::span<const float> right) {
  return std::inner_product(left.begin(), left.end(), right.begin(), 0.0, std::plus<>(),
                            [](double a, double b) { return a * b; });
}
inline double norm(std::span<const float> values) { return std::sqrt(dot(values, values)); }
inline double distance(std::span<const float> left, std::span<const float> right) {
  double sum = 0;
  for (std::size_t i = 0; i < left.size(); ++i) {
    const double difference = static_cast<double>(left[i]) - static_cast<double>(right[i]);
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

/// The derivative of `scalar()` by a step of length 1 along `direction` of the weights, measured by fourth-order
/// central differences. Where that is further than `within` from `expected`, as where a kink (a relu's) lies within the step, a shorter one is taken.
template <class Model, class Scalar>
double slope_along(Model& model, std::span<const float> direction, double expected, double within,
                   Scalar scalar) {
  const std::vector<float> weights = weights_of(model);
  const double length = norm(direction);
  const auto at = [&](double along) {
    std::vector<float> there = weights;
    for (std::size_t i = 0; i < there.size(); ++i)
      there[i] += static_cast<float>(along / length * static_cast<double>(direction[i]));
    set_weights(model, there);
    return static_cast<double>(scalar());
  };
  double slope = 0;
  for (const double step : {2e-3, 2.5e-4}) {
    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
    if (std::abs(slope - expected) <= within) break;
  }
  set_weights(model, weights);
  return slope;
}

/// What act stored, values() and forward agree; backward carries the slope in values, and it alone.
template <class Model>
void check_values(Model& model, ModelBatch<Model>& batch, Findings& expect) {
  batch.act(model, Decoding::sample, 5);
  const auto& stored = batch.decision->value;
  const auto V = static_cast<std::size_t>(stored.count() / batch.rows);
  std::vector<float> value(V * batch.order.size()), again(value.size()), d_value(value.size());
  std::vector<float> log_prob(batch.order.size() * static_cast<std::size_t>(batch.elements)),
      entropy(log_prob.size()), none(log_prob.size());
  const auto near = [](std::span<const float> left, std::span<const float> right) {
    return distance(left, right) <= 1e-5 * (1 + norm(left));
  };
  model.values(*batch.observation, batch.order, value);
  expect(near(value, stored.span()), "values() gives other values than act stored in Decision::value");
  model.forward(*batch.observation, *batch.decision, batch.order, log_prob, entropy, again);
  expect(near(value, again), "forward gives other values than values()");
  zero_gradients(model);
  SplitMix64 random(29);
  for (float& slope : d_value) slope = static_cast<float>(random.normal());
  model.backward(none, none, d_value);
  const std::vector<float> gradient = gradients_of(model);
  expect(norm(gradient) > 0, "backward carries no gradient of the values");
  const double within = 0.02 * norm(gradient);
  const double measured = slope_along(model, gradient, norm(gradient), within, [&] {
    model.values(*batch.observation, batch.order, again);
    return dot(again, d_value);
  });
  expect(computes_in_16_bits(model) || std::abs(measured - norm(gradient)) <= within,
         "central differences of the values give " + std::to_string(measured) + " where the gradient says " +
             std::to_string(norm(gradient)));
}

}  // namespace detail

/// `make(seed)` returns a model for `inputs`. Each returned sentence says which promise is broken, and how
/// far.
template <class Make>
std::vector<std::string> check_model(Make make, const ModelInputs& inputs) {
  using Model = decltype(make(std::uint64_t{1}));
  static_assert(ModelMachinery<Model>, "check_model: make(seed) must return a ModelMachinery");
  detail::Findings expect;
  const std::unique_ptr<Model> owner(new Model(make(1))), twin_owner(new Model(make(1)));
  Model &model = *owner, &twin = *twin_owner;
  const auto same = [](const auto& left, const auto& right) { return std::ranges::equal(left, right); };
  const auto zero = [](float value) { return value == 0; };
  // In 16 bits a ratio is off by roundings (model/self_test.hpp), and a difference of weights is one of
  // hundreds of them.
  const bool half = computes_in_16_bits(model);

  // Parameters, units and gradients.
  expect(detail::gradients_of(model).empty(), "a new model holds gradients");
  model.hold_gradients(true);
  twin.hold_gradients(true);
  const std::vector<float> start = detail::weights_of(model);
  const auto gradients = [&] { return detail::gradients_of(model); };
  expect(!start.empty() && start.size() == gradients().size(),
         "units() have not as many gradients as trainable elements once they are held");
  expect(std::ranges::all_of(gradients(), zero), "gradients do not start at 0");
  std::vector<std::byte*> next;
  for (const WeightUnit& unit : model.units()) {
    next.push_back(unit.values.data());
    std::int64_t runs = 0;
    for (const OptimiserRun& run : unit.runs) runs += run.count;
    expect(runs == unit.count(), "the runs of unit " + std::to_string(next.size() - 1) +
                                     " do not add up to its trainable elements");
  }
  for (const Parameter& each : model.parameters()) {
    const auto named = [&](const Parameter& other) { return other.name == each.name; };
    expect(std::ranges::count_if(model.parameters(), named) == 1,
           "the name '" + each.name + "' is not unique");
    if (each.unit >= next.size()) {
      expect(false, "parameter '" + each.name + "' is of a unit that units() does not have");
      return expect.sentences;
    }
    if (!each.trainable || !each.alias_of.empty()) continue;
    expect(each.data == next[each.unit],
           "trainable parameter '" + each.name + "' does not follow the one before it in its unit's values");
    expect(each.dtype == model.units()[each.unit].dtype,
           "parameter '" + each.name + "' is of another dtype than its unit");
    next[each.unit] += each.bytes();
  }
  for (std::size_t unit = 0; unit < next.size(); ++unit)
    expect(next[unit] == model.units()[unit].values.data() + model.units()[unit].values.size(),
           "the trainable parameters of unit " + std::to_string(unit) + " are not all of its values");
  expect(same(start, detail::weights_of(twin)), "the same seed gives other initial weights");
  {
    const std::unique_ptr<Model> other(new Model(make(2)));
    expect(!same(start, detail::weights_of(*other)) ||
               !same(detail::frozen_bytes(model), detail::frozen_bytes(*other)),
           "another seed gives the same initial weights");
  }
  const std::vector<std::byte> frozen = detail::frozen_bytes(model);

  // Weights that do something from the start: adapters begin with halves that are 0.
  std::vector<float> weights = start;
  {
    SplitMix64 random(23);
    for (float& value : weights)
      if (value == 0) value = static_cast<float>(0.02 * random.normal());
    detail::set_weights(model, weights);
    detail::set_weights(twin, weights);
    weights = detail::weights_of(model);  // as they were rounded
  }

  // What act and forward write would not fit otherwise.
  if (const Extents laid_out = model.decision_layout({12}).log_prob.extents(),
      wanted{12, inputs.chunk, inputs.action.dimensions};
      laid_out != wanted) {
    expect(false, "decision_layout({12}) must lay out log_prob as [12, " + std::to_string(inputs.chunk) +
                      ", " + std::to_string(inputs.action.dimensions) + "]: rows, chunk, action dimensions");
    return expect.sentences;
  }

  // Sampling.
  detail::ModelBatch<Model> batch(model, inputs, 12), again(twin, inputs, 12);
  batch.act(model, Decoding::sample, 5);
  again.act(twin, Decoding::sample, 5);
  expect(record_checksum(*batch.decision) == record_checksum(*again.decision) &&
             batch.action_storage == again.action_storage,
         "act with the same weights, inputs and seed gives another result");
  again.act(twin, Decoding::sample, 6);
  expect(batch.action_storage != again.action_storage, "act with another seed gives the same actions");
  for (std::size_t i = 0; i < batch.action_storage.size(); ++i) {
    const int n = inputs.action.categories_of(static_cast<std::int64_t>(i) % inputs.action.dimensions);
    const float a = batch.action_storage[i];
    expect(n == 0 ? a >= -1 && a <= 1 : a >= 0 && a < static_cast<float>(n) && a == std::floor(a),
           n == 0 ? "act gives actions outside [-1, 1]"
                  : "act gives something else than one of a dimension's categories");
  }
  {  // some rows: the same numbers as before, and nothing of the others
    const std::vector<std::int64_t> some{1, 4, 5, 11};
    for_each_field(*again.decision,
                   [](const char*, const auto& field) { std::memset(field.data(), 0x55, field.bytes()); });
    std::ranges::fill(again.action_storage, 7.0f);
    twin.act(*again.observation, some, Decoding::sample, 5, *again.decision, again.action);
    bool equal = true, untouched = true;
    for (std::int64_t row = 0; row < again.rows; ++row) {
      const bool asked = std::ranges::find(some, row) != some.end();
      const std::span<float> now = again.action.at(row).span();
      if (asked)
        for (std::size_t i = 0; i < now.size();
             ++i)  // roundings may differ with the shape of matrix products
          equal = equal && std::abs(now[i] - batch.action.at(row).span()[i]) <= 1e-4f;
      else
        untouched = untouched && std::ranges::all_of(now, [](float value) { return value == 7.0f; }) &&
                    std::ranges::all_of(std::as_bytes(again.decision->log_prob.at(row).span()),
                                        [](std::byte value) { return value == std::byte{0x55}; });
    }
    expect(equal || half, "act draws something else for a row where others are left out");
    expect(untouched, "act writes rows that it was not asked for");
  }
  again.act(twin, Decoding::mode, 6);
  const std::vector<float> mode = again.action_storage;
  again.act(twin, Decoding::mode, 6);
  expect(mode == again.action_storage, "the mode is not the same twice");
  expect(same(weights, detail::weights_of(model)) && std::ranges::all_of(gradients(), zero),
         "act changes weights or gradients");

  // Ratio 1, whatever the rows and their order.
  const auto ratio = [&](std::span<const std::int64_t> rows, const std::string& which) {
    const RatioError found = ratio_error(model, *batch.observation, *batch.decision, rows);
    expect(found.fits(half), "the ratio of " + which + " is off by " + std::to_string(found.error));
  };
  std::vector<std::int64_t> reversed(batch.order.rbegin(), batch.order.rend());
  ratio(batch.order, "all rows");
  ratio(reversed, "all rows in reverse");
  ratio(std::span(reversed).subspan(3, 5), "five rows");
  ratio(std::span(reversed).subspan(4, 1), "a single row");

  // Gradients: the sum of parts, in place, as central differences have them.
  batch.accumulate(model, batch.order);
  const std::vector<float> whole = gradients();
  const double size = detail::norm(whole);
  expect(std::isfinite(size) && size > 0, "the gradient is zero or not finite");
  const float* const place = model.units().back().gradients.data();
  detail::zero_gradients(model);
  batch.accumulate(model, std::span(reversed).subspan(0, 5));
  batch.accumulate(model, std::span(reversed).subspan(5));
  expect(detail::distance(gradients(), whole) <= (half ? 2e-2 : 1e-4) * size,
         "gradients of two parts do not add up to the whole's");
  expect(model.units().back().gradients.data() == place, "the gradients moved");
  expect(std::ranges::all_of(detail::gradients_of(twin), zero),
         "a backward of one model writes to another's gradients");

  SplitMix64 random(17);
  std::vector<float> direction(weights.size());
  for (int trial = 0; trial < (half ? 0 : 4); ++trial) {
    // Along the gradient, over its four quarters in turn, with noise: large enough a derivative to be
    // measured.
    for (std::size_t i = 0; i < direction.size(); ++i) {
      const bool inside = trial == 0 || i % 3 == static_cast<std::size_t>(trial - 1);
      direction[i] = inside ? whole[i] + static_cast<float>(0.3 * random.normal() * size /
                                                            std::sqrt(static_cast<double>(whole.size())))
                            : 0.0f;
    }
    const double expected = detail::dot(direction, whole) / detail::norm(direction);
    const double within = 0.01 * std::abs(expected) + 1e-4 * size;
    const double measured = detail::slope_along(model, direction, expected, within,
                                                [&] { return batch.scalar(model, batch.order); });
    expect(std::abs(measured - expected) <= within, "central differences give " + std::to_string(measured) +
                                                        " along a direction where the gradient says " +
                                                        std::to_string(expected));
  }

  if constexpr (HasValues<Model>) detail::check_values(model, batch, expect);

  // Imitation.
  detail::zero_gradients(model);
  const double loss = model.imitate(*batch.observation, batch.action, batch.order, 1.0);
  const std::vector<float> full = gradients();
  expect(std::isfinite(loss) && detail::norm(full) > 0, "imitate gives no finite loss or no gradient");
  const double twin_loss = twin.imitate(*batch.observation, batch.action, batch.order, 0.5);
  expect(std::abs(twin_loss - loss) <= 1e-5 * std::abs(loss), "imitate of equal models gives other losses");
  std::vector<float> doubled = detail::gradients_of(twin);
  for (float& value : doubled) value *= 2;
  expect(detail::distance(doubled, full) <= (half ? 2e-2 : 1e-4) * detail::norm(full),
         "imitate's gradient is not proportional to its scale");
  expect(same(weights, detail::weights_of(model)), "imitate changes the weights");

  // Whoever hooks the units hears of each in time.
  {
    detail::UnitLog log;
    model.hook_units(&log);
    batch.accumulate(model, batch.order);
    model.hook_units(nullptr);
    for (const std::string& fault : log.faults(model.units(), ModelElsewhere<Model>)) expect(false, fault);
    detail::zero_gradients(model);
  }

  if constexpr (HasValues<Model>) {  // so in a pass that asks for values
    detail::UnitLog log;
    std::vector<float> log_prob = batch.log_prob(model, batch.order), entropy = batch.last_entropy,
                       value(static_cast<std::size_t>(batch.decision->value.count()));
    model.hook_units(&log);
    model.forward(*batch.observation, *batch.decision, batch.order, log_prob, entropy, value);
    model.backward(log_prob, entropy, value);
    model.hook_units(nullptr);
    for (const std::string& fault : log.faults(model.units(), ModelElsewhere<Model>))
      expect(false, fault + ", where values are asked for");
    detail::zero_gradients(model);
  }

  // A copy computes the same, from frozen parameters that are the same ones and trainable ones of its own.
  {
    const auto copied = std::make_unique<Model>(std::as_const(model), share_frozen);
    expect(same(weights, detail::weights_of(*copied)), "a copy has other weights");
    expect(detail::gradients_of(*copied).empty(), "a copy holds gradients");
    for (std::size_t i = 0; i < model.parameters().size(); ++i)
      if (const Parameter& mine = model.parameters()[i], &its = copied->parameters()[i];
          mine.alias_of.empty())
        expect((mine.data == its.data) != mine.trainable,
               "parameter '" + mine.name + "' of a copy is " +
                   (mine.trainable ? "the model's own, and trainable" : "another one, and frozen"));
    again.act(*copied, Decoding::sample, 5);
    expect(record_checksum(*batch.decision) == record_checksum(*again.decision),
           "a copy samples something else with the same seed");
  }

  // New weights written from outside are the ones that are used.
  std::vector<float> others = weights;
  for (float& value : others) value *= 1.05f;
  detail::set_weights(model, others);
  const RatioError moved = ratio_error(model, *batch.observation, *batch.decision, batch.order);
  expect(moved.error > 1e-4, "weights written into units() are not used");
  expect(same(frozen, detail::frozen_bytes(model)), "something has changed a frozen parameter");

  model.hold_gradients(false);
  expect.refused("imitate while no gradients are held", "",
                 [&] { model.imitate(*batch.observation, batch.action, batch.order, 1.0); });
  return expect.sentences;
}

}  // namespace dvla::testing
