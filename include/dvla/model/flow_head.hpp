// FlowHead's arithmetic: flow matching with flow_sde noise, as pi0.5 under RL (pi_RL, arXiv 2510.25889;
// RLinf). K Euler steps go from noise at t = 1 to the action at t = 0. When sampling, ONE denoise index,
// drawn once per call for the whole batch, is stochastic, the others follow the ODE; the chain and the index
// are stored, and an update reruns only that step. With Decoding::mode all steps follow the ODE from 0,
// the mode of the starting noise: what is done then follows from the observation alone. Torch-free, on spans. No flow_cps, no learned noise, no noise annealing.
//
// t_i = 1, .., 1/K, 0; d = t_i - t_{i+1}; x0 = x - v t; x1 = x + v (1 - t);
// sigma = a sqrt(t_i / (1 - t_i)), where t_0 = 1 takes 1 - t_1 as the denominator;
// mean = x0 (1 - (t - d)) + x1 (t - d - sigma^2 d / (2 t)); std = sigma sqrt(d).
//
// A network may make more than is executed: H control steps of D numbers, of which the first C and A are the action. The chain is
// of all of them, log-probabilities and imitation are of the action's alone, as pi_RL has it.
//
// Legend: n rows, K denoise steps, C control steps a chunk, A action dimensions, E = C * A, H horizon, D dimensions of the
// network, F = H * D.
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
  Field<std::int32_t> denoise_index;  ///< [..] the stochastic step, or -1: decoded as the mode
  Field<float> log_prob;              ///< [.., C, A] of that step, elementwise; 0 for the mode
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::FlowDecision, chain, denoise_index, log_prob);

namespace dvla::detail {

/// One step of the chain: x' ~ N(of_x * x + of_v * v, std^2). Times in [0, 1].
struct FlowStep {
  double t = 1, next_t = 0;
  double of_x = 1, of_v = 0, std = 0;

  double mean(double x, double v) const { return of_x * x + of_v * v; }
  double log_prob(double next_x, double x, double v) const {
    const double z = (next_x - mean(x, v)) / std;
    return -0.5 * z * z - std::log(std) - 0.5 * std::log(2 * std::numbers::pi);
  }
  double d_log_prob_d_v(double next_x, double x, double v) const {
    return (next_x - mean(x, v)) / (std * std) * of_v;
  }
};

inline FlowStep ode_step(int index, int steps) {
  FlowStep step;
  step.t = 1 - static_cast<double>(index) / steps;
  step.next_t = 1 - static_cast<double>(index + 1) / steps;
  step.of_v = step.next_t - step.t;
  return step;
}

inline FlowStep sde_step(int index, int steps, double noise_level) {
  FlowStep step = ode_step(index, steps);
  const double t = step.t, delta = t - step.next_t;
  const double sigma = noise_level * std::sqrt(t / (index == 0 ? 1 - step.next_t : 1 - t));
  const double x0_weight = 1 - step.next_t;
  const double x1_weight = step.next_t - sigma * sigma * delta / (2 * t);
  step.of_x = x0_weight + x1_weight;
  step.of_v = x1_weight * (1 - t) - x0_weight * t;
  step.std = sigma * std::sqrt(delta);
  return step;
}

/// H and D of a network whose own they are.
struct FlowSpace {
  std::int64_t horizon = 0, dimensions = 0;
  bool clipped = true;  ///< what is executed is kept in [-1, 1]
};

/// What NetworkModel asks of a head; see TokenHeadMachinery. Here `Evaluate(x[n*F], t[n])` is the velocity.
class FlowHeadMachinery {
 public:
  using Decision = FlowDecision;

  /// `Knobs` has denoise_steps, noise_level and chunk, as FlowHeadKnobs.
  template <class Knobs>
  FlowHeadMachinery(const Knobs& knobs, const ActionSpec& action, std::uint64_t seed)
      : FlowHeadMachinery(knobs, action, seed, {knobs.chunk, action.dimensions}) {}
  template <class Knobs>
  FlowHeadMachinery(const Knobs& knobs, const ActionSpec& action, std::uint64_t seed, FlowSpace space)
      : steps_(knobs.denoise_steps),
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
    if (chunk_ > space_.horizon || dimensions_ > space_.dimensions)
      throw ConfigError("model.chunk is ", chunk_, " and the environment's actions have ", dimensions_,
                        " dimensions, and the network makes ", space_.horizon, " control steps of ",
                        space_.dimensions, "; they must fit into these");
    for (int i = 0; i < steps_; ++i) {
      ode_.push_back(ode_step(i, steps_));
      sde_.push_back(sde_step(i, steps_, static_cast<double>(knobs.noise_level)));
    }
  }

  std::int64_t queries() const { return space_.horizon; }
  std::int64_t outputs() const { return space_.dimensions; }
  std::int64_t noise_inputs() const { return space_.dimensions; }

  Decision decision_layout(const Extents& leading) const {
    return {Field<float>(extents_with(leading, {steps_ + 1, space_.horizon, space_.dimensions})),
            Field<std::int32_t>(leading), Field<float>(extents_with(leading, {chunk_, dimensions_}))};
  }

  template <class Evaluate>
  void act(Evaluate evaluate, std::span<const std::int64_t> rows, Decoding decoding, std::uint64_t seed,
           Decision& decision, Field<float> action) {
    SplitMix64 of_all(seed);
    const int noisy =
        decoding == Decoding::mode ? -1 : static_cast<int>(of_all.below(static_cast<std::uint64_t>(steps_)));
    const std::size_t F = whole();
    std::vector<SplitMix64> random;
    std::vector<float> x, t(rows.size());
    for (const std::int64_t row : rows) {
      SplitMix64& own = random.emplace_back(mix_seed(seed, row));
      const std::span<float> noise = decision.chain.at(row).at(0).span();
      for (float& value : noise) value = decoding == Decoding::mode ? 0.0f : static_cast<float>(own.normal());
      x.insert(x.end(), noise.begin(), noise.end());
      std::ranges::fill(decision.log_prob.at(row).span(), 0.0f);
      decision.denoise_index[row] = noisy;
    }
    for (int i = 0; i < steps_; ++i) {
      const FlowStep& step = (i == noisy ? sde_ : ode_)[static_cast<std::size_t>(i)];
      std::fill(t.begin(), t.end(), static_cast<float>(step.t));
      const std::span<const float> v = evaluate(x, t);
      for (std::size_t n = 0, place = 0; n < rows.size(); ++n) {
        const std::span<float> now = decision.chain.at(rows[n]).at(i + 1).span();
        const std::span<float> log_prob = decision.log_prob.at(rows[n]).span();
        const std::size_t first = place;
        for (std::size_t f = 0; f < F; ++f, ++place) {
          check_finite(v[place], place);
          double next = step.mean(x[place], v[place]);
          if (i == noisy) next = static_cast<float>(next + step.std * random[n].normal());
          now[f] = static_cast<float>(next);
        }
        if (i == noisy)
          each_executed([&](std::size_t e, std::size_t f) {
            log_prob[e] = static_cast<float>(step.log_prob(now[f], x[first + f], v[first + f]));
          });
        std::ranges::copy(now, x.begin() + static_cast<std::ptrdiff_t>(first));
      }
    }
    for (std::size_t n = 0; n < rows.size(); ++n) {
      const std::span<float> executed = action.at(rows[n]).span();
      each_executed([&](std::size_t e, std::size_t f) {
        executed[e] = space_.clipped ? std::clamp(x[n * F + f], -1.0f, 1.0f) : x[n * F + f];
      });
    }
  }

  /// Takes the stochastic step of each stored decision: x before and after, and its index.
  void load(const Decision& decision, std::span<const std::int64_t> rows) {
    x_.clear(), next_.clear(), t_.clear(), step_.clear();
    for (const std::int64_t row : rows) {
      const std::int32_t index = decision.denoise_index[row];
      if (index < 0 || index >= steps_) {
        throw Error("FlowHead: row " + std::to_string(row) + " has denoise index " + std::to_string(index) +
                    ", which is not in [0, " + std::to_string(steps_) +
                    "); only sampled decisions of the same knobs have log-probabilities");
      }
      const Field<float> chain = decision.chain.at(row);
      for (const float value : chain.at(index).span()) x_.push_back(value);
      for (const float value : chain.at(index + 1).span()) next_.push_back(value);
      step_.push_back(&sde_[static_cast<std::size_t>(index)]);
      t_.push_back(static_cast<float>(step_.back()->t));
    }
  }
  /// Flow matching: x_t = t eps + (1 - t) a, target eps - a, t ~ 0.999 Beta(1.5, 1) + 0.001. The draws go on
  /// from the seed of the constructor, so the k-th call of two equal models draws the same.
  void load_imitation(Field<float> action, std::span<const std::int64_t> rows) {
    x_.clear(), next_.clear(), t_.clear(), step_.clear();
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

  /// log_prob[n*E] of velocities[n*E] for the loaded rows. Entropy is reported as 0: that of flow_sde's noise
  /// is a constant of the knobs, so no gradient flows through it.
  void log_prob(std::span<const float> velocity, std::span<float> log_prob, std::span<float> entropy) {
    std::ranges::fill(entropy, 0.0f);
    each_loaded([&](std::size_t row, std::size_t e, std::size_t f) {
      check_finite(velocity[f], f);
      log_prob[e] = static_cast<float>(step_[row]->log_prob(next_[f], x_[f], velocity[f]));
    });
  }
  void gradient(std::span<const float> velocity, std::span<const float> d_log_prob,
                std::span<const float> /*d_entropy*/, std::span<float> d_velocity) {
    std::ranges::fill(d_velocity, 0.0f);
    each_loaded([&](std::size_t row, std::size_t e, std::size_t f) {
      d_velocity[f] = static_cast<float>(static_cast<double>(d_log_prob[e]) *
                                         step_[row]->d_log_prob_d_v(next_[f], x_[f], velocity[f]));
    });
  }
  /// Mean squared error of the velocity; d_velocity = scale * its gradient.
  double imitation(std::span<const float> velocity, double scale, std::span<float> d_velocity) {
    const auto count = static_cast<double>(t_.size() * static_cast<std::size_t>(chunk_ * dimensions_));
    double loss = 0;
    std::ranges::fill(d_velocity, 0.0f);
    each_loaded([&](std::size_t, std::size_t, std::size_t f) {
      check_finite(velocity[f], f);
      const double error = static_cast<double>(velocity[f]) - static_cast<double>(next_[f]);
      loss += error * error;
      d_velocity[f] = static_cast<float>(2 * scale * error / count);
    });
    return loss / count;
  }

 private:
  std::size_t whole() const { return static_cast<std::size_t>(space_.horizon * space_.dimensions); }
  /// visit(e, f): element e of [C, A] is element f of [H, D].
  template <class Visit>
  void each_executed(Visit visit) const {
    std::size_t e = 0;
    for (std::int64_t c = 0; c < chunk_; ++c)
      for (std::int64_t a = 0; a < dimensions_; ++a)
        visit(e++, static_cast<std::size_t>(c * space_.dimensions + a));
  }
  /// visit(row, e, f) over the loaded rows: e of [n, C, A], f of [n, H, D].
  template <class Visit>
  void each_loaded(Visit visit) const {
    const auto E = static_cast<std::size_t>(chunk_ * dimensions_);
    for (std::size_t row = 0; row < t_.size(); ++row)
      each_executed([&](std::size_t e, std::size_t f) { visit(row, row * E + e, row * whole() + f); });
  }
  static void check_finite(float velocity, std::size_t element) {
    if (std::isfinite(velocity)) return;
    throw Error("FlowHead: the velocity of decision element " + std::to_string(element) +
                " is not finite; the weights or the observation hold NaN or infinity");
  }

  int steps_;
  std::int64_t chunk_, dimensions_;
  FlowSpace space_;
  SplitMix64 imitation_;
  std::vector<FlowStep> ode_, sde_;
  std::vector<float> x_, next_, t_;  ///< next_: the step's result, or imitation's target
  std::vector<const FlowStep*> step_;
};

}  // namespace dvla::detail
