// LinearModel: the smallest model that conforms and learns, written by hand without torch: for tests, benches
// and as a pattern for models of your own. A categorical over bins for every action element, its logits
// linear in [proprioception, instruction one-hot, their products, 1]: the products are what lets language
// turn a sign. LinearValueModel has a value head besides, linear in the same features. A dimension of n
// categories has n bins, and the bin is the action. Not for images (it does not look at frames) and not for
// tasks that need more than linear features.
//
// Legend: n rows of a call, E = C * A action elements, K bins, F features.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/slot.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/extents_with.hpp"

namespace dvla::testing {

struct LinearKnobs {
  int bins = 9;          ///< K, evenly over [-1, 1], both ends included
  int chunk = 1;         ///< C
  int frozen_units = 0;  ///< the first ones; as many as there are action elements at most
  Dtype dtype = Dtype::f32;
};

struct LinearDecision {
  Field<std::int32_t> bin;  ///< [.., C, A]
  Field<float> log_prob;    ///< [.., C, A]
};
struct LinearValueDecision : LinearDecision {
  Field<float> value;  ///< [.., 1]
};

}  // namespace dvla::testing

BOOST_HANA_ADAPT_STRUCT(dvla::testing::LinearKnobs, bins, chunk, frozen_units, dtype);
BOOST_HANA_ADAPT_STRUCT(dvla::testing::LinearDecision, bin, log_prob);
BOOST_HANA_ADAPT_STRUCT(dvla::testing::LinearValueDecision, bin, log_prob, value);
template <>
inline constexpr auto dvla::knob_docs<dvla::testing::LinearKnobs> = std::to_array<dvla::KnobDoc>({
    {"bins", "bins an action dimension", 2, 1024},
    {"chunk", "actions a decision", 1, 64, "control steps"},
    {"frozen_units", "how many of the first action elements' weights do not train", 0, 65536},
    {"dtype", "precision of the weights: f32 or bf16; sums are float32"},
});

namespace dvla::testing {

/// Policy and machinery in one. act allocates nothing; forward and imitate keep scratch that grows to the
/// largest call. Deterministic.
template <bool Values>
class BasicLinearModel {
 public:
  using slot = model_slot;
  using knobs = LinearKnobs;
  static constexpr std::string_view name = Values ? "LinearValueModel" : "LinearModel";
  static constexpr bool has_value_head = Values;
  using Decision = std::conditional_t<Values, LinearValueDecision, LinearDecision>;

  BasicLinearModel(const LinearKnobs& chosen, const ModelInputs& inputs, std::uint64_t seed)
      : chunk_(inputs.chunk),
        actions_(inputs.action.dimensions),
        categories_(inputs.action.categories),
        bins_(std::accumulate(categories_.begin(), categories_.end(), chosen.bins,
                              [](int most, int n) { return std::max(most, n); })),
        frozen_units_(static_cast<std::size_t>(chosen.frozen_units)),
        dtype_(chosen.dtype),
        proprioception_(inputs.observation.proprioception),
        instructions_(static_cast<std::int64_t>(inputs.observation.instructions.size())) {
    if (chunk_ < 1 || actions_ < 1 || bins_ < 2 || proprioception_ < 1 || instructions_ < 1) {
      throw ConfigError(
          "LinearModel needs proprioception, an instruction, an action and a chunk, and at least 2 bins; the "
          "environment or the knobs lack one of them");
    }
    features_ = proprioception_ + instructions_ + proprioception_ * instructions_ + 1;
    elements_ = chunk_ * actions_;
    if (chosen.frozen_units < 0 || chosen.frozen_units > elements_ || dtype_ == Dtype::f16) {
      throw ConfigError("LinearModel: frozen_units is " + std::to_string(chosen.frozen_units) +
                        "; it must be from 0 to the " + std::to_string(elements_) +
                        " action elements, and dtype f32 or bf16");
    }
    frozen_ = std::make_shared<std::vector<std::byte>>(frozen_units_ * unit_bytes());
    trained_.resize(unit_bytes() * static_cast<std::size_t>(elements_) - frozen_->size() +
                    (Values ? static_cast<std::size_t>(features_) * bytes_of(dtype_) : 0));
    describe();
    SplitMix64 random(seed);
    std::vector<float> values(static_cast<std::size_t>(bins_ * features_));
    for (const Parameter& each : parameters_) {
      values.resize(static_cast<std::size_t>(each.count()));
      for (float& value : values) value = static_cast<float>(0.01 * random.normal());
      from_floats(values, dtype_, {each.data, each.bytes()});
    }
    feature_F_.resize(static_cast<std::size_t>(features_));
    log_prob_K_.resize(static_cast<std::size_t>(bins_));
  }

  BasicLinearModel(const BasicLinearModel& original, ShareFrozen) : BasicLinearModel(original) {
    gradients_ = {};
    holds_ = false;
    hooks_ = nullptr;
    describe();
  }

  static void use_threads(int) {}  // one thread is all it uses

  Decision decision_layout(Extents leading) const {
    const Extents all = extents_with(leading, {chunk_, actions_});
    Decision layout;
    layout.bin = Field<std::int32_t>(all);
    layout.log_prob = Field<float>(all);
    if constexpr (Values) layout.value = Field<float>(extents_with(leading, {1}));
    return layout;
  }

  void act(const Observation& observation, std::span<const std::int64_t> rows, Decoding decoding,
           std::uint64_t seed, Decision& decision, Field<float> action) {
    before_units();
    for (const std::int64_t row : rows) {
      fill_features(observation, row, feature_F_);
      SplitMix64 random(mix_seed(seed, row));
      for (std::int64_t e = 0; e < elements_; ++e) {
        fill_log_probs(e, feature_F_, log_prob_K_);
        std::int64_t bin = std::max_element(log_prob_K_.begin(), log_prob_K_.end()) - log_prob_K_.begin();
        if (decoding == Decoding::sample) bin = draw(e, random.uniform01<float>());
        decision.bin[row * elements_ + e] = static_cast<std::int32_t>(bin);
        decision.log_prob[row * elements_ + e] = log_prob_K_[static_cast<std::size_t>(bin)];
        action[row * elements_ + e] = action_of(e, bin);
      }
      if constexpr (Values) decision.value[row] = value_of(feature_F_);
    }
  }

  void values(const Observation& observation, std::span<const std::int64_t> rows,
              std::span<float> value) requires Values {
    before_unit(elements_);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      fill_features(observation, rows[i], feature_F_);
      value[i] = value_of(feature_F_);
    }
    after_unit(elements_);
  }

  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy) {
    run(observation, rows);
    chosen_nE_.resize(rows.size() * static_cast<std::size_t>(elements_));
    entropy_nE_.resize(chosen_nE_.size());
    for (std::size_t i = 0; i < chosen_nE_.size(); ++i) {
      const auto e = static_cast<std::int64_t>(i) % elements_;
      const std::int32_t bin = decision.bin[rows[i / static_cast<std::size_t>(elements_)] * elements_ + e];
      if (bin < 0 || bin >= bins_) {
        throw Error("LinearModel: a stored decision has bin " + std::to_string(bin) + " of " +
                    std::to_string(bins_) + "; was it made by another model?");
      }
      const std::span<const float> logs = logs_of(i);
      float sum = 0;
      for (const float log : logs) sum -= std::exp(log) * log;
      chosen_nE_[i] = bin;
      log_prob[i] = logs[static_cast<std::size_t>(bin)];
      entropy[i] = entropy_nE_[i] = sum;
    }
    pending_ = true;
  }
  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy, std::span<float> value) requires Values {
    forward(observation, decision, rows, log_prob, entropy);
    before_unit(elements_);
    for (std::size_t i = 0; i < rows.size(); ++i) value[i] = value_of(features_of(i));
    after_unit(elements_);
  }

  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy,
                std::span<const float> d_value) requires Values {
    need_gradients();
    if (d_value.size() * static_cast<std::size_t>(elements_) != d_log_prob.size())
      throw Error("LinearValueModel: backward was given slopes for another number of values than rows");
    float* const gradient = units_.back().gradients.data();
    for (std::size_t i = 0; i < d_value.size(); ++i) {
      const std::span<const float> feature = features_of(i);
      for (std::size_t f = 0; f < feature.size(); ++f) gradient[f] += d_value[i] * feature[f];
    }
    backward(d_log_prob, d_entropy);
  }
  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy) {
    if (!pending_ || d_log_prob.size() != chosen_nE_.size() || d_entropy.size() != chosen_nE_.size()) {
      throw Error("LinearModel: backward is called once after each forward, with as many elements");
    }
    pending_ = false;
    need_gradients();
    for_each_backwards(chosen_nE_.size(), [&](std::size_t i) {
      const std::span<const float> logs = logs_of(i);
      add_gradient(i, [&](std::int64_t k) {
        const float log = logs[static_cast<std::size_t>(k)], prob = std::exp(log);
        return d_log_prob[i] * ((k == chosen_nE_[i] ? 1.0F : 0.0F) - prob) -
               d_entropy[i] * prob * (log + entropy_nE_[i]);
      });
    });
  }

  double imitate(const Observation& observation, Field<float> action, std::span<const std::int64_t> rows,
                 double scale) {
    need_gradients();
    run(observation, rows);
    pending_ = false;
    const std::size_t count = rows.size() * static_cast<std::size_t>(elements_);
    double loss = 0;
    for_each_backwards(count, [&](std::size_t i) {
      const auto e = static_cast<std::int64_t>(i) % elements_;
      const std::int64_t wanted =
          nearest(e, action[rows[i / static_cast<std::size_t>(elements_)] * elements_ + e]);
      const std::span<const float> logs = logs_of(i);
      loss -= logs[static_cast<std::size_t>(wanted)];
      const auto weight = static_cast<float>(scale / static_cast<double>(count));
      add_gradient(i, [&](std::int64_t k) {
        return weight * (std::exp(logs[static_cast<std::size_t>(k)]) - (k == wanted ? 1.0F : 0.0F));
      });
    });
    return count == 0 ? 0 : loss / static_cast<double>(count);
  }

  /// A unit an action element: the rows of its bins.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const std::vector<WeightUnit>& units() const { return units_; }
  void hold_gradients(bool holds) {
    if (holds == holds_) return;
    holds_ = holds;
    gradients_ = std::vector<float>(holds ? trained_.size() / bytes_of(dtype_) : 0);
    describe();
  }
  void hook_units(UnitHooks* hooks) { hooks_ = hooks; }

 private:
  BasicLinearModel(const BasicLinearModel&) = default;  // leaves pointers into the other's buffers

  std::size_t unit_bytes() const { return static_cast<std::size_t>(bins_ * features_) * bytes_of(dtype_); }
  bool trains(std::size_t e) const { return e >= frozen_units_; }
  /// What parameters() and units() say, by where the buffers are now.
  void describe() {
    values_.clear();
    parameters_.clear();
    units_.clear();
    const auto part = static_cast<std::size_t>(bins_ * features_),
               units = static_cast<std::size_t>(elements_);
    for (std::size_t e = 0; e < units + (Values ? 1 : 0); ++e) {
      const std::size_t place = trains(e) ? e - frozen_units_ : e;
      const bool value = e == units;
      values_.push_back((trains(e) ? trained_ : *frozen_).data() + place * unit_bytes());
      parameters_.push_back({.name = value ? "value" : "weight." + std::to_string(e),
                             .shape = {value ? 1 : bins_, features_},
                             .dtype = dtype_,
                             .unit = e,
                             .trainable = trains(e),
                             .data = values_[e]});
      const std::int64_t count = parameters_.back().count();
      WeightUnit& unit = units_.emplace_back();
      unit.dtype = dtype_;
      if (!trains(e)) continue;
      unit.values = {values_[e], parameters_.back().bytes()};
      if (holds_)
        unit.gradients = std::span(gradients_).subspan(place * part, static_cast<std::size_t>(count));
      unit.runs = {{.count = count}};
    }
  }
  void need_gradients() const {
    if (!holds_)
      throw Error("LinearModel holds no gradients; call hold_gradients(true) where it is to be trained");
  }
  void before_units() const {
    for (std::int64_t e = 0; hooks_ != nullptr && e < elements_ + (Values ? 1 : 0); ++e) before_unit(e);
  }
  void before_unit(std::int64_t e, Direction direction = Direction::forward) const {
    if (hooks_ != nullptr) hooks_->before_unit(static_cast<std::size_t>(e), direction);
  }
  void after_unit(std::int64_t e, Direction direction = Direction::forward) const {
    if (hooks_ != nullptr) hooks_->after_unit(static_cast<std::size_t>(e), direction);
  }
  /// Categories of the dimension of element e; 0: it is continuous.
  int categories(std::int64_t e) const {
    return categories_.empty() ? 0 : categories_[static_cast<std::size_t>(e % actions_)];
  }
  float action_of(std::int64_t e, std::int64_t bin) const {
    if (categories(e) > 0) return static_cast<float>(bin);
    return -1.0F + 2.0F * static_cast<float>(bin) / static_cast<float>(bins_ - 1);
  }
  std::int64_t nearest(std::int64_t e, float action) const {
    const float place = categories(e) > 0
                            ? std::clamp(action, 0.0F, static_cast<float>(categories(e) - 1))
                            : (std::clamp(action, -1.0F, 1.0F) + 1.0F) / 2.0F * static_cast<float>(bins_ - 1);
    return std::isfinite(place) ? std::lround(place) : 0;
  }
  float value_of(std::span<const float> feature) const {
    float value = 0;
    fill_logits(values_.back(), feature, {&value, 1});
    return value;
  }
  /// The bin of element e where the cumulated probability passes `u` in [0, 1).
  std::int64_t draw(std::int64_t e, float u) const {
    const std::int64_t last = (categories(e) > 0 ? categories(e) : bins_) - 1;  // rounding may lead past it
    for (std::int64_t k = 0; k < last; ++k) {
      u -= std::exp(log_prob_K_[static_cast<std::size_t>(k)]);
      if (u < 0) return k;
    }
    return last;
  }
  void fill_features(const Observation& observation, std::int64_t row, std::span<float> feature) const {
    const std::int32_t instruction = observation.instruction[row];
    if (instruction < 0 || instruction >= instructions_) {
      throw Error("LinearModel: row " + std::to_string(row) + " has instruction " +
                  std::to_string(instruction) + ", but the table has " + std::to_string(instructions_) +
                  "; is the observation filled?");
    }
    std::fill(feature.begin(), feature.end(), 0.0F);
    const float* numbers = observation.proprioception.data() + row * proprioception_;
    float* products = feature.data() + proprioception_ + instructions_ + instruction * proprioception_;
    for (std::int64_t p = 0; p < proprioception_; ++p)
      feature[static_cast<std::size_t>(p)] = products[p] = numbers[p];
    feature[static_cast<std::size_t>(proprioception_ + instruction)] = 1;
    feature.back() = 1;
  }
  void fill_log_probs(std::int64_t e, std::span<const float> feature, std::span<float> log_prob) const {
    fill_logits(values_[static_cast<std::size_t>(e)], feature, log_prob);
    if (const int n = categories(e); n > 0)  // exp of it is 0
      std::fill(log_prob.begin() + n, log_prob.end(), -1e9F);
    const float largest = *std::max_element(log_prob.begin(), log_prob.end());
    float sum = 0;
    for (const float logit : log_prob) sum += std::exp(logit - largest);
    const float log_sum = largest + std::log(sum);
    for (float& logit : log_prob) logit -= log_sum;
  }
  /// The products of weights [logits, F], in the model's precision, and features.
  void fill_logits(const std::byte* values, std::span<const float> feature, std::span<float> logits) const {
    const auto* f32 = reinterpret_cast<const float*>(values);
    const auto* bf16 = reinterpret_cast<const std::uint16_t*>(values);
    for (float& logit : logits) {
      logit = 0;
      for (const float value : feature) logit += (dtype_ == Dtype::f32 ? *f32++ : from_bf16(*bf16++)) * value;
    }
  }
  /// Features and log-probabilities of `rows`, kept for the gradient.
  void run(const Observation& observation, std::span<const std::int64_t> rows) {
    feature_nF_.resize(rows.size() * static_cast<std::size_t>(features_));
    log_prob_nEK_.resize(rows.size() * static_cast<std::size_t>(elements_ * bins_));
    for (std::size_t i = 0; i < rows.size(); ++i) fill_features(observation, rows[i], features_of(i));
    for (std::int64_t e = 0; e < elements_; ++e) {
      before_unit(e);
      for (std::size_t i = 0; i < rows.size(); ++i)
        fill_log_probs(e, features_of(i),
                       logs_of(i * static_cast<std::size_t>(elements_) + static_cast<std::size_t>(e)));
      after_unit(e);
    }
  }
  /// Visits the indices of [n, E], the last unit first, and says when a unit's gradient is complete. (These
  /// gradients do not depend on the weights; a model whose do says so in the same places.)
  template <class Visit>
  void for_each_backwards(std::size_t count, Visit visit) const {
    const auto elements = static_cast<std::size_t>(elements_);
    for (std::size_t e = elements + (Values ? 1 : 0); e-- > 0;) {
      const auto unit = static_cast<std::int64_t>(e);
      before_unit(unit, Direction::backward);
      for (std::size_t i = e; e < elements && i < count; i += elements) visit(i);
      if (hooks_ != nullptr && trains(e)) hooks_->gradient_ready(e);
      after_unit(unit, Direction::backward);
    }
  }
  std::span<float> features_of(std::size_t row) {
    const auto width = static_cast<std::size_t>(features_);
    return {feature_nF_.data() + row * width, width};
  }
  std::span<float> logs_of(std::size_t element) {
    const auto width = static_cast<std::size_t>(bins_);
    return {log_prob_nEK_.data() + element * width, width};
  }
  /// Adds d_logit(k) * features to the gradient of the weights of element `i` of [n, E].
  template <class DLogit>
  void add_gradient(std::size_t i, DLogit d_logit) {
    const std::span<const float> feature = features_of(i / static_cast<std::size_t>(elements_));
    const std::size_t unit = i % static_cast<std::size_t>(elements_);
    if (!trains(unit)) return;
    float* gradient = units_[unit].gradients.data();
    for (std::int64_t k = 0; k < bins_; ++k) {
      const float d = d_logit(k);
      for (const float value : feature) *gradient++ += d * value;
    }
  }

  std::int64_t chunk_, actions_;
  std::vector<int> categories_;
  std::int64_t bins_;  ///< of every element; those beyond a dimension's categories are never drawn
  std::size_t frozen_units_;
  Dtype dtype_;
  std::int64_t proprioception_, instructions_;
  std::int64_t features_ = 0, elements_ = 0;
  std::shared_ptr<std::vector<std::byte>> frozen_;  ///< by unit, shared by all copies
  std::vector<std::byte> trained_;                  ///< likewise, its own
  std::vector<std::byte*> values_;                  ///< of each unit
  std::vector<float> gradients_;                    ///< of the units that train
  bool holds_ = false;
  std::vector<Parameter> parameters_;
  std::vector<WeightUnit> units_;
  std::vector<float> feature_F_, log_prob_K_;
  std::vector<float> feature_nF_, log_prob_nEK_, entropy_nE_;
  std::vector<std::int32_t> chosen_nE_;
  bool pending_ = false;
  UnitHooks* hooks_ = nullptr;
};

struct LinearModel : BasicLinearModel<false> {
  using BasicLinearModel::BasicLinearModel;
};
struct LinearValueModel : BasicLinearModel<true> {
  using BasicLinearModel::BasicLinearModel;
};
static_assert(ModelMachinery<LinearModel> && HasValues<LinearValueModel>);

}  // namespace dvla::testing
