// FlowHead's arithmetic: flow matching with the noise that reinforcement learning wants, as pi0.5 under RL (pi_RL, arXiv 2510.25889;
// RLinf's openpi_action_model.py). K Euler steps go from noise at t = 1 to the action at t = 0.
// flow_sde, flow_cps: when sampling, ONE denoise index, drawn once per call for the whole batch from the steps that have noise, is
// stochastic, the others follow the ODE; the chain and the index are stored, and an update reruns only that step.
// flow_noise: every step is stochastic, as widely as the network says; an update reruns all of them, and the log-probability is
// the mean of K + 1 terms, that of the starting noise and those of the steps.
// ode: no step is. Log-probabilities are 0 then, and so are their gradients, as RLinf has them where a std is 0: for cloning and
// evaluation; a run that would train is refused (pipeline/validate.hpp).
// With Decoding::mode all steps follow the ODE from 0, the mode of the starting noise: what is done then follows from the
// observation alone. Torch-free, on spans. No noise annealing.
//
// t_i = 1, .., 1/K, 0; d = t_i - t_{i+1}; x0 = x - v t; x1 = x + v (1 - t); mean = x0 (1 - (t - d)) + x1 w;
// ode: w = t - d, std = 0;
// flow_sde: w = t - d - sigma^2 d / (2 t), std = sigma sqrt(d), sigma = a sqrt(t_i / (1 - t_i)), where t_0 = 1 takes 1 - t_1 as the
//   denominator;
// flow_cps: w = (t - d) cos(pi a / 2), std = (t - d) sin(pi a / 2): 0 in the last step, which is never the stochastic one;
// flow_noise: w = t - d, log std^2 = l + (h - l) (tanh(z) + 1) / 2, from l = log 0.08^2 to h = log 0.16^2 (RLinf's
//   noise_logvar_range), z the network's; entropy the mean of 0.5 log(2 pi e std^2) over the K + 1 terms.
//
// A network may make more than is executed: H control steps of D numbers, of which the first C and A are the action. The chain is
// of all of them, log-probabilities and imitation are of the action's alone, as pi_RL has it.
//
// Legend: n rows, K denoise steps, C control steps a chunk, A action dimensions, E = C * A, H horizon, D dimensions of the
// network, F = H * D, O outputs of the network a control step: D, under flow_noise 2 D, velocities and then z.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/extents_with.hpp"
#include "dvla/model/tiny_vla_knobs.hpp"

namespace dvla {

/// What recomputes a sample of the flow head.
struct FlowDecision {
  Field<float> chain;                 ///< [.., K+1, H, D] from noise to action, not clipped
  Field<std::int32_t> denoise_index;  ///< [..] the stochastic step; K: all are; -1: none, as in the mode
  Field<float> log_prob;              ///< [.., C, A] of that step, or the mean; elementwise; 0 where none is
  Field<std::uint8_t> prefix{};  ///< [.., bytes] the network's own, of sampled decisions; absent if not kept
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::FlowDecision, chain, denoise_index, log_prob, prefix);

namespace dvla::detail {

inline const double log_2_pi = std::log(2 * std::numbers::pi);

/// Of N(mean, std^2) at x.
inline double normal_log_prob(double x, double mean, double std) {
  const double z = (x - mean) / std;
  return -0.5 * z * z - std::log(std) - 0.5 * log_2_pi;
}

/// One step of the chain: x' ~ N(of_x * x + of_v * v, std^2), or that mean, whose log-probability is 0. Times in [0, 1].
struct FlowStep {
  double t = 1, next_t = 0;
  double of_x = 1, of_v = 0, std = 0;

  double mean(double x, double v) const { return of_x * x + of_v * v; }
  double log_prob(double next_x, double x, double v) const {
    return std > 0 ? normal_log_prob(next_x, mean(x, v), std) : 0;
  }
  double d_log_prob_d_v(double next_x, double x, double v) const {
    return std > 0 ? (next_x - mean(x, v)) / (std * std) * of_v : 0;
  }
};

inline FlowStep ode_step(int index, int steps) {
  FlowStep step;
  step.t = 1 - static_cast<double>(index) / steps;
  step.next_t = 1 - static_cast<double>(index + 1) / steps;
  step.of_v = step.next_t - step.t;
  return step;
}
/// The same with w in the place of t - d, and noise.
inline FlowStep noisy_step(FlowStep step, double w, double std) {
  const double x0_weight = 1 - step.next_t;
  step.of_x = x0_weight + w;
  step.of_v = w * (1 - step.t) - x0_weight * step.t;
  step.std = std;
  return step;
}

inline FlowStep sde_step(int index, int steps, double noise_level) {
  const FlowStep step = ode_step(index, steps);
  const double t = step.t, delta = t - step.next_t;
  const double sigma = noise_level * std::sqrt(t / (index == 0 ? 1 - step.next_t : 1 - t));
  return noisy_step(step, step.next_t - sigma * sigma * delta / (2 * t), sigma * std::sqrt(delta));
}
inline FlowStep cps_step(int index, int steps, double noise_level) {
  const FlowStep step = ode_step(index, steps);
  const double angle = std::numbers::pi * noise_level / 2;
  return noisy_step(step, step.next_t * std::cos(angle), step.next_t * std::sin(angle));
}

/// The width of a step's noise, of what the network says.
struct LearnedNoise {
  double log_variance = 0, std = 1;
  double slope = 0;  ///< of the log-variance in z

  explicit LearnedNoise(double z) {
    static const double lowest = 2 * std::log(0.08), highest = 2 * std::log(0.16);
    const double bounded = std::tanh(z), half = (highest - lowest) / 2;
    log_variance = lowest + half * (bounded + 1);
    std = std::exp(log_variance / 2);
    slope = half * (1 - bounded * bounded);
  }
  double entropy() const { return 0.5 * (log_2_pi + 1 + log_variance); }
};

/// H and D of a network whose own they are, and whether it has a noise head where flow_noise wants one.
struct FlowSpace {
  std::int64_t horizon = 0, dimensions = 0;
  bool clipped = true;  ///< what is executed is kept in [-1, 1]
  bool noise_head = false;
};

/// What NetworkModel asks of a head; see TokenHeadMachinery. Here `Evaluate(x[n*F], t[n])` is [n, H, O].
class FlowHeadMachinery {
 public:
  using Decision = FlowDecision;

  /// `Knobs` has denoise_steps, noise, noise_level and chunk, as FlowHeadKnobs.
  template <class Knobs>
  FlowHeadMachinery(const Knobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : FlowHeadMachinery(knobs, action, seed, {knobs.chunk, action.dimensions}) {}
  template <class Knobs>
  FlowHeadMachinery(const Knobs& knobs, const ActionSpec& action, std::uint64_t seed, FlowSpace space)
      : steps_(knobs.denoise_steps),
        noise_(knobs.noise),
        chunk_(knobs.chunk),
        dimensions_(action.dimensions),
        space_(space),
        imitation_(seed) {
    if (!action.continuous())
      throw ConfigError(
          "the model's actions are continuous, as flow matching makes them, and the environment has a "
          "dimension of "
          "categories; choose a model with tokens (TinyVLA<TokenHead>)");
    if (steps_ < 1) throw ConfigError("model.denoise_steps must be 1 or more");
    if (!(knobs.noise_level > 0)) throw ConfigError("model.noise_level must be above 0");
    check_noise(noise_, steps_, knobs.noise_level, space_.noise_head);
    if (chunk_ > space_.horizon || dimensions_ > space_.dimensions)
      throw ConfigError("model.chunk is ", chunk_, " and the environment's actions have ", dimensions_,
                        " dimensions, and the network makes ", space_.horizon, " control steps of ",
                        space_.dimensions, "; they must fit into these");
    for (int i = 0; i < steps_; ++i) {
      const auto level = static_cast<double>(knobs.noise_level);
      ode_.push_back(ode_step(i, steps_));
      noisy_.push_back(noise_ == FlowNoise::flow_sde   ? sde_step(i, steps_, level)
                       : noise_ == FlowNoise::flow_cps ? cps_step(i, steps_, level)
                                                       : ode_.back());
    }
  }

  std::int64_t queries() const { return space_.horizon; }
  std::int64_t outputs() const { return learned() ? 2 * space_.dimensions : space_.dimensions; }
  std::int64_t noise_inputs() const { return space_.dimensions; }

  Decision decision_layout(const Extents& leading) const {
    return {Field<float>(extents_with(leading, {steps_ + 1, space_.horizon, space_.dimensions})),
            Field<std::int32_t>(leading), Field<float>(extents_with(leading, {chunk_, dimensions_}))};
  }

  template <class Evaluate>
  void act(Evaluate evaluate, std::span<const std::int64_t> rows, Decoding decoding, std::uint64_t seed,
           Decision& decision, Field<float> action) {
    const int noisy = decoding == Decoding::mode ? -1 : drawn_step(seed);
    const std::size_t F = whole();
    std::vector<SplitMix64> random;
    std::vector<float> x, t(rows.size());
    std::vector<double> sums(rows.size() * executed(), 0.0);  // of log-probabilities
    for (const std::int64_t row : rows) {
      SplitMix64& own = random.emplace_back(mix_seed(seed, row));
      const std::span<float> noise = decision.chain.at(row).at(0).span();
      for (float& value : noise) value = decoding == Decoding::mode ? 0.0f : static_cast<float>(own.normal());
      x.insert(x.end(), noise.begin(), noise.end());
      decision.denoise_index[row] = noisy;
    }
    for (std::size_t n = 0; n < rows.size() && noisy == steps_; ++n)
      each_executed([&](std::size_t e, std::size_t f) {
        sums[n * executed() + e] = normal_log_prob(static_cast<double>(x[n * F + f]), 0, 1);
      });
    for (int i = 0; i < steps_; ++i) {
      const bool stochastic = i == noisy || noisy == steps_;
      const FlowStep& step = (stochastic ? noisy_ : ode_)[static_cast<std::size_t>(i)];
      std::fill(t.begin(), t.end(), static_cast<float>(step.t));
      const std::span<const float> output = evaluate(x, t);
      for (std::size_t n = 0; n < rows.size(); ++n) {
        const std::span<float> now = decision.chain.at(rows[n]).at(i + 1).span();
        const std::size_t first = n * F;
        for (std::size_t f = 0; f < F; ++f) {
          const float v = output[place(n, f)];
          check_finite(v, first + f);
          double next = step.mean(x[first + f], v);
          if (stochastic) next = next + with_noise(step, output, n, f).std * random[n].normal();
          now[f] = static_cast<float>(next);
        }
        if (stochastic)
          each_executed([&](std::size_t e, std::size_t f) {
            sums[n * executed() + e] +=
                with_noise(step, output, n, f).log_prob(now[f], x[first + f], output[place(n, f)]);
          });
        std::ranges::copy(now, x.begin() + static_cast<std::ptrdiff_t>(first));
      }
    }
    for (std::size_t n = 0; n < rows.size(); ++n) {
      const std::span<float> done = action.at(rows[n]).span(),
                             log_prob = decision.log_prob.at(rows[n]).span();
      each_executed([&](std::size_t e, std::size_t f) {
        done[e] = space_.clipped ? std::clamp(x[n * F + f], -1.0f, 1.0f) : x[n * F + f];
        log_prob[e] = static_cast<float>(sums[n * executed() + e] / terms());
      });
    }
  }

  /// Takes the stochastic steps of each stored decision: x before and after, and which. Under ode the first step.
  void load(const Decision& decision, std::span<const std::int64_t> rows) {
    clear();
    for (const std::int64_t row : rows) {
      const std::int32_t index = decision.denoise_index[row];
      const int first = learned() ? steps_ : noise_ == FlowNoise::ode ? -1 : 0;
      const int behind = first == 0 ? last_noisy() + 1 : first + 1;
      if (index < first || index >= behind) {
        throw Error("FlowHead: row " + std::to_string(row) + " has denoise index " + std::to_string(index) +
                    ", which is not in [" + std::to_string(first) + ", " + std::to_string(behind) +
                    "); only sampled decisions of the same knobs have log-probabilities");
      }
      const Field<float> chain = decision.chain.at(row);
      if (learned())
        for (const float value : chain.at(0).span()) start_.push_back(value);
      const int from = learned() ? 0 : std::max(index, 0), to = learned() ? steps_ - 1 : from;
      for (int i = from; i <= to; ++i) {
        for (const float value : chain.at(i).span()) x_.push_back(value);
        for (const float value : chain.at(i + 1).span()) next_.push_back(value);
        step_.push_back(&noisy_[static_cast<std::size_t>(i)]);
        t_.push_back(static_cast<float>(step_.back()->t));
      }
    }
  }
  /// Flow matching: x_t = t eps + (1 - t) a, target eps - a, t ~ 0.999 Beta(1.5, 1) + 0.001. The draws go on
  /// from the seed of the constructor, so the k-th call of two equal models draws the same.
  void load_imitation(Field<float> action, std::span<const std::int64_t> rows) {
    clear();
    for (const std::int64_t row : rows) {
      const double t = 0.999 * std::pow(imitation_.uniform01(), 1 / 1.5) + 0.001;
      t_.push_back(static_cast<float>(t));
      std::vector<float> whole_action(whole());  // what is not executed is 0
      const std::span<const float> executed = action.at(row).span();
      each_executed([&](std::size_t e, std::size_t f) { whole_action[f] = executed[e]; });
      for (const float value : whole_action) {
        const double a = value, noise = imitation_.normal();
        x_.push_back(static_cast<float>(t * noise + (1 - t) * a));
        next_.push_back(static_cast<float>(noise - a));
      }
    }
  }
  std::span<const float> inputs() const { return x_; }
  std::span<const float> times() const { return t_; }

  /// log_prob[n*E] of the network's outputs for the loaded rows. Entropy is that of learned noise; flow_sde's and flow_cps's is a
  /// constant of the knobs and reported as 0.
  void log_prob(std::span<const float> output, std::span<float> log_prob, std::span<float> entropy) {
    std::vector<double> sums(log_prob.size(), 0.0), entropies(log_prob.size(), 0.0);
    for (std::size_t row = 0; row < start_.size() / whole(); ++row)
      each_executed([&](std::size_t e, std::size_t f) {
        sums[row * executed() + e] = normal_log_prob(static_cast<double>(start_[row * whole() + f]), 0, 1);
        entropies[row * executed() + e] = 0.5 * (log_2_pi + 1);
      });
    each_loaded([&](std::size_t i, std::size_t e, std::size_t f) {
      const std::size_t at = i * whole() + f;
      check_finite(output[place(i, f)], at);
      sums[e] += with_noise(*step_[i], output, i, f).log_prob(next_[at], x_[at], output[place(i, f)]);
      if (learned()) entropies[e] += noise_of(output, i, f).entropy();
    });
    for (std::size_t e = 0; e < sums.size(); ++e) {
      log_prob[e] = static_cast<float>(sums[e] / terms());
      entropy[e] = static_cast<float>(entropies[e] / terms());
    }
  }
  void gradient(std::span<const float> output, std::span<const float> d_log_prob,
                std::span<const float> d_entropy, std::span<float> d_output) {
    std::ranges::fill(d_output, 0.0f);
    each_loaded([&](std::size_t i, std::size_t e, std::size_t f) {
      const std::size_t at = i * whole() + f;
      const FlowStep step = with_noise(*step_[i], output, i, f);
      const double v = output[place(i, f)], of_log_prob = static_cast<double>(d_log_prob[e]) / terms();
      d_output[place(i, f)] = static_cast<float>(of_log_prob * step.d_log_prob_d_v(next_[at], x_[at], v));
      if (!learned()) return;
      const double off = (next_[at] - step.mean(x_[at], v)) / step.std;
      d_output[spread(i, f)] =
          static_cast<float>(noise_of(output, i, f).slope * 0.5 *
                             (of_log_prob * (off * off - 1) + static_cast<double>(d_entropy[e]) / terms()));
    });
  }
  /// Mean squared error of the velocity; d_output = scale * its gradient.
  double imitation(std::span<const float> output, double scale, std::span<float> d_output) {
    const auto count = static_cast<double>(t_.size() * executed());
    double loss = 0;
    std::ranges::fill(d_output, 0.0f);
    each_loaded([&](std::size_t i, std::size_t, std::size_t f) {
      const float v = output[place(i, f)];
      check_finite(v, i * whole() + f);
      const double error = static_cast<double>(v) - static_cast<double>(next_[i * whole() + f]);
      loss += error * error;
      d_output[place(i, f)] = static_cast<float>(2 * scale * error / count);
    });
    return loss / count;
  }

 private:
  bool learned() const { return noise_ == FlowNoise::flow_noise; }
  /// The last step that has noise, of which one is drawn.
  int last_noisy() const { return noise_ == FlowNoise::flow_cps ? steps_ - 2 : steps_ - 1; }
  /// As FlowDecision::denoise_index has it.
  int drawn_step(std::uint64_t seed) const {
    if (noise_ == FlowNoise::ode) return -1;
    if (learned()) return steps_;
    return static_cast<int>(SplitMix64(seed).below(static_cast<std::uint64_t>(last_noisy() + 1)));
  }
  /// What a log-probability is the mean of.
  double terms() const { return learned() ? steps_ + 1.0 : 1.0; }

  std::size_t whole() const { return static_cast<std::size_t>(space_.horizon * space_.dimensions); }
  std::size_t executed() const { return static_cast<std::size_t>(chunk_ * dimensions_); }
  /// Of row i and element f of [H, D] in [.., H, O]: the velocity ..
  std::size_t place(std::size_t i, std::size_t f) const {
    const auto D = static_cast<std::size_t>(space_.dimensions), O = static_cast<std::size_t>(outputs());
    return i * static_cast<std::size_t>(space_.horizon) * O + f / D * O + f % D;
  }
  /// .. and z.
  std::size_t spread(std::size_t i, std::size_t f) const {
    return place(i, f) + static_cast<std::size_t>(space_.dimensions);
  }
  LearnedNoise noise_of(std::span<const float> output, std::size_t i, std::size_t f) const {
    const float z = output[spread(i, f)];
    check_finite(z, i * whole() + f);
    return LearnedNoise(static_cast<double>(z));
  }
  /// The step, as wide as it is at this element.
  FlowStep with_noise(FlowStep step, std::span<const float> output, std::size_t i, std::size_t f) const {
    if (learned()) step.std = noise_of(output, i, f).std;
    return step;
  }
  /// visit(e, f): element e of [C, A] is element f of [H, D].
  template <class Visit>
  void each_executed(Visit visit) const {
    std::size_t e = 0;
    for (std::int64_t c = 0; c < chunk_; ++c)
      for (std::int64_t a = 0; a < dimensions_; ++a)
        visit(e++, static_cast<std::size_t>(c * space_.dimensions + a));
  }
  /// visit(i, e, f) over the loaded steps of all rows: i counts them, e of [n, C, A], f of [H, D].
  template <class Visit>
  void each_loaded(Visit visit) const {
    const std::size_t each = start_.empty() ? 1 : static_cast<std::size_t>(steps_);  // a row
    for (std::size_t i = 0; i < t_.size(); ++i)
      each_executed([&](std::size_t e, std::size_t f) { visit(i, i / each * executed() + e, f); });
  }
  void clear() { x_.clear(), next_.clear(), t_.clear(), step_.clear(), start_.clear(); }
  static void check_finite(float output, std::size_t element) {
    if (std::isfinite(output)) return;
    throw Error("FlowHead: the network's output of decision element " + std::to_string(element) +
                " is not finite; the weights or the observation hold NaN or infinity");
  }

  int steps_;
  FlowNoise noise_;
  std::int64_t chunk_, dimensions_;
  FlowSpace space_;
  SplitMix64 imitation_;
  std::vector<FlowStep> ode_, noisy_;
  std::vector<float> x_, next_, t_;  ///< next_: the step's result, or imitation's target
  std::vector<float> start_;         ///< [n, F], the noise that each row began with, where it counts
  std::vector<const FlowStep*> step_;
};

}  // namespace dvla::detail
