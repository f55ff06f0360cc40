// The update that GRPO, PPO and their relatives share: clipped policy gradient, micro-batches with accumulation,
// epochs, and a value loss where the model has values. Paper: the actor side ("clipped policy gradient,
// micro-batches"); definitions as in RLinf, see the headers this is put together from: returns, aggregation,
// clip_loss, value_loss, staleness, minibatch, adamw. Torch-free: the model is met through log-probabilities and
// values on spans. What an advantage is, and over which elements, is the *estimator's* (AdvantageEstimator):
// group_relative.hpp, gae_estimator.hpp.
//
// Several actors share an update through their weights (sharding/actors.hpp): each brings its own episodes,
// some perhaps none; optimiser steps, denominators, gradients and figures are those of all episodes together.
//
// Legend: T decisions, B rows, S episodes that a row may have, C control steps a chunk, A action dimensions, R
// elements of a decision that have a reward (C at action level, 1 at chunk level); row n = t*B + b.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/algorithm/aggregation.hpp"
#include "dvla/algorithm/clip_loss.hpp"
#include "dvla/algorithm/descriptors.hpp"
#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/algorithm/minibatch.hpp"
#include "dvla/algorithm/returns.hpp"
#include "dvla/algorithm/staleness.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/algorithm/value_loss.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/model/calls.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/final_values.hpp"

namespace dvla {

/// What an estimator sees of a batch, and what it fills.
struct EstimatorBatch {
  const Transition& transition;
  std::span<const std::uint8_t> present_B;  ///< 0: nothing of that row counts
  std::span<const float> return_B;          ///< of the row's first episode
  /// [T, B, R] and [S, B]; empty without values. The sampling weights', or, where the estimator `recomputes`, those
  /// of the weights that are trained.
  std::span<const float> value, final_value;
  /// [T, B, R] of log(pi / mu), where the estimator `recomputes`: the trained weights against those that acted.
  std::span<const float> log_ratio;
  std::span<std::uint8_t> mask;  ///< [T, B, R]
  std::span<float> advantage;    ///< [T, B, R]; what the mask leaves out may hold anything
  std::span<float> target;       ///< [T, B, R] of the values
};

/// - `Knobs`: what it tunes, PolicyGradientKnobs included; `needs_values`.
/// - constructor `(knobs, extents, S)`. Throws ConfigError.
/// - `mask(batch)`: fills batch.mask, of present rows at least; those that are not present are taken out.
/// - `estimate(batch, sum)`: fills advantage, and target where it has values. May clear more of the mask.
///   `sum(span of doubles)` adds up over all actors, which all call it equally often. Returns how many groups, or
///   episodes where there are no groups, have an advantage other than 0.
/// - `recomputes()`: whether `value`, `final_value` and `log_ratio` must be of the trained weights.
template <class Type>
concept AdvantageEstimator = std::derived_from<typename Type::Knobs, PolicyGradientKnobs> &&
    std::constructible_from<Type, const typename Type::Knobs&, RolloutExtents, std::size_t> &&
    requires(Type& estimator, const Type& view, const EstimatorBatch& batch, void (*sum)(std::span<double>)) {
  { Type::needs_values } -> std::convertible_to<bool>;
  estimator.mask(batch);
  { estimator.estimate(batch, sum) } -> std::convertible_to<std::size_t>;
  { view.recomputes() } -> std::convertible_to<bool>;
};

template <ModelMachinery Model, class Weights, StalenessPolicy Correction, AdvantageEstimator Estimator>
class PolicyGradientTrainer {
 public:
  using Decision = typename Model::Decision;
  using Knobs = typename detail::joined_knobs<Correction, typename Estimator::Knobs>::type;
  static constexpr bool has_values = Estimator::needs_values;
  static_assert(
      !has_values || HasValues<Model>,
      "dvla: this algorithm needs a model with values: wrap the model in WithValue, or give it the members "
      "that HasValues names (model/concept.hpp)");

  /// `shape` is the most that this actor gets in a batch; `actors` share each batch, whose sizes then count
  /// as BatchSizes says.
  PolicyGradientTrainer(const Knobs& knobs, BatchShape shape, std::int64_t action_dim, std::uint64_t seed,
                        int actors = 1)
      : knobs_(knobs),
        seed_(seed),
        extents_{static_cast<std::size_t>(shape.decisions), static_cast<std::size_t>(shape.episodes),
                 static_cast<std::size_t>(shape.chunk)},
        shape_{0, extents_.chunk, static_cast<std::size_t>(action_dim), knobs.log_prob_level,
               knobs.reward_level},
        sizes_{static_cast<std::size_t>(knobs.global_batch > 0 ? knobs.global_batch
                                                               : whole_batch(knobs, shape) * actors),
               static_cast<std::size_t>(knobs.micro_batch), static_cast<std::size_t>(actors)},
        optimiser_{knobs.learning_rate, knobs.beta1,        knobs.beta2, 1e-8,
                   knobs.weight_decay,  knobs.gradient_clip},
        clip_{.clip_low = knobs.clip_low,
              .clip_high = knobs.clip_high,
              .dual_clip = knobs.dual_clip,
              .log_ratio_min = knobs.log_ratio_clamp > 0 ? -knobs.log_ratio_clamp : -infinity,
              .log_ratio_max = knobs.log_ratio_clamp > 0 ? knobs.log_ratio_clamp : infinity,
              .entropy_bonus = knobs.entropy_bonus,
              .kl = knobs.kl},
        estimator_(knobs, extents_, static_cast<std::size_t>(shape.table)),
        batches_(extents_.rows(), sizes_) {
    if constexpr (requires { correction_.read(knobs); }) correction_.read(knobs);
    if (knobs.kl != 0 && !HasReference<Model>)
      throw ConfigError("algorithm.kl is " + std::to_string(knobs.kl) +
                        ", but the model knows no reference policy; wrap it in LoRA, or set it to 0");
    sizes_.validate();
    clip_.validate();
    optimiser_.validate();
    const std::size_t elements = extents_.rows() * shape_.per_row();
    mask_.resize(elements);
    weight_.resize(elements);
    advantage_.resize(elements);
    return_B_.resize(extents_.episodes);
    present_B_.resize(extents_.episodes);
    denominator_.reserve(extents_.rows() / sizes_.local() + 1);
    micros_.reserve(extents_.rows() / sizes_.local() + 1);
    const bool recomputes = estimator_.recomputes();
    proximal_.resize(Correction::needs_proximal || recomputes ? extents_.rows() * shape_.tokens() : 0);
    reference_.resize(knobs.kl != 0 ? extents_.rows() * shape_.tokens() : 0);
    const std::size_t micro = std::min(sizes_.micro, extents_.rows());
    micro_reference_.resize(knobs.kl != 0 ? micro * shape_.tokens() : 0);
    rows_.resize(micro);
    for (std::vector<float>* buffer :
         {&current_, &entropy_, &behaviour_, &micro_proximal_, &d_current_, &d_entropy_})
      buffer->resize(micro * shape_.tokens());
    micro_advantage_.resize(micro * shape_.per_row());
    micro_weight_.resize(micro * shape_.per_row());
    micro_version_.resize(micro);
    if constexpr (has_values) {
      target_.resize(elements);
      for (std::vector<float>* buffer : {&value_, &old_value_, &micro_target_, &d_value_})
        buffer->resize(micro * shape_.per_row());
      if (recomputes) {
        value_now_.resize(elements);
        log_ratio_.resize(elements);
        final_now_.resize(static_cast<std::size_t>(shape.table) * extents_.episodes);
      }
    }
  }

  /// Throws ConfigError where decisions of this layout [1, ...] have other values than the rewards ask for.
  void check(const Decision& layout) const {
    if constexpr (has_values)
      if (const auto values = static_cast<std::size_t>(layout.value.count()); values != shape_.per_row())
        throw ConfigError("algorithm.reward_level asks for " + std::to_string(shape_.per_row()) +
                          " values a decision, and the model gives " + std::to_string(values) +
                          "; give rewards and values the same level (model.value_level)");
  }

  /// One batch: all epochs. `batch` counts from 0 and is the version of the weights being trained; afterwards
  /// they are version batch + 1. `before_step()` is called exactly once, before the first change of the
  /// weights: until it returns they may still be read elsewhere. Rows whose group is -1 are absent. All
  /// actors call it for the same batch. Allocates nothing of its own, but under V-trace.
  template <class BeforeStep, class Trace>
  UpdateStats update(Model& model, Weights& weights, const Transition& transition, const Decision& decision,
                     std::int64_t batch, BeforeStep before_step, Trace& trace) {
    if (static_cast<std::size_t>(weights.actors()) != sizes_.world)
      throw Error("the algorithm was made for " + std::to_string(sizes_.world) +
                  " actors, but the weights are shared by " + std::to_string(weights.actors()));
    UpdateStats stats;
    const auto T = static_cast<std::int64_t>(extents_.decisions);
    Batch records{cut_record(transition.observation, [&](auto field) { return field.rows(0, T).flat(); }),
                  cut_record(decision, [](auto field) { return field.flat(); }), transition.version.span(),
                  batch};
    records.behaviour = records.decisions.log_prob.span();
    records.proximal = records.behaviour;
    prepare(model, weights, transition, records, stats, trace);

    AdamWKnobs optimiser = optimiser_;
    if (knobs_.decay_batches > 0) {
      const double gone = static_cast<double>(batch) / knobs_.decay_batches;
      optimiser.learning_rate *= 1 - 0.9 * std::min(gone, 1.0);
    }
    for (int epoch = 0; epoch < knobs_.epochs; ++epoch) {
      batches_.draw(mask_, shape_.per_row(), stream_seed(seed_, Stream::shuffle, batch, epoch));
      stats.rows = static_cast<std::int64_t>(batches_.rows());
      agree(weights);
      for (std::size_t mini = 0; mini < batches_.size(); ++mini) {
        weights.zero_gradients();
        for (std::int64_t part = 0; part < micros_[mini]; ++part) {
          weights.begin_pass({.last = part + 1 == micros_[mini]});
          if (static_cast<std::size_t>(part) >= batches_.micros(mini)) continue;
          auto span = trace.span("micro_batch", batch);
          stats.loss += micro_step(model, records, batches_.micro(mini, static_cast<std::size_t>(part)),
                                   denominator_[mini]);
        }
        if (stats.optimiser_steps == 0) before_step();
        auto span = trace.span("optimiser", batch);
        stats.gradient_norm = weights.step(optimiser);
        ++stats.optimiser_steps;
      }
    }
    if (stats.optimiser_steps == 0) before_step();
    add_up(weights, stats);
    return stats;
  }

  const AdamWKnobs& optimiser() const { return optimiser_; }

 private:
  /// Flat views of a batch's records.
  struct Batch {
    Observation observation;                ///< [N, ...]
    Decision decisions;                     ///< [N, ...]
    std::span<const std::int64_t> version;  ///< [N]
    std::int64_t number = 0;
    std::span<const float> behaviour{}, proximal{};  ///< [N, C, A]
    std::span<const float> value{};                  ///< [N, R] what the value loss is clipped against
  };
  using Rows = std::span<const MiniBatches::Row>;
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  /// All rows of a batch as one optimiser step: the next multiple of the micro-batch.
  static std::int64_t whole_batch(const PolicyGradientKnobs& knobs, BatchShape shape) {
    const std::int64_t rows = shape.decisions * shape.episodes;
    return (rows + knobs.micro_batch - 1) / knobs.micro_batch * knobs.micro_batch;
  }

  /// Mask, advantages, targets and weights of the whole batch, and what is recomputed for them. Success and return
  /// as sums, for add_up.
  template <class Trace>
  void prepare(Model& model, Weights& weights, const Transition& transition, Batch& records,
               UpdateStats& stats, Trace& trace) {
    const std::size_t per_row = shape_.per_row();
    episode_returns(extents_, transition.reward.span(), transition.terminated.span(),
                    transition.truncated.span(), return_B_);
    for (std::size_t b = 0; b < extents_.episodes; ++b)
      present_B_[b] = transition.group[static_cast<std::int64_t>(b)] >= 0;
    count_episodes(transition, stats);
    EstimatorBatch batch{transition, present_B_, return_B_, {}, {}, {}, mask_, advantage_, target_};
    estimator_.mask(batch);
    mask_episodes(present_B_, per_row, mask_);
    if constexpr (has_values) {
      batch.value = records.decisions.value.span();
      batch.final_value = transition.episode.final_value.span();
      check(cut_record(records.decisions, [](auto field) { return field.at(0); }));
      if (batch.final_value.empty())
        throw Error(
            "the batch has no values of the observations that ended its episodes: it was sampled without "
            "the model's values");
    }
    if constexpr (HasReference<Model>)
      if (knobs_.kl != 0)
        without_gradients(weights, true, "reference", records.number, trace, [&](Rows rows) {
          std::copy(rows.begin(), rows.end(), rows_.begin());
          in_model<Model>("reference", rows.size(), records.observation, [&] {
            model.reference(records.observation, records.decisions,
                            std::span<const std::int64_t>(rows_).first(rows.size()),
                            std::span(current_).first(rows.size() * shape_.tokens()));
          });
          scatter(rows, current_, shape_.tokens(), reference_);
        });
    const bool stale = !on_policy(transition.version.span(), records.number);
    const bool recomputes = estimator_.recomputes();
    if constexpr (Correction::needs_proximal || has_values)
      if (Correction::needs_proximal || recomputes) {
        without_gradients(weights, stale, "proximal", records.number, trace, [&](Rows rows) {
          forward(model, records, rows);
          scatter(rows, current_, shape_.tokens(), proximal_);
          if constexpr (has_values) scatter(rows, value_, shape_.per_row(), value_now_);
        });
        if (stale && Correction::needs_proximal) records.proximal = proximal_;
      }
    if constexpr (has_values)
      if (recomputes) {
        final_values(model, weights, transition, stale);
        std::ranges::fill(log_ratio_, 0.0F);
        if (stale) {
          sum_log_ratios(records.behaviour);
          batch.value = value_now_;
          batch.final_value = final_now_;
        }
        batch.log_ratio = log_ratio_;
      }
    stats.informative_groups =
        estimator_.estimate(batch, [&](std::span<double> values) { weights.sum(values); });
    if constexpr (has_values) {
      records.value = batch.value;
      stats.explained_variance = explained_variance(batch, weights);
    }
    loss_weights(knobs_.aggregation, extents_.episodes, per_row, mask_, weight_);
  }

  void count_episodes(const Transition& transition, UpdateStats& stats) {
    const EpisodeTable& table = transition.episode;
    const std::int64_t S = table.size();
    present_rows_ = 0;
    for (std::size_t b = 0; b < extents_.episodes; ++b) {
      if (present_B_[b] == 0) continue;
      const auto row = static_cast<std::int64_t>(b);
      present_rows_ += extents_.decisions;
      for (std::int64_t s = 0; s < S; ++s) {
        if (s > 0 && table.end.at(s)[row] == 0) break;
        ++stats.episodes;
        const bool solved = table.success.at(s)[row] != 0;
        stats.success_rate += solved;
        const std::int64_t begun =
            s == 0 ? 0 : table.decision.at(s - 1)[row] + 1;  // the decision in which it did
        const auto task = static_cast<std::size_t>(transition.observation.instruction.at(begun)[row]);
        if (task < stats.tasks.size()) {
          ++stats.tasks[task].episodes;
          stats.tasks[task].solved += solved;
        }
      }
      if (S == 1) {
        stats.mean_return += return_B_[b];
        continue;
      }
      for (std::int64_t t = 0; t < static_cast<std::int64_t>(extents_.decisions); ++t)
        for (const float reward : transition.reward.at(t).at(row).span()) stats.mean_return += reward;
    }
  }

  /// 1 - Var(target - value) / Var(target) over the elements that count, of all actors.
  double explained_variance(const EstimatorBatch& batch, Weights& weights) {
    std::array<double, 5> sums{};
    for (std::size_t i = 0; i < mask_.size(); ++i) {
      if (mask_[i] == 0) continue;
      const double target = target_[i], error = target - static_cast<double>(batch.value[i]);
      const std::array<double, 5> more{1, target, target * target, error, error * error};
      for (std::size_t k = 0; k < sums.size(); ++k) sums[k] += more[k];
    }
    weights.sum(sums);
    const auto [count, target, target2, error, error2] = sums;
    const double variance = count * target2 - target * target;
    return variance > 0 ? 1 - (count * error2 - error * error) / variance : 0;
  }

  /// Did the trainer's own weights make every decision?
  bool on_policy(std::span<const std::int64_t> version, std::int64_t batch) const {
    for (std::size_t row = 0; row < version.size(); ++row)
      if (present_B_[row % extents_.episodes] != 0 && version[row] != batch) return false;
    return true;
  }

  /// Cuts the rows that were drawn into as many mini-batches, and these into as many micro-batches, on every
  /// actor; what the loss of each is divided by counts the rows of all.
  void agree(Weights& weights) {
    std::array<double, 2> rows{static_cast<double>(batches_.rows()), static_cast<double>(present_rows_)};
    weights.sum(rows);
    batches_.cut((static_cast<std::size_t>(rows[0]) + sizes_.global - 1) / sizes_.global);
    denominator_.resize(batches_.size());
    micros_.resize(batches_.size());
    for (std::size_t mini = 0; mini < batches_.size(); ++mini) {
      denominator_[mini] = loss_elements(knobs_.aggregation, shape_.per_row(), weight_, batches_.mini(mini));
      micros_[mini] = static_cast<std::int64_t>(batches_.micros(mini));
    }
    weights.sum(denominator_);
    weights.max(micros_);
    for (double& value : denominator_)
      value = loss_denominator(knobs_.aggregation, value, shape_.units_per_weight(), rows[1], rows[0]);
  }

  /// An update's figures over all actors; sums over episodes become means.
  static void add_up(Weights& weights, UpdateStats& stats) {
    const auto each = [&](auto visit) {
      LossStats& loss = stats.loss;
      for (double* sum :
           {&loss.policy_loss, &loss.entropy_loss, &loss.entropy, &loss.kl_loss, &loss.value_loss,
            &loss.ratio_sum, &loss.kl_sum, &loss.anchor_weight_sum, &stats.success_rate, &stats.mean_return})
        visit(*sum);
      for (std::size_t* count :
           {&loss.units, &loss.dropped, &loss.clipped_low, &loss.clipped_high, &loss.dual_clipped,
            &loss.values, &loss.values_clipped, &stats.informative_groups})
        visit(*count);
      visit(stats.episodes);
      visit(stats.rows);
      for (TaskCount& task : stats.tasks) {
        visit(task.episodes);
        visit(task.solved);
      }
    };
    std::array<double, 20 + 2 * std::tuple_size_v<decltype(UpdateStats::tasks)>> values{};
    std::size_t i = 0;
    each([&](auto value) { values[i++] = static_cast<double>(value); });
    weights.sum(values);
    i = 0;
    each([&](auto& value) { value = static_cast<std::remove_reference_t<decltype(value)>>(values[i++]); });
    // Bits of a double that is not negative sort as the double does, a NaN above all others.
    std::array deviation{std::bit_cast<std::int64_t>(std::abs(stats.loss.max_ratio_deviation))};
    weights.max(deviation);
    stats.loss.max_ratio_deviation = std::bit_cast<double>(deviation[0]);
    const double episodes = std::max(static_cast<double>(stats.episodes), 1.0);
    stats.success_rate /= episodes;
    stats.mean_return /= episodes;
  }

  /// How many passes without gradients the actor with the most needs for `mine`.
  static std::int64_t agreed_passes(Weights& weights, std::size_t mine) {
    std::array<std::int64_t, 1> passes{static_cast<std::int64_t>(mine)};
    weights.max(passes);
    return passes[0];
  }

  /// Calls pass(rows) for all rows that count, a micro-batch at a time, where they are `wanted`; in as many passes as
  /// the actor with the most has, and none where nobody has any.
  template <class Trace, class Pass>
  void without_gradients(Weights& weights, bool wanted, const char* name, std::int64_t batch, Trace& trace,
                         Pass pass) {
    if (wanted) {
      batches_.draw(mask_, shape_.per_row(), seed_);
      batches_.cut(1);
    }
    const std::size_t mine = wanted ? batches_.micros(0) : 0;
    const std::int64_t passes = agreed_passes(weights, mine);
    if (passes == 0) return;
    auto span = trace.span(name, batch);
    for (std::int64_t part = 0; part < passes; ++part) {
      weights.begin_pass({.backward = false});
      if (static_cast<std::size_t>(part) < mine) pass(batches_.micro(0, static_cast<std::size_t>(part)));
    }
  }
  /// Puts what a pass made of these rows, `width` elements each, where the rows are in the batch.
  static void scatter(Rows rows, const std::vector<float>& from, std::size_t width, std::vector<float>& to) {
    for (std::size_t i = 0; i < rows.size() && !to.empty(); ++i)
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                  to.begin() + static_cast<std::ptrdiff_t>(rows[i] * width));
  }

  /// The values of what truncated episodes ended with, under the trainer's weights, where they are `wanted`.
  void final_values(Model& model, Weights& weights, const Transition& transition, bool wanted) {
    const EpisodeTable& table = transition.episode;
    const auto B = static_cast<std::int64_t>(extents_.episodes);
    FinalValues finals;
    for (std::int64_t i = 0; wanted && i < table.end.count(); ++i)
      if (present_B_[static_cast<std::size_t>(i % B)] != 0) finals.add(table, i);
    const Observation seen = final_observations(transition);
    const std::int64_t passes = agreed_passes(weights, (finals.size() + rows_.size() - 1) / rows_.size());
    const auto call = [&](std::span<const std::int64_t> rows, std::span<float> values) {
      in_model<Model>("values", rows.size(), seen, [&] { model.values(seen, rows, values); });
    };
    for (std::int64_t part = 0; part < passes; ++part) {
      weights.begin_pass({.backward = false});
      finals.ask(
          static_cast<std::size_t>(part) * rows_.size(), rows_.size(), shape_.per_row(), call,
          [&](std::int64_t entry, float value) { final_now_[static_cast<std::size_t>(entry)] = value; });
    }
  }

  /// log(pi / mu) of each element: the sum over its tokens.
  void sum_log_ratios(std::span<const float> behaviour) {
    const std::size_t tokens = shape_.tokens() / shape_.per_row();
    for (std::size_t i = 0; i < log_ratio_.size(); ++i) {
      double sum = 0;
      for (std::size_t k = i * tokens; k < (i + 1) * tokens && mask_[i] != 0; ++k)
        sum += static_cast<double>(proximal_[k]) - static_cast<double>(behaviour[k]);
      log_ratio_[i] = static_cast<float>(sum);
    }
  }

  void forward(Model& model, const Batch& records, Rows rows) {
    std::copy(rows.begin(), rows.end(), rows_.begin());
    const auto of_rows = std::span<const std::int64_t>(rows_).first(rows.size());
    const std::span<float> log_prob = std::span(current_).first(rows.size() * shape_.tokens()),
                           entropy = std::span(entropy_).first(rows.size() * shape_.tokens());
    in_model<Model>("forward", rows.size(), records.observation, [&] {
      if constexpr (has_values)
        model.forward(records.observation, records.decisions, of_rows, log_prob, entropy,
                      std::span(value_).first(rows.size() * shape_.per_row()));
      else
        model.forward(records.observation, records.decisions, of_rows, log_prob, entropy);
    });
  }

  LossStats micro_step(Model& model, const Batch& records, Rows rows, double denominator) {
    const std::size_t tokens = rows.size() * shape_.tokens();
    auto gather = [&](auto source, std::size_t per_row, auto& target) {
      const auto out = std::span(target).first(rows.size() * per_row);
      gather_rows(source, per_row, rows, out);
      return out;
    };
    LossShape shape = shape_;
    shape.rows = rows.size();
    forward(model, records, rows);
    LossInputs<float> inputs;
    inputs.current = std::span<const float>(current_).first(tokens);
    inputs.entropy = std::span<const float>(entropy_).first(tokens);
    inputs.behaviour = gather(records.behaviour, shape.tokens(), behaviour_);
    inputs.advantage = gather(std::span<const float>(advantage_), shape.per_row(), micro_advantage_);
    inputs.weight = gather(std::span<const float>(weight_), shape.per_row(), micro_weight_);
    if constexpr (Correction::needs_proximal)
      inputs.proximal = gather(records.proximal, shape.tokens(), micro_proximal_);
    if (!reference_.empty())
      inputs.reference = gather(std::span<const float>(reference_), shape.tokens(), micro_reference_);
    if constexpr (Correction::needs_versions) inputs.version = gather(records.version, 1, micro_version_);
    inputs.trained_version = records.number;
    const std::span<float> d_current = std::span(d_current_).first(tokens);
    const std::span<float> d_entropy = std::span(d_entropy_).first(tokens);
    LossStats stats =
        clip_loss<Correction, float>(shape, inputs, clip_, denominator, d_current, d_entropy, correction_);
    if constexpr (has_values) {
      const std::span<float> d_value = std::span(d_value_).first(rows.size() * shape.per_row());
      const std::span<const float> value = std::span<const float>(value_).first(d_value.size());
      value_loss(value, gather(records.value, shape.per_row(), old_value_),
                 gather(std::span<const float>(target_), shape.per_row(), micro_target_), inputs.weight,
                 estimator_.value_loss(), denominator / static_cast<double>(shape.units_per_weight()),
                 d_value, stats);
      if (estimator_.warms_up(records.number)) {
        std::ranges::fill(d_current, 0.0F);
        std::ranges::fill(d_entropy, 0.0F);
      }
      in_model<Model>("backward", rows.size(), records.observation,
                      [&] { model.backward(d_current, d_entropy, d_value); });
    } else {
      in_model<Model>("backward", rows.size(), records.observation,
                      [&] { model.backward(d_current, d_entropy); });
    }
    return stats;
  }

  Knobs knobs_;
  std::uint64_t seed_;
  RolloutExtents extents_;
  LossShape shape_;
  BatchSizes sizes_;
  AdamWKnobs optimiser_;
  ClipKnobs clip_;
  Correction correction_;
  Estimator estimator_;
  MiniBatches batches_;
  std::size_t present_rows_ = 0;
  std::vector<double> denominator_;   ///< of each mini-batch
  std::vector<std::int64_t> micros_;  ///< of each mini-batch, on the actor with the most
  std::vector<std::uint8_t> mask_, present_B_;
  std::vector<float> weight_, advantage_, target_, return_B_, proximal_;
  std::vector<float> reference_, micro_reference_;        ///< where there is a KL to pay
  std::vector<float> value_now_, log_ratio_, final_now_;  ///< where the estimator recomputes
  std::vector<std::int64_t> rows_, micro_version_;
  std::vector<float> current_, entropy_, behaviour_, micro_proximal_, d_current_, d_entropy_,
      micro_advantage_, micro_weight_, value_, old_value_, micro_target_, d_value_;
};

}  // namespace dvla
