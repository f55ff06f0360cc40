// What a user tunes in any policy gradient with a clipped ratio (policy_gradient.hpp): names and defaults follow
// RLinf's shipped settings where those have one. GrpoKnobs and PpoKnobs derive from it. Includes no arithmetic.
#pragma once

#include <string>

#include "dvla/algorithm/levels.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

struct PolicyGradientKnobs {
  int rollout_epochs = 1;  ///< passes of all environments that make one batch
  int epochs = 2;          ///< passes of the trainer over a batch
  int global_batch = 512;  ///< decisions per optimiser step; 0 = all; a multiple of micro_batch
  int micro_batch = 256;   ///< decisions per forward and backward pass
  double learning_rate = 3e-4;
  int decay_batches = 0;  ///< the learning rate falls linearly to a tenth over so many batches; 0 = constant
  double beta1 = 0.9;
  double beta2 = 0.95;
  double weight_decay = 0;
  double gradient_clip = 1;    ///< norm; 0 = off
  double clip_low = 0.2;       ///< ratio >= 1 - clip_low
  double clip_high = 0.28;     ///< ratio <= 1 + clip_high
  double dual_clip = 0;        ///< above 1, or 0 = off
  double log_ratio_clamp = 0;  ///< 0 = off
  LogProbLevel log_prob_level = LogProbLevel::token;
  RewardLevel reward_level = RewardLevel::chunk;
  Aggregation aggregation = Aggregation::trajectory_equal;
  double entropy_bonus = 0;
  double kl = 0;  ///< weight of the KL to the reference policy; not 0 only for models that know one
};

template <>
inline constexpr auto knob_docs<PolicyGradientKnobs> = std::to_array<KnobDoc>({
    {"rollout_epochs", "passes of all environments that make one batch", 1, 4096},
    {"epochs", "passes of the trainer over a batch", 1, 1000},
    {"global_batch", "decisions an optimiser step; 0 = the whole batch; a multiple of micro_batch", 0,
     1 << 24},
    {"micro_batch", "decisions a forward and backward pass", 1, 1 << 24},
    {"learning_rate", "of AdamW; 0 changes nothing", 0, 1},
    {"decay_batches", "batches over which the learning rate falls linearly to a tenth; 0 = it stays", 0, 1e9},
    {"beta1", "decay of AdamW's first moment", 0, 0.9999999},
    {"beta2", "decay of AdamW's second moment", 0, 0.9999999},
    {"weight_decay", "of AdamW, decoupled", 0, 10},
    {"gradient_clip", "largest norm of the gradient; 0 = off", 0, 1e9},
    {"clip_low", "the ratio is clipped below 1 - this", 0, 1},
    {"clip_high", "the ratio is clipped above 1 + this", 0, 100},
    {"dual_clip", "bound of the loss for negative advantages, as a ratio above 1; 0 = off", 0, 1e6},
    {"log_ratio_clamp", "largest |log ratio|; 0 = off", 0, 100},
    {"log_prob_level", "what one ratio covers"},
    {"reward_level", "what one reward covers"},
    {"aggregation", "how the loss is averaged: over valid steps, or every trajectory alike"},
    {"entropy_bonus", "weight of the entropy in the objective", 0, 10},
    {"kl", "weight of the KL to the reference policy, which a model under LoRA is without its adapters", 0,
     1e6},
});

/// Rules between members; found by validate(config).
inline void check(const PolicyGradientKnobs& knobs) {
  if (knobs.dual_clip != 0 && knobs.dual_clip <= 1)
    throw ConfigError("algorithm.dual_clip is " + std::to_string(knobs.dual_clip) +
                      "; it must be above 1, or 0 for off");
  if (knobs.global_batch % knobs.micro_batch != 0)
    throw ConfigError("algorithm.global_batch is " + std::to_string(knobs.global_batch) +
                      "; it must be a multiple of algorithm.micro_batch, which is " +
                      std::to_string(knobs.micro_batch));
}

/// Of an algorithm under BasicDecoupledClip: what is tuned besides.
template <class Algorithm>
struct DecoupledClipKnobs : Algorithm {
  double weight_limit = 2;  ///< samples whose importance weight exceeds it are dropped
};

template <class Algorithm>
inline constexpr auto knob_docs<DecoupledClipKnobs<Algorithm>> = joined_docs(
    knob_docs<Algorithm>,
    std::to_array<KnobDoc>({{"weight_limit", "importance weights above it drop the sample", 1e-6, 1e6}}));

/// Of an algorithm under GIPO.
template <class Algorithm>
struct GipoKnobs : Algorithm {
  double sigma = 0.5;  ///< how far log ratios may be from 0 to count in full
};

template <class Algorithm>
inline constexpr auto knob_docs<GipoKnobs<Algorithm>> = joined_docs(
    knob_docs<Algorithm>,
    std::to_array<KnobDoc>({{"sigma", "width of the Gaussian in the log ratio that weighs a sample", 1e-3,
                             1e3}}));

}  // namespace dvla

template <std::same_as<dvla::PolicyGradientKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::rollout_epochs, &K::epochs, &K::global_batch, &K::micro_batch, &K::learning_rate,
                    &K::decay_batches, &K::beta1, &K::beta2, &K::weight_decay, &K::gradient_clip,
                    &K::clip_low, &K::clip_high, &K::dual_clip, &K::log_ratio_clamp, &K::log_prob_level,
                    &K::reward_level, &K::aggregation, &K::entropy_bonus, &K::kl> {};
template <class Algorithm>
struct boost::hana::accessors_impl<dvla::DecoupledClipKnobs<Algorithm>>
    : dvla::more_members<Algorithm, &dvla::DecoupledClipKnobs<Algorithm>::weight_limit> {};
template <class Algorithm>
struct boost::hana::accessors_impl<dvla::GipoKnobs<Algorithm>>
    : dvla::more_members<Algorithm, &dvla::GipoKnobs<Algorithm>::sigma> {};
