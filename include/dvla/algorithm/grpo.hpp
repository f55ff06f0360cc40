// GRPO on a batch of trajectories: group advantages, clipped policy gradient, micro-batches with
// accumulation, epochs. Paper: the actor side ("GRPO advantages, clipped policy gradient, micro-batches");
// definitions as in RLinf, see the headers this is put together from: returns, group_advantage, aggregation,
// clip_loss, staleness, minibatch, adamw. Torch-free: the model is met through log-probabilities on spans. No
// critic, no KL to a reference policy.
//
// Several actors share an update through their weights (sharding/actors.hpp): each brings its own episodes,
// some perhaps none; optimiser steps, denominators, gradients and figures are those of all episodes together.
//
// Legend: T decisions, B episodes, C control steps a chunk, A action dimensions, G episodes a group; row n =
// t*B + b.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
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
#include "dvla/algorithm/grpo_knobs.hpp"
#include "dvla/algorithm/minibatch.hpp"
#include "dvla/algorithm/returns.hpp"
#include "dvla/algorithm/staleness.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/model/calls.hpp"
#include "dvla/model/concept.hpp"

namespace dvla {

template <ModelMachinery Model, class Weights, StalenessPolicy Correction>
class GrpoTrainer {
 public:
  using Decision = typename Model::Decision;
  using Knobs = typename detail::grpo_knobs<Correction>::type;

  /// `shape` is the most that this actor gets in a batch; `actors` share each batch, whose sizes then count
  /// as BatchSizes says.
  GrpoTrainer(const Knobs& knobs, BatchShape shape, std::int64_t action_dim, std::uint64_t seed,
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
              .entropy_bonus = knobs.entropy_bonus},
        batches_(extents_.rows(), sizes_) {
    if constexpr (requires { correction_.read(knobs); }) correction_.read(knobs);
    sizes_.validate();
    clip_.validate();
    optimiser_.validate();
    const std::size_t masked = extents_.rows() * extents_.per_row(knobs.reward_level);
    mask_.resize(masked);
    weight_.resize(masked);
    advantage_.resize(masked);
    return_B_.resize(extents_.episodes);
    advantage_B_.resize(extents_.episodes);
    present_B_.resize(extents_.episodes);
    keep_B_.resize(extents_.episodes);
    denominator_.reserve(extents_.rows() / sizes_.local() + 1);
    micros_.reserve(extents_.rows() / sizes_.local() + 1);
    proximal_.resize(Correction::needs_proximal ? extents_.rows() * shape_.tokens() : 0);
    const std::size_t micro = std::min(sizes_.micro, extents_.rows());
    rows_.resize(micro);
    for (std::vector<float>* buffer :
         {&current_, &entropy_, &behaviour_, &micro_proximal_, &d_current_, &d_entropy_})
      buffer->resize(micro * shape_.tokens());
    micro_advantage_.resize(micro * shape_.per_row());
    micro_weight_.resize(micro * shape_.per_row());
    micro_version_.resize(micro);
  }

  /// One batch: all epochs. `batch` counts from 0 and is the version of the weights being trained; afterwards
  /// they are version batch + 1. `before_step()` is called exactly once, before the first change of the
  /// weights: until it returns they may still be read elsewhere. Episodes whose group is -1 are absent. All
  /// actors call it for the same batch. Allocates nothing of its own.
  template <class BeforeStep, class Trace>
  UpdateStats update(Model& model, Weights& weights, const Transition& transition, const Decision& decision,
                     std::int64_t batch, BeforeStep before_step, Trace& trace) {
    if (static_cast<std::size_t>(weights.actors()) != sizes_.world)
      throw Error("GrpoTrainer was made for " + std::to_string(sizes_.world) +
                  " actors, but the weights are shared by " + std::to_string(weights.actors()));
    UpdateStats stats;
    prepare(transition, stats);
    const auto T = static_cast<std::int64_t>(extents_.decisions);
    const Observation observation =
        cut_record(transition.observation, [&](auto field) { return field.rows(0, T).flat(); });
    const Decision decisions = cut_record(decision, [](auto field) { return field.flat(); });
    const std::span<const float> behaviour = decisions.log_prob.span();

    std::span<const float> proximal;
    if constexpr (Correction::needs_proximal) {
      const bool own = on_policy(transition.version.span(), batch);  // the trainer's own weights acted
      proximal = own ? behaviour : std::span<const float>(proximal_);
      recompute(model, weights, observation, decisions, !own, batch, trace);
    }

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
          stats.loss +=
              micro_step(model, observation, decisions, behaviour, proximal, transition.version.span(),
                         batches_.micro(mini, static_cast<std::size_t>(part)), denominator_[mini], batch);
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
  /// All rows of a batch as one optimiser step: the next multiple of the micro-batch.
  static std::int64_t whole_batch(const GrpoKnobs& knobs, BatchShape shape) {
    const std::int64_t rows = shape.decisions * shape.episodes;
    return (rows + knobs.micro_batch - 1) / knobs.micro_batch * knobs.micro_batch;
  }
  static constexpr double infinity = std::numeric_limits<double>::infinity();
  using Rows = std::span<const MiniBatches::Row>;

  /// Returns, advantages, loss mask and weights of the whole batch. Success and return as sums, for add_up.
  void prepare(const Transition& transition, UpdateStats& stats) {
    const std::size_t per_row = shape_.per_row();
    const std::size_t group = static_cast<std::size_t>(knobs_.group);
    loss_mask(extents_, knobs_.reward_level, transition.terminated.span(), transition.truncated.span(),
              mask_);
    episode_returns(extents_, transition.reward.span(), transition.terminated.span(),
                    transition.truncated.span(), return_B_);
    check_groups(transition.group.span());
    for (std::size_t b = 0; b < extents_.episodes; ++b) {
      present_B_[b] = transition.group[static_cast<std::int64_t>(b)] >= 0;
      if (present_B_[b] == 0) continue;
      ++stats.episodes;
      stats.mean_return += return_B_[b];
      stats.success_rate += transition.episode.success[static_cast<std::int64_t>(b)];
    }
    present_rows_ = extents_.decisions * static_cast<std::size_t>(stats.episodes);
    stats.informative_groups = group_advantage(group, return_B_, present_B_, advantage_B_).informative;
    mask_episodes(present_B_, per_row, mask_);
    if (knobs_.filter_lower != 0 || knobs_.filter_upper != 0) {
      filter_rewards(group, knobs_.filter_lower, knobs_.filter_upper, return_B_, present_B_, keep_B_);
      mask_episodes(keep_B_, per_row, mask_);
    }
    broadcast_advantage(advantage_B_, per_row, mask_, advantage_);
    loss_weights(knobs_.aggregation, extents_.episodes, per_row, mask_, weight_);
  }

  /// Episodes of a group are of one group for whoever sampled them, too.
  void check_groups(std::span<const std::int32_t> sampled) const {
    const auto group = static_cast<std::size_t>(knobs_.group);
    for (std::size_t b = 0; b < sampled.size(); ++b) {
      const std::int32_t first = sampled[b / group * group];
      if (sampled[b] >= 0 && first >= 0 && sampled[b] != first)
        throw Error("GRPO has groups of " + std::to_string(group) + ", but episodes " +
                    std::to_string(b / group * group) + " and " + std::to_string(b) +
                    " of the batch were sampled as groups " + std::to_string(first) + " and " +
                    std::to_string(sampled[b]) + "; give worker and algorithm the same group");
    }
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
      for (double* sum : {&loss.policy_loss, &loss.entropy_loss, &loss.entropy, &loss.ratio_sum, &loss.kl_sum,
                          &loss.anchor_weight_sum, &stats.success_rate, &stats.mean_return})
        visit(*sum);
      for (std::size_t* count : {&loss.units, &loss.dropped, &loss.clipped_low, &loss.clipped_high,
                                 &loss.dual_clipped, &stats.informative_groups})
        visit(*count);
      visit(stats.episodes);
      visit(stats.rows);
    };
    std::array<double, 16> values{};
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

  /// Log-probabilities of every valid row under the trainer's weights before the first step on this batch,
  /// where they are `wanted`; in as many passes as the actor with the most has, and none where nobody has any.
  template <class Trace>
  void recompute(Model& model, Weights& weights, const Observation& observation, const Decision& decisions,
                 bool wanted, std::int64_t batch, Trace& trace) {
    std::array<std::int64_t, 1> passes{};
    if (wanted) {
      batches_.draw(mask_, shape_.per_row(), seed_);
      batches_.cut(1);
      passes[0] = static_cast<std::int64_t>(batches_.micros(0));
    }
    const std::int64_t mine = passes[0];
    weights.max(passes);
    if (passes[0] == 0) return;
    auto span = trace.span("proximal", batch);
    const std::size_t tokens = shape_.tokens();
    for (std::int64_t part = 0; part < passes[0]; ++part) {
      weights.begin_pass({.backward = false});
      if (part >= mine) continue;
      const Rows rows = batches_.micro(0, static_cast<std::size_t>(part));
      forward(model, observation, decisions, rows);
      for (std::size_t i = 0; i < rows.size(); ++i)
        std::copy_n(current_.begin() + static_cast<std::ptrdiff_t>(i * tokens), tokens,
                    proximal_.begin() + static_cast<std::ptrdiff_t>(rows[i] * tokens));
    }
  }

  void forward(Model& model, const Observation& observation, const Decision& decisions, Rows rows) {
    std::copy(rows.begin(), rows.end(), rows_.begin());
    const std::size_t count = rows.size() * shape_.tokens();
    in_model<Model>("forward", rows.size(), observation, [&] {
      model.forward(observation, decisions, std::span<const std::int64_t>(rows_).first(rows.size()),
                    std::span(current_).first(count), std::span(entropy_).first(count));
    });
  }

  LossStats micro_step(Model& model, const Observation& observation, const Decision& decisions,
                       std::span<const float> behaviour, std::span<const float> proximal,
                       std::span<const std::int64_t> version, Rows rows, double denominator,
                       std::int64_t batch) {
    const std::size_t tokens = rows.size() * shape_.tokens();
    auto gather = [&](std::span<const float> source, std::size_t per_row, std::vector<float>& target) {
      const std::span<float> out = std::span(target).first(rows.size() * per_row);
      gather_rows(source, per_row, rows, out);
      return std::span<const float>(out);
    };
    LossShape shape = shape_;
    shape.rows = rows.size();
    forward(model, observation, decisions, rows);
    LossInputs<float> inputs;
    inputs.current = std::span<const float>(current_).first(tokens);
    inputs.entropy = std::span<const float>(entropy_).first(tokens);
    inputs.behaviour = gather(behaviour, shape.tokens(), behaviour_);
    inputs.advantage = gather(advantage_, shape.per_row(), micro_advantage_);
    inputs.weight = gather(weight_, shape.per_row(), micro_weight_);
    if constexpr (Correction::needs_proximal)
      inputs.proximal = gather(proximal, shape.tokens(), micro_proximal_);
    if constexpr (Correction::needs_versions) {
      const std::span<std::int64_t> out = std::span(micro_version_).first(rows.size());
      gather_rows(version, 1, rows, out);
      inputs.version = out;
    }
    inputs.trained_version = batch;
    const std::span<float> d_current = std::span(d_current_).first(tokens);
    const std::span<float> d_entropy = std::span(d_entropy_).first(tokens);
    const LossStats stats =
        clip_loss<Correction, float>(shape, inputs, clip_, denominator, d_current, d_entropy, correction_);
    in_model<Model>("backward", rows.size(), observation, [&] { model.backward(d_current, d_entropy); });
    return stats;
  }

  GrpoKnobs knobs_;
  std::uint64_t seed_;
  RolloutExtents extents_;
  LossShape shape_;
  BatchSizes sizes_;
  AdamWKnobs optimiser_;
  ClipKnobs clip_;
  Correction correction_;
  MiniBatches batches_;
  std::size_t present_rows_ = 0;
  std::vector<double> denominator_;   ///< of each mini-batch
  std::vector<std::int64_t> micros_;  ///< of each mini-batch, on the actor with the most
  std::vector<std::uint8_t> mask_, present_B_, keep_B_;
  std::vector<float> weight_, advantage_, return_B_, advantage_B_, proximal_;
  std::vector<std::int64_t> rows_, micro_version_;
  std::vector<float> current_, entropy_, behaviour_, micro_proximal_, d_current_, d_entropy_,
      micro_advantage_, micro_weight_;
};

template <class Correction, class Pipeline>
struct machinery<BasicGRPO<Correction>, Pipeline> {
  using model = machinery_t<typename Pipeline::model, Pipeline>;
  using type = GrpoTrainer<model, machinery_t<typename Pipeline::sharding, Pipeline>, Correction>;
};

}  // namespace dvla
