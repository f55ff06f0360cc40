// Warm start: behaviour cloning from a scripted expert, until the policy solves a given share of episodes. A
// VLA is fine-tuned from demonstrations before reinforcement learning too; sparse rewards need a start that
// succeeds sometimes. Not part of GRPO: it runs once, in the calling thread, before the lanes start.
//
// Legend: N environments, T decisions, M = demonstrated decisions, C control steps a chunk, A action
// dimensions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/record.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/model/calls.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/run_knobs.hpp"

namespace dvla {

struct WarmStartResult {
  double expert_success = 0;  ///< of the noisy expert, over the demonstrations
  std::int64_t rows = 0;      ///< M
  std::int64_t steps = 0;     ///< optimiser steps taken
  double loss = 0;            ///< of the last step
  double success = 0;         ///< sampled, over one pass of all environments, at the last check
};

/// Clones the expert into `model` by AdamW on `weights`, as the knobs say, then forgets the moments. `rollouts`
/// play what is asked (pipeline/requests.hpp), and get the trained weights before each success check. Throws
/// what the model and the environment throw, and Stopped at the next decision or optimiser step once `stop`,
/// which may be null, asks: the weights are then half cloned, so nothing should be made of them.
template <class Rollouts, class Model, class Weights>
WarmStartResult warm_start(Rollouts& rollouts, Model& model, Weights& weights, const RunKnobs& knobs,
                           const stop_flag* stop = nullptr) {
  constexpr std::int64_t decisions = 128;  // demonstrated ones an optimiser step
  const auto seed = static_cast<std::uint64_t>(knobs.seed);
  WarmStartResult result;
  // Passes of T x N decisions, kept as they were recorded; `rows` are the ones that count.
  const auto recorded = rollouts.demonstrate(knobs.demonstrations, knobs.demonstration_noise, stop);
  std::vector<std::pair<std::size_t, std::int64_t>> rows;  // pass, row n = t*N + b
  for (std::size_t pass = 0; pass < recorded.size(); ++pass) {
    const Transition& all = **recorded[pass].transition;
    result.expert_success += static_cast<double>(recorded[pass].answer.solved);
    for (std::int64_t t = 0; t < all.action.extents()[0]; ++t)
      for (std::int64_t b = 0; b < recorded[pass].episodes; ++b)
        if (all.group[b] >= 0 && (t == 0 || !all.ended(t - 1, b)))
          rows.emplace_back(pass, t * all.group.count() + b);
  }
  result.expert_success /= static_cast<double>(knobs.demonstrations);
  result.rows = static_cast<std::int64_t>(rows.size());
  if (rows.empty())
    throw Error("the warm start has nothing to clone: every environment failed under the expert");

  AdamWKnobs optimiser;
  optimiser.learning_rate = 1e-3;
  optimiser.weight_decay = 0;
  std::vector<std::vector<std::int64_t>> by_pass(recorded.size());
  while (result.steps < knobs.imitation_steps) {
    throw_if_stopped(stop, "the warm start");
    // A batch drawn with replacement; one imitate() a pass that has rows in it, gradients added up by their
    // share.
    SplitMix64 random(stream_seed(seed, Stream::imitation, result.steps));
    const std::int64_t batch = std::min(decisions, result.rows);
    for (auto& list : by_pass) list.clear();
    for (std::int64_t i = 0; i < batch; ++i) {
      const auto [pass, row] = rows[static_cast<std::size_t>(random.below(rows.size()))];
      by_pass[pass].push_back(row);
    }
    weights.zero_gradients();
    result.loss = 0;
    for (std::size_t pass = 0; pass < by_pass.size(); ++pass) {
      if (by_pass[pass].empty()) continue;
      const double share = static_cast<double>(by_pass[pass].size()) / static_cast<double>(batch);
      const Transition& all = **recorded[pass].transition;
      const std::int64_t T = all.action.extents()[0];
      const Observation seen =
          cut_record(all.observation, [T](auto field) { return field.rows(0, T).flat(); });
      result.loss += share * in_model<Model>("imitate", by_pass[pass].size(), seen, [&] {
                       return model.imitate(seen, all.action.flat(), by_pass[pass], share);
                     });
    }
    weights.step(optimiser);
    ++result.steps;
    if (result.steps % knobs.imitation_check == 0 || result.steps == knobs.imitation_steps) {
      rollouts.install(0);
      const std::int64_t N = rollouts.environments();
      const auto episodes = fresh_starts(seed, Stream::probe, result.steps * N, N);
      result.success = success_of(rollouts.evaluate(episodes, Decoding::sample, stop));
      if (result.success >= knobs.imitation_target) break;
    }
  }
  weights.reset_optimiser();
  return result;
}

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::WarmStartResult, expert_success, rows, steps, loss, success);
