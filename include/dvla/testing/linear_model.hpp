// LinearModel: the smallest model that conforms and learns, written by hand without torch: for tests, benches
// and as a pattern for models of your own. A categorical over bins for every action element, its logits
// linear in [proprioception, instruction one-hot, their products, 1]: the products are what lets language
// turn a sign. Not for images (it does not look at frames) and not for tasks that need more than linear
// features.
//
// Legend: n rows of a call, E = C * A action elements, K bins, F features.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/slot.hpp"
#include "dvla/model/concept.hpp"

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

}  // namespace dvla::testing

BOOST_HANA_ADAPT_STRUCT(dvla::testing::LinearKnobs, bins, chunk, frozen_units, dtype);
BOOST_HANA_ADAPT_STRUCT(dvla::testing::LinearDecision, bin, log_prob);
template <>
inline constexpr auto dvla::knob_docs<dvla::testing::LinearKnobs> = std::to_array<dvla::KnobDoc>({
    {"bins", "bins an action dimension", 2, 1024},
    {"chunk", "actions a decision; the horizon is a multiple of it", 1, 64, "control steps"},
    {"frozen_units", "how many of the first action elements' weights do not train", 0, 65536},
    {"dtype", "precision of the weights: f32 or bf16; sums are float32"},
});

namespace dvla::testing {

/// Policy and machinery in one. act allocates nothing; forward and imitate keep scratch that grows to the
/// largest call. Deterministic.
class LinearModel {
 public:
  using slot = model_slot;
  using knobs = LinearKnobs;
  static constexpr std::string_view name = "LinearModel";
  static constexpr bool has_value_head = false;
  using Decision = LinearDecision;

  LinearModel(const LinearKnobs& chosen, const ModelInputs& inputs, std::uint64_t seed)
      : chunk_(inputs.chunk),
        actions_(inputs.action.dimensions),
        bins_(chosen.bins),
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
    frozen_.resize(frozen_units_ * unit_bytes());
    trained_.resize(unit_bytes() * static_cast<std::size_t>(elements_) - frozen_.size());
    describe(frozen_.data());
    SplitMix64 random(seed);
    std::vector<float> values(static_cast<std::size_t>(bins_ * features_));
    for (std::byte* const unit : values_) {
      for (float& value : values) value = static_cast<float>(0.01 * random.normal());
      from_floats(values, dtype_, {unit, unit_bytes()});
    }
    feature_F_.resize(static_cast<std::size_t>(features_));
    log_prob_K_.resize(static_cast<std::size_t>(bins_));
  }

  LinearModel(const LinearModel& original, ShareFrozen) : LinearModel(original) {
    frozen_ = {};
    gradients_ = {};
    holds_ = false;
    hooks_ = nullptr;
    describe(original.frozen_in());
  }

  static void use_threads(int) {}  // one thread is all it uses

  Decision decision_layout(Extents leading) const {
    Extents all{chunk_, actions_};
    for (int i = leading.rank() - 1; i >= 0; --i) all = all.prepend(leading[i]);
    return {Field<std::int32_t>(all), Field<float>(all)};
  }

  void act(const Observation& observation, Decoding decoding, std::uint64_t seed, Decision& decision,
           Field<float> action) {
    const std::int64_t n = observation.instruction.count();
    before_units();
    for (std::int64_t row = 0; row < n; ++row) {
      fill_features(observation, row, feature_F_);
      SplitMix64 random(mix_seed(seed, row));
      for (std::int64_t e = 0; e < elements_; ++e) {
        fill_log_probs(e, feature_F_, log_prob_K_);
        std::int64_t bin = std::max_element(log_prob_K_.begin(), log_prob_K_.end()) - log_prob_K_.begin();
        if (decoding == Decoding::sample) bin = draw(random.uniform01<float>());
        decision.bin[row * elements_ + e] = static_cast<std::int32_t>(bin);
        decision.log_prob[row * elements_ + e] = log_prob_K_[static_cast<std::size_t>(bin)];
        action[row * elements_ + e] = centre(bin);
      }
    }
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
          nearest(action[rows[i / static_cast<std::size_t>(elements_)] * elements_ + e]);
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
    describe(frozen_in());
  }
  void hook_units(UnitHooks* hooks) { hooks_ = hooks; }

 private:
  LinearModel(const LinearModel&) = default;  // leaves pointers into the other's buffers

  std::size_t unit_bytes() const { return static_cast<std::size_t>(bins_ * features_) * bytes_of(dtype_); }
  /// Where the frozen units are: in this model, or in the one that it is a copy of.
  std::byte* frozen_in() const { return frozen_units_ == 0 ? nullptr : values_.front(); }
  bool trains(std::size_t e) const { return e >= frozen_units_; }
  /// What parameters() and units() say, by where the buffers are now.
  void describe(std::byte* frozen) {
    values_.clear();
    parameters_.clear();
    units_.clear();
    const auto part = static_cast<std::size_t>(bins_ * features_);
    for (std::size_t e = 0; e < static_cast<std::size_t>(elements_); ++e) {
      const std::size_t place = trains(e) ? e - frozen_units_ : e;
      values_.push_back((trains(e) ? trained_.data() : frozen) + place * unit_bytes());
      parameters_.push_back({.name = "weight." + std::to_string(e),
                             .shape = {bins_, features_},
                             .dtype = dtype_,
                             .unit = e,
                             .trainable = trains(e),
                             .data = values_[e]});
      WeightUnit& unit = units_.emplace_back();
      unit.dtype = dtype_;
      if (!trains(e)) continue;
      unit.values = {values_[e], unit_bytes()};
      if (holds_) unit.gradients = std::span(gradients_).subspan(place * part, part);
      unit.runs = {{.count = bins_ * features_}};
    }
  }
  void need_gradients() const {
    if (!holds_)
      throw Error("LinearModel holds no gradients; call hold_gradients(true) where it is to be trained");
  }
  void before_units() const {
    for (std::int64_t e = 0; hooks_ != nullptr && e < elements_; ++e) before_unit(e);
  }
  void before_unit(std::int64_t e) const {
    if (hooks_ != nullptr) hooks_->before_unit(static_cast<std::size_t>(e));
  }
  float centre(std::int64_t bin) const {
    return -1.0F + 2.0F * static_cast<float>(bin) / static_cast<float>(bins_ - 1);
  }
  std::int64_t nearest(float action) const {
    const float place = (std::clamp(action, -1.0F, 1.0F) + 1.0F) / 2.0F * static_cast<float>(bins_ - 1);
    return std::isfinite(place) ? std::lround(place) : 0;
  }
  /// The bin where the cumulated probability passes `u` in [0, 1).
  std::int64_t draw(float u) const {
    for (std::int64_t k = 0; k < bins_ - 1; ++k) {
      u -= std::exp(log_prob_K_[static_cast<std::size_t>(k)]);
      if (u < 0) return k;
    }
    return bins_ - 1;
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
    const std::byte* const values = values_[static_cast<std::size_t>(e)];
    if (dtype_ == Dtype::f32)
      fill_logits(reinterpret_cast<const float*>(values), feature, log_prob,
                  [](float value) { return value; });
    else
      fill_logits(reinterpret_cast<const std::uint16_t*>(values), feature, log_prob, from_bf16);
    const float largest = *std::max_element(log_prob.begin(), log_prob.end());
    float sum = 0;
    for (const float logit : log_prob) sum += std::exp(logit - largest);
    const float log_sum = largest + std::log(sum);
    for (float& logit : log_prob) logit -= log_sum;
  }
  template <class Value, class Read>
  static void fill_logits(const Value* weight, std::span<const float> feature, std::span<float> logits,
                          Read read) {
    for (float& logit : logits) {
      logit = 0;
      for (const float value : feature) logit += read(*weight++) * value;
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
    }
  }
  /// Visits the indices of [n, E], the last unit first, and says when a unit's gradient is complete.
  template <class Visit>
  void for_each_backwards(std::size_t count, Visit visit) const {
    const auto elements = static_cast<std::size_t>(elements_);
    for (std::size_t e = elements; e-- > 0;) {
      for (std::size_t i = e; i < count; i += elements) visit(i);
      if (hooks_ != nullptr && trains(e)) hooks_->gradient_ready(e);
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

  std::int64_t chunk_, actions_, bins_;
  std::size_t frozen_units_;
  Dtype dtype_;
  std::int64_t proprioception_, instructions_;
  std::int64_t features_ = 0, elements_ = 0;
  std::vector<std::byte> frozen_, trained_;  ///< by unit; a copy has no frozen ones of its own
  std::vector<std::byte*> values_;           ///< of each unit
  std::vector<float> gradients_;             ///< of the units that train
  bool holds_ = false;
  std::vector<Parameter> parameters_;
  std::vector<WeightUnit> units_;
  std::vector<float> feature_F_, log_prob_K_;
  std::vector<float> feature_nF_, log_prob_nEK_, entropy_nE_;
  std::vector<std::int32_t> chosen_nE_;
  bool pending_ = false;
  UnitHooks* hooks_ = nullptr;
};

static_assert(ModelMachinery<LinearModel>);

}  // namespace dvla::testing
