// TokenHead's arithmetic: discrete action tokens decoded in parallel, as OpenVLA-OFT does. All C * A tokens
// of a decision are conditionally independent given the observation: log_prob = log_softmax(logits /
// T)[token], the same T in rollout and update; the action is the centre of the token's bin, bins of equal
// width on [-1, 1]; in a dimension of n categories it is one of the first n tokens itself, the others having no
// probability. Torch-free, on spans; the networks that make the logits are model/tiny_vla_network.hpp and
// model/openvla_network.hpp. No top-k.
//
// Legend: n rows, C control steps a chunk, A action dimensions, E = C * A.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/extents_with.hpp"
#include "dvla/model/tiny_vla_knobs.hpp"

namespace dvla {

/// What recomputes a sample of the token head.
struct TokenDecision {
  Field<std::int32_t> tokens;  ///< [.., C, A] in [0, bins)
  Field<float> log_prob;       ///< [.., C, A], the behaviour policy's
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::TokenDecision, tokens, log_prob);

namespace dvla::detail {

/// Softmax of one token's logits at a temperature.
class Categorical {
 public:
  /// Throws Error if a logit is not finite; `element` is its place in the batch, for the message.
  void set(std::span<const float> logits, float temperature, std::size_t element) {
    const std::size_t bins = logits.size();
    weights_.resize(bins);
    shifted_.resize(bins);
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (std::size_t i = 0; i < bins; ++i) {
      shifted_[i] = (logits[i] - largest) / temperature;
      weights_[i] = std::exp(shifted_[i]);
      sum += weights_[i];
    }
    if (!(std::isfinite(sum) && std::isfinite(largest))) {
      throw Error("TokenHead: the logits of decision element " + std::to_string(element) +
                  " are not finite; the weights or the observation hold NaN or infinity");
    }
    sum_ = sum;
    log_sum_ = std::log(sum);
  }
  double log_prob(std::size_t i) const { return static_cast<double>(shifted_[i]) - log_sum_; }
  double probability(std::size_t i) const { return static_cast<double>(weights_[i]) / sum_; }
  double entropy() const {
    double sum = 0;
    for (std::size_t i = 0; i < weights_.size(); ++i)
      sum += static_cast<double>(weights_[i]) * static_cast<double>(shifted_[i]);
    return log_sum_ - sum / sum_;
  }
  std::size_t mode() const {
    return static_cast<std::size_t>(std::max_element(shifted_.begin(), shifted_.end()) - shifted_.begin());
  }
  /// The bin that holds the fraction `uniform` of [0, 1) of the mass.
  std::size_t draw(double uniform) const {
    double rest = uniform * sum_;
    for (std::size_t i = 0; i + 1 < weights_.size(); ++i) {
      rest -= static_cast<double>(weights_[i]);
      if (rest < 0) return i;
    }
    return weights_.size() - 1;
  }

 private:
  std::vector<float> weights_, shifted_;
  double sum_ = 1, log_sum_ = 0;
};

/// How tokens stand for actions: `widths` bins of equal width on [-1, 1], a token each, from the lowest on, or `descending`.
/// Where there are more tokens than bins, those beyond are the last bin's too.
struct TokenBins {
  std::size_t tokens = 0, widths = 0;
  bool descending = false;
};

/// What NetworkModel asks of a head. `Evaluate` runs the network's action queries: (x, t) -> outputs; the
/// token head's queries take no input.
class TokenHeadMachinery {
 public:
  using Decision = TokenDecision;

  TokenHeadMachinery(const TokenHeadKnobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : TokenHeadMachinery(
            knobs, action, seed,
            {static_cast<std::size_t>(knobs.bins), static_cast<std::size_t>(knobs.bins), false}) {
    for (const int n : categories_)
      if (n > knobs.bins)
        throw ConfigError("model.bins is " + std::to_string(knobs.bins) +
                          ", and an action's dimension is one of " + std::to_string(n) +
                          " categories; raise it to " + std::to_string(n) + " or more");
    if (knobs.bins < 2) throw ConfigError("TinyVLA: bins must be 2 or more");
  }
  /// `Knobs` has chunk and temperature, as TokenHeadKnobs. No dimension has more categories than there are tokens.
  template <class Knobs>
  TokenHeadMachinery(const Knobs& knobs, const ActionSpec& action, std::uint64_t /*seed*/, TokenBins bins)
      : chunk_(knobs.chunk),
        dimensions_(action.dimensions),
        categories_(action.categories),
        bins_(bins.tokens),
        widths_(static_cast<float>(bins.widths)),
        last_(bins.widths - 1),
        descending_(bins.descending),
        temperature_(knobs.temperature) {
    if (!(knobs.temperature > 0)) throw ConfigError("model.temperature must be above 0");
  }

  std::int64_t queries() const { return chunk_ * dimensions_; }
  std::int64_t outputs() const { return static_cast<std::int64_t>(bins_); }  ///< a query
  std::int64_t noise_inputs() const { return 0; }

  Decision decision_layout(const Extents& leading) const {
    const Extents all = extents_with(leading, {chunk_, dimensions_});
    return {Field<std::int32_t>(all), Field<float>(all)};
  }

  float bin_centre(std::size_t token) const {
    return (2 * static_cast<float>(std::min(in_order(token), last_)) + 1) / widths_ - 1;
  }
  /// The token of a finite action; outside [-1, 1] the outermost one.
  std::size_t bin_of(float action) const {
    const float place = (std::clamp(action, -1.0f, 1.0f) + 1) / 2 * widths_;
    return in_order(std::min(static_cast<std::size_t>(place), bins_ - 1));
  }
  /// Tokens that element i of [.., C, A] may be: all bins where it is continuous.
  std::size_t choices(std::size_t i) const {
    const int n = categories_.empty() ? 0 : categories_[i % static_cast<std::size_t>(dimensions_)];
    return n > 0 ? static_cast<std::size_t>(n) : bins_;
  }
  bool is_category(std::size_t i) const {
    return !categories_.empty() && categories_[i % static_cast<std::size_t>(dimensions_)] > 0;
  }
  float action_of(std::size_t i, std::size_t token) const {
    return is_category(i) ? static_cast<float>(token) : bin_centre(token);
  }
  std::size_t token_of(std::size_t i, float action) const {
    if (!is_category(i)) return bin_of(action);
    return static_cast<std::size_t>(std::clamp(action, 0.0f, static_cast<float>(choices(i) - 1)) + 0.5f);
  }

  template <class Evaluate>
  void act(Evaluate evaluate, std::span<const std::int64_t> rows, Decoding decoding, std::uint64_t seed,
           Decision& decision, Field<float> action) {
    const std::span<const float> logits = evaluate({}, {});
    std::size_t i = 0;  // of all elements of the rows
    for (const std::int64_t row : rows) {
      SplitMix64 random(mix_seed(seed, row));
      const Decision own{decision.tokens.at(row), decision.log_prob.at(row)};
      const Field<float> own_action = action.at(row);
      for (std::int64_t e = 0; e < queries(); ++e, ++i) {
        categorical_.set(logits.subspan(i * bins_, choices(i)), temperature_, i);
        const std::size_t token =
            decoding == Decoding::mode ? categorical_.mode() : categorical_.draw(random.uniform01());
        own.tokens[e] = static_cast<std::int32_t>(token);
        own.log_prob[e] = static_cast<float>(categorical_.log_prob(token));
        own_action[e] = action_of(i, token);
      }
    }
  }

  /// Takes what it needs of the stored decisions; the network then runs on inputs() and times(): none here.
  void load(const Decision& decision, std::span<const std::int64_t> rows) {
    tokens_.clear();
    for (const std::int64_t row : rows) {
      for (const std::int32_t token : decision.tokens.at(row).span()) {
        if (token < 0 || static_cast<std::size_t>(token) >= choices(tokens_.size())) {
          throw Error("TokenHead: row " + std::to_string(row) + " holds token " + std::to_string(token) +
                      ", which is not in [0, " + std::to_string(choices(tokens_.size())) +
                      "); was it recorded with other knobs?");
        }
        tokens_.push_back(token);
      }
    }
  }
  void load_imitation(Field<float> action, std::span<const std::int64_t> rows) {
    tokens_.clear();
    for (const std::int64_t row : rows)
      for (const float value : action.at(row).span())
        tokens_.push_back(static_cast<std::int32_t>(token_of(tokens_.size(), value)));
  }
  std::span<const float> inputs() const { return {}; }
  std::span<const float> times() const { return {}; }

  /// log_prob[n*E] and entropy[n*E] = -sum p log p, of logits[n*E*bins] for the loaded rows.
  void log_prob(std::span<const float> logits, std::span<float> log_prob, std::span<float> entropy) {
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      categorical_.set(logits.subspan(i * bins_, choices(i)), temperature_, i);
      log_prob[i] = static_cast<float>(categorical_.log_prob(static_cast<std::size_t>(tokens_[i])));
      entropy[i] = static_cast<float>(categorical_.entropy());
    }
  }
  /// d_logits = d_log_prob (1[token] - p) / T - d_entropy p (log p + H) / T.
  void gradient(std::span<const float> logits, std::span<const float> d_log_prob,
                std::span<const float> d_entropy, std::span<float> d_logits) {
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      categorical_.set(logits.subspan(i * bins_, choices(i)), temperature_, i);
      std::fill_n(d_logits.begin() + static_cast<std::ptrdiff_t>(i * bins_ + choices(i)), bins_ - choices(i),
                  0.0f);
      const double of_log_prob = static_cast<double>(d_log_prob[i]) / static_cast<double>(temperature_);
      const double of_entropy = static_cast<double>(d_entropy[i]) / static_cast<double>(temperature_);
      const double entropy = of_entropy == 0 ? 0 : categorical_.entropy();
      for (std::size_t bin = 0; bin < choices(i); ++bin) {
        const double p = categorical_.probability(bin);
        const double hit = bin == static_cast<std::size_t>(tokens_[i]) ? 1 : 0;
        d_logits[i * bins_ + bin] = static_cast<float>(
            of_log_prob * (hit - p) - of_entropy * p * (categorical_.log_prob(bin) + entropy));
      }
    }
  }
  /// Cross-entropy of the loaded expert tokens, mean over all elements; d_logits = scale * its gradient.
  double imitation(std::span<const float> logits, double scale, std::span<float> d_logits) {
    std::vector<float> log_probs(tokens_.size()), scratch(tokens_.size());
    log_prob(logits, log_probs, scratch);
    double loss = 0;
    for (const float value : log_probs) loss -= static_cast<double>(value);
    const auto count = static_cast<double>(tokens_.size());
    std::fill(scratch.begin(), scratch.end(), static_cast<float>(-scale / count));
    const std::vector<float> none(tokens_.size(), 0.0f);
    gradient(logits, scratch, none, d_logits);
    return loss / count;
  }

 private:
  /// From a token to its place from the lowest bin on, and back.
  std::size_t in_order(std::size_t token) const { return descending_ ? bins_ - 1 - token : token; }

  std::int64_t chunk_, dimensions_;
  std::vector<int> categories_;
  std::size_t bins_;  ///< tokens
  float widths_;      ///< bins of equal width
  std::size_t last_;  ///< of those
  bool descending_;
  float temperature_;
  Categorical categorical_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace dvla::detail
