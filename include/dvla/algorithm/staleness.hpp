// Staleness correction: what to do about actions that older weights chose. Paper: "single-step weight
// staleness"; the arithmetic is decoupled PPO (Hilton et al., arXiv 2110.00641; AReaL, arXiv 2505.24298) as
// RLinf ships it. A correction answers one question for each element of the loss: against which log-prob is
// the ratio clipped (the *anchor*), and with which weight does the element count?
//     loss = clip(exp(current - anchor)) * weight        anchor and weight are constants to the gradient
//   Uncorrected    anchor = behaviour, weight = 1: plain clipping against the weights that acted.
//   GIPO           anchor = behaviour, weight = a Gaussian in current - behaviour, nothing clipped.
//   DecoupledClip  anchor = proximal, weight = exp(proximal - behaviour), dropped where that exceeds a limit.
//   Clipping
//                  then limits how far *this update* moves; the importance weight answers for the age of the
//                  data.
// The proximal policy is the trainer's own at the start of the update. Two ways to its log-probs:
//   recomputed     one more forward pass before the first optimiser step on a batch. Real at every lag from 1
//   on. interpolated   no forward pass (A-3PO, arXiv 2512.06547): alpha = clamp((lag - 1) / lag, 0, 1), lag =
//   trained
//                  version - sampled version; proximal = behaviour + alpha * (current - behaviour), detached.
// Mind the convention of the trained version. Counted as in RLinf (version of the weights that are being
// trained, before this update's increment) lag 1 gives alpha = 0: the proximal *is* the behaviour policy, and
// for K = 1 the interpolated form equals Uncorrected to the bit. Give it the version that this update is
// about to make (+1), and lag K = 1 reads as 2, alpha = 1/2. Either way on-policy data gets plain clipping.
// To correct K = 1 as meant, recompute. Does not discard samples by age: the schedule bounds staleness at
// admission.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <string_view>

#include "dvla/core/compiler.hpp"

namespace dvla {

/// One element of the loss. Log-probs are already summed to the loss's level (token, action or chunk); since
/// interpolation is linear, interpolating the sum is interpolating every token.
struct LossElement {
  double current = 0;    ///< log-prob under the weights being trained
  double behaviour = 0;  ///< log-prob under the weights that acted
  double proximal = 0;   ///< log-prob at the start of the update; only where the correction needs_proximal
  std::int64_t lag =
      0;  ///< trained version - sampled version, >= 0; only where the correction needs_versions
};

struct Anchor {
  double log_prob = 0;
  double weight = 1;  ///< 0 drops the element: no loss, no gradient; it still counts in the denominator
};

/// What clip_loss asks of a correction; users may bring their own. One with something to tune has a member
/// `template <class Algorithm> knobs`, a struct that derives from the algorithm's knobs, and takes its values over
/// in `read(knobs)`. One whose `clips` is false has the ratio as it is: its weight must bound it.
template <class Correction>
concept StalenessPolicy = requires(const Correction& correction, const LossElement& element) {
  { Correction::name } -> std::convertible_to<std::string_view>;
  { Correction::max_staleness } -> std::convertible_to<int>;    // largest K that the schedule may run with
  { Correction::needs_proximal } -> std::convertible_to<bool>;  // LossInputs::proximal must be given
  { Correction::needs_versions } -> std::convertible_to<bool>;  // LossInputs::version must be given
  { correction.anchor(element) } -> std::same_as<Anchor>;
};

template <class Correction>
inline constexpr bool clips_ratio = [] {
  if constexpr (requires { Correction::clips; }) return static_cast<bool>(Correction::clips);
  return true;
}();

template <class Algorithm>
struct DecoupledClipKnobs;  // algorithm/policy_gradient_knobs.hpp
template <class Algorithm>
struct GipoKnobs;  // the same

/// Plain clipping. Good for K <= 1: with older data the ratio is clipped before the update has moved
/// anything.
struct Uncorrected {
  static constexpr std::string_view name = "Uncorrected";
  static constexpr int max_staleness = 1;
  static constexpr bool needs_proximal = false;
  static constexpr bool needs_versions = false;

  Anchor anchor(const LossElement& element) const { return {element.behaviour, 1.0}; }
};

enum class ProximalSource : std::uint8_t { recomputed, interpolated };

/// Decoupled clipping. max_staleness 8 is a bound by choice, of the order at which AReaL runs this objective
/// (up to 4 to 8 versions); nothing above 1 has been measured here. Raise K only with an eye on
/// dropped_fraction().
template <ProximalSource Source = ProximalSource::recomputed>
struct BasicDecoupledClip {
  template <class Algorithm>
  using knobs = DecoupledClipKnobs<Algorithm>;
  static constexpr std::string_view name =
      Source == ProximalSource::recomputed ? "DecoupledClip<recomputed>" : "DecoupledClip<interpolated>";
  static constexpr int max_staleness = 8;
  static constexpr bool needs_proximal = Source == ProximalSource::recomputed;
  static constexpr bool needs_versions = Source == ProximalSource::interpolated;

  double weight_limit = 2.0;  ///< elements with exp(proximal - behaviour) above it are dropped; > 0

  template <class Knobs>
  void read(const Knobs& tuned) {
    weight_limit = tuned.weight_limit;
  }

  /// 0 for lag 0 and 1, then 1/2, 2/3, 3/4...
  static double alpha(std::int64_t lag) {
    return lag <= 1 ? 0.0 : static_cast<double>(lag - 1) / static_cast<double>(lag);
  }

  Anchor anchor(const LossElement& element) const {
    const double proximal =
        needs_proximal ? element.proximal
                       : element.behaviour + alpha(element.lag) * (element.current - element.behaviour);
    const double weight = std::exp(proximal - element.behaviour);
    return {proximal, weight > weight_limit ? 0.0 : weight};
  }
};
using DecoupledClip = BasicDecoupledClip<>;

/// GIPO: importance sampling whose weight falls off smoothly with the distance of the ratio from 1,
///     loss = -A rho exp(-(log rho / sigma)^2 / 2),    rho = exp(current - behaviour),
/// where the Gaussian carries no gradient and rho does, and nothing is clipped. max_staleness as DecoupledClip's: a
/// bound by choice.
struct GIPO {
  template <class Algorithm>
  using knobs = GipoKnobs<Algorithm>;
  static constexpr std::string_view name = "GIPO";
  static constexpr int max_staleness = 8;
  static constexpr bool needs_proximal = false;
  static constexpr bool needs_versions = false;
  static constexpr bool clips = false;

  double sigma = 0.5;  ///< > 0

  template <class Knobs>
  void read(const Knobs& tuned) {
    sigma = tuned.sigma;
  }

  Anchor anchor(const LossElement& element) const {
    const double distance = (element.current - element.behaviour) / sigma;
    return {element.behaviour, std::exp(-0.5 * distance * distance)};
  }
};

static_assert(StalenessPolicy<Uncorrected> && StalenessPolicy<DecoupledClip> && StalenessPolicy<GIPO>);

}  // namespace dvla
