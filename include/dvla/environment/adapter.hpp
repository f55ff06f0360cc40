// Adapter: between a model's units and an environment's, one for each (model, environment). What a model decides
// is kept in its own units, since it computes log-probabilities of that; this turns it into what the environment
// takes just before a step, an expert's action into what the model would have decided, and proprioception into
// what the model is used to. Every dimension on its own: axis, sign, scale and offset, then the environment's
// bounds. Categories pass through unchanged. Design: "Data". Statistics from files: action_statistics.hpp.
//
// Legend: A action dimensions, P proprioception.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"

namespace dvla {

/// y = scale * x + offset, then within [low, high].
struct AdaptedNumber {
  double scale = 1, offset = 0, low = -1, high = 1;
  double to(double x) const { return std::clamp(scale * x + offset, low, high); }
};

/// Of one dimension of an environment's action.
struct AdaptedAction {
  std::int64_t from = 0;  ///< the model's dimension
  AdaptedNumber number{};
  bool binary = false;    ///< only the sign of scale * x + offset counts: a gripper that opens or closes
  bool category = false;  ///< passes through
};

/// Plain data after its construction; any thread may read it.
class Adapter {
 public:
  /// `name` says what it does, in a few words. `proprioception`: empty, or one each for the P numbers; x is the
  /// environment's there.
  /// `warnings`: what a user should hear of it, a sentence each.
  Adapter(std::string name, std::vector<AdaptedAction> action, std::vector<AdaptedNumber> proprioception = {},
          std::vector<std::string> warnings = {})
      : name_(std::move(name)),
        action_(std::move(action)),
        proprioception_(std::move(proprioception)),
        warnings_(std::move(warnings)) {
    for (std::size_t a = 0; a < action_.size(); ++a) {
      const auto& [from, number, binary, category] = action_[a];
      changes_ =
          changes_ || from != static_cast<std::int64_t>(a) || binary ||
          (!category && (number.scale != 1 || number.offset != 0 || number.low > -1 || number.high < 1));
    }
  }
  /// The default: a model's [-1, 1] onto the bounds that the environment states, dimension by dimension.
  static Adapter bounds(const ActionSpec& takes) {
    std::vector<AdaptedAction> action;
    for (std::int64_t a = 0; a < takes.dimensions; ++a) action.push_back(within_bounds(takes, a));
    return {"bounds", std::move(action)};
  }
  static AdaptedAction within_bounds(const ActionSpec& takes, std::int64_t a) {
    const auto [low, high] = takes.bounds_of(a);
    return {.from = a,
            .number = {(high - low) / 2.0, (high + low) / 2.0, low, high},
            .category = takes.categories_of(a) > 0};
  }

  /// The model's actions may lie beyond [-1, 1]; the environment's bounds hold for them all the same.
  void expect_any_action() { bounded_ = false, changes_ = true; }

  const std::string& name() const { return name_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  /// Whether the model's actions are in [-1, 1].
  bool bounded() const { return bounded_; }
  /// Whether an action of the model is not the same for both.
  bool changes_actions() const { return changes_; }
  bool changes_proprioception() const { return !proprioception_.empty(); }

  /// [A] of one control step; the two do not overlap.
  void to_environment(std::span<const float> model, std::span<float> environment) const {
    for (std::size_t a = 0; a < action_.size(); ++a) {
      const auto& [from, number, binary, category] = action_[a];
      const double x = static_cast<double>(model[static_cast<std::size_t>(from)]);
      if (category || !std::isfinite(x)) {
        environment[a] = static_cast<float>(x);  // it is the environment that tells of what is not finite
      } else if (binary) {
        const double y = number.scale * x + number.offset;
        environment[a] = static_cast<float>(std::clamp<double>((y > 0) - (y < 0), number.low, number.high));
      } else {
        environment[a] = static_cast<float>(number.to(x));
      }
    }
  }
  /// What the model would have decided, as far as it can be known.
  void to_model(std::span<const float> environment, std::span<float> model) const {
    for (std::size_t a = 0; a < action_.size(); ++a) {
      const auto& [from, number, binary, category] = action_[a];
      const double y = static_cast<double>(environment[a]);
      model[static_cast<std::size_t>(from)] =
          static_cast<float>(category ? y : (y - number.offset) / number.scale);
    }
  }
  /// [P], in place.
  void proprioception(std::span<float> values) const {
    for (std::size_t p = 0; p < proprioception_.size(); ++p)
      values[p] = static_cast<float>(proprioception_[p].to(static_cast<double>(values[p])));
  }

 private:
  std::string name_;
  std::vector<AdaptedAction> action_;
  std::vector<AdaptedNumber> proprioception_;
  std::vector<std::string> warnings_;
  bool bounded_ = true, changes_ = false;
};

}  // namespace dvla
