// Conformance of an algorithm's machinery: what algorithm/concept.hpp promises and a compiler can't check,
// for shipped and users' own ones. Returns one sentence per violation, none if it conforms; no test
// framework. A small linear model, whole weights, and batches that it really sampled, in which half of each
// group earns a reward. Does not measure how well or how fast an algorithm learns.
//
// Legend: T decisions, B episodes, C control steps a chunk, A action dimensions, G episodes a group.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "dvla/algorithm/concept.hpp"
#include "dvla/algorithm/update_stats.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/findings.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/weights.hpp"
#include "dvla/trace/off.hpp"

namespace dvla::testing {

struct AlgorithmCheck {
  std::int64_t max_staleness = 0;  ///< the policy's: data this many versions old must be taken
};

namespace detail {

/// A model, its weights and a batch of T = 3 decisions that the model made. Odd episodes end one decision
/// early; the first half of each group is rewarded in its last control step.
template <class Model>
struct AlgorithmWorld {
  using Weights = UnshardedWeights<Model>;
  static constexpr std::int64_t T = 3, C = 2, A = 2, groups = 8;

  explicit AlgorithmWorld(std::int64_t of)
      : B(groups * of),
        group(of),
        inputs{{.cameras = {}, .proprioception = 3, .instructions = {"go", "stop"}}, {.dimensions = A}, C},
        model({.bins = 5, .chunk = C}, inputs, 3),
        weights(model, heap()),
        transition(transition_layout(inputs.observation, inputs.action, shape()), heap()),
        decision(model.decision_layout({T, B}), heap()) {
    SplitMix64 random(11);
    for (float& value : transition->observation.proprioception.span())
      value = static_cast<float>(random.normal());
    for (std::int64_t t = 0; t <= T; ++t)
      for (std::int64_t b = 0; b < B; ++b)
        transition->observation.instruction.at(t)[b] = static_cast<std::int32_t>(b / group % 2);
    std::vector<std::int64_t> every(static_cast<std::size_t>(B));
    std::iota(every.begin(), every.end(), std::int64_t{0});
    for (std::int64_t t = 0; t < T; ++t) {
      typename Model::Decision made = cut_record(*decision, [t](auto field) { return field.at(t); });
      model.act(cut_record(transition->observation, [t](auto field) { return field.at(t); }), every,
                Decoding::sample, 100 + static_cast<std::uint64_t>(t), made, transition->action.at(t));
    }
    for (std::int64_t b = 0; b < B; ++b) {
      transition->group[b] = static_cast<std::int32_t>(b / group);
      EpisodeTable& episode = transition->episode;
      episode.seed[b] = static_cast<std::uint64_t>(b / group);
      episode.decision[b] = static_cast<std::int32_t>(end(b) / C);
      episode.step[b] = static_cast<std::int32_t>(end(b) % C);
      episode.end[b] = static_cast<std::uint8_t>(b % 2 == 0 ? EpisodeEnd::terminated : EpisodeEnd::truncated);
      if constexpr (HasValues<Model>) episode.final_value[b] = 0;
      for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t c = 0; c < C; ++c) {  // half of the episodes end in each way
          const std::uint8_t ended = t * C + c >= end(b) ? 1 : 0;
          transition->terminated.at(t).at(b)[c] = b % 2 == 0 ? ended : 0;
          transition->truncated.at(t).at(b)[c] = b % 2 == 0 ? 0 : ended;
        }
    }
    reward([this](std::int64_t b) { return better(b); });
    sampled_by([](std::int64_t) { return 0; });
  }

  BatchShape shape() const { return {T, B, C, 1, HasValues<Model>}; }
  bool better(std::int64_t b) const { return b % group < group / 2; }
  /// Episodes for which `solved(b)` holds earn 1 and are solved.
  template <class Solved>
  void reward(Solved solved) {
    std::ranges::fill(transition->reward.span(), 0.0F);
    for (std::int64_t b = 0; b < B; ++b) {
      transition->episode.success[b] = solved(b) ? 1 : 0;
      transition->reward.at(end(b) / C).at(b)[end(b) % C] = solved(b) ? 1.0F : 0.0F;
    }
  }
  /// Decision t of every episode was made by version(t).
  template <class Version>
  void sampled_by(Version version) {
    for (std::int64_t t = 0; t < T; ++t)
      std::ranges::fill(transition->version.at(t).span(), static_cast<std::int64_t>(version(t)));
  }
  std::vector<float> parameters() const { return weights_of(model); }
  /// Log-probability of the better episodes' actions less that of the others'.
  double preference() {
    std::vector<std::int64_t> rows;
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t b = 0; b < B; ++b)
        if (t * C <= end(b)) rows.push_back(t * B + b);
    std::vector<float> log_prob(rows.size() * C * A), entropy(log_prob.size());
    model.forward(cut_record(transition->observation, [](auto field) { return field.rows(0, T).flat(); }),
                  cut_record(*decision, [](auto field) { return field.flat(); }), rows, log_prob, entropy);
    double sum = 0;
    for (std::size_t i = 0; i < log_prob.size(); ++i)
      sum += (better(rows[i / (C * A)] % B) ? 1 : -1) * static_cast<double>(log_prob[i]);
    return sum;
  }
  std::uint64_t checksum() { return record_checksum(*transition) ^ record_checksum(*decision); }

  static std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }
  /// The control step that ends episode b.
  static std::int64_t end(std::int64_t b) { return (b % 2 == 1 ? T - 1 : T) * C - 1; }

  const std::int64_t B, group;
  const ModelInputs inputs;
  Model model;
  Weights weights;
  OwnedRecord<Transition> transition;
  OwnedRecord<typename Model::Decision> decision;
};

template <class Machinery, class Knobs, class Model>
class AlgorithmProbe {
 public:
  AlgorithmProbe(const Knobs& knobs, const AlgorithmCheck& check) : knobs_(knobs), check_(check) {
    if constexpr (requires { knobs_.group; }) group_ = knobs_.group;
  }

  std::vector<std::string> run() {
    learns("fresh data", 0, [](std::int64_t) { return 0; });
    if (check_.max_staleness > 0) {
      const std::int64_t oldest = check_.max_staleness;
      learns("data as old as allowed", oldest, [](std::int64_t) { return 0; });
      learns("data of several versions", oldest, [&](std::int64_t t) { return std::min(t, oldest); });
    }
    repeats();
    if constexpr (!HasValues<Model>) {  // else the values learn
      teaches_nothing("a batch in which no episode is solved", knobs_, [](std::int64_t) { return false; });
      teaches_nothing("a batch in which every episode is solved", knobs_, [](std::int64_t) { return true; });
    }
    if constexpr (requires(Knobs & knobs) { knobs.filter_lower = knobs.filter_upper = 1.0; }) {
      Knobs filtered = knobs_;
      filtered.filter_lower = 2, filtered.filter_upper = 3;
      teaches_nothing("a batch whose every group is filtered out", filtered);
    }
    if constexpr (requires(Knobs & knobs) { knobs.learning_rate = 0; }) {
      Knobs still = knobs_;
      still.learning_rate = 0;
      teaches_nothing("learning rate 0", still);
    }
    leaves_out_the_absent();
    lets_through();
    refuses_nan();
    return expect.sentences;
  }

 private:
  using World = AlgorithmWorld<Model>;

  /// No weight decay and no entropy bonus: what is left is what the rewards teach.
  static Knobs bare(Knobs knobs) {
    if constexpr (requires { knobs.weight_decay = 0; }) knobs.weight_decay = 0;
    if constexpr (requires { knobs.entropy_bonus = 0; }) knobs.entropy_bonus = 0;
    return knobs;
  }
  Machinery machinery(const World& world, const Knobs& knobs) const {
    return Machinery(knobs, world.shape(), World::A, std::uint64_t{1});
  }

  /// One update of the world.
  template <class BeforeStep>
  static UpdateStats plain_update(Machinery& algorithm, World& world, std::int64_t batch,
                                  BeforeStep before_step) {
    trace::Off off;
    return algorithm.update(world.model, world.weights, *world.transition, *world.decision, batch,
                            before_step, off);
  }
  /// The same, its use of before_step and of the records watched.
  UpdateStats update(Machinery& algorithm, World& world, std::int64_t batch, const std::string& where) {
    const std::vector<float> start = world.parameters();
    const std::uint64_t records = world.checksum();
    const std::int64_t steps = world.weights.steps();
    int calls = 0;
    const UpdateStats stats = plain_update(algorithm, world, batch, [&] {
      ++calls;
      expect(world.parameters() == start && world.weights.steps() == steps,
             where + ": before_step must be called before the first change of the weights");
    });
    expect(calls == 1,
           where + ": before_step must be called exactly once, not " + std::to_string(calls) + " times");
    expect(world.checksum() == records, where + ": the records must stay as they are");
    for (const double value :
         {stats.success_rate, stats.mean_return, stats.gradient_norm, stats.loss.policy_loss,
          stats.loss.entropy_loss, stats.loss.ratio_sum, stats.loss.max_ratio_deviation, stats.loss.kl_sum})
      expect(std::isfinite(value), where + ": every figure must be finite");
    const double solved =
        static_cast<double>(std::ranges::count(world.transition->episode.success.span(), 1)) /
        static_cast<double>(world.B);
    expect(std::abs(stats.success_rate - solved) < 1e-6,
           where + ": success_rate must be the share of solved episodes");
    expect(std::abs(stats.mean_return - solved) < 1e-6,
           where + ": mean_return must be the episodes' mean return");
    expect(stats.optimiser_steps == world.weights.steps() - steps,
           where + ": optimiser_steps must count the steps");
    return stats;
  }

  template <class Version>
  void learns(const std::string& where, std::int64_t batch, Version version) {
    World world(group_);
    world.sampled_by(version);
    Machinery algorithm = machinery(world, bare(knobs_));
    const double before = world.preference();
    const UpdateStats stats = update(algorithm, world, batch, where);
    expect(stats.optimiser_steps > 0 && stats.rows > 0, where + ": a batch with a lesson must be trained on");
    expect(world.preference() > before,
           where + ": the better half of each group must become likelier against the other half");
  }

  void repeats() {
    World one(group_), two(group_);
    Machinery first = machinery(one, knobs_), second = machinery(two, knobs_);
    for (std::int64_t batch = 0; batch < 3; ++batch) {
      const UpdateStats a = update(first, one, batch, "several batches");
      const UpdateStats b = update(second, two, batch, "several batches");
      expect(one.parameters() == two.parameters() && a.loss.policy_loss == b.loss.policy_loss &&
                 a.gradient_norm == b.gradient_norm,
             "the same inputs must give the same bits");
      // The next batch is as if the new weights had made it.
      for (World* world : {&one, &two}) world->sampled_by([&](std::int64_t) { return batch + 1; });
    }
  }

  void teaches_nothing(const std::string& where, const Knobs& knobs,
                       const std::function<bool(std::int64_t)>& solved = nullptr) {
    World world(group_);
    if (solved) world.reward(solved);
    Machinery algorithm = machinery(world, bare(knobs));
    const std::vector<float> start = world.parameters();
    update(algorithm, world, 0, where);
    expect(world.parameters() == start, where + " must leave every bit of the weights");
  }

  /// One group whose rollout died or whose environment failed: nothing of it counts.
  void leaves_out_the_absent() {
    const auto weights_with = [&](float reward, float proprioception) {
      World world(group_);
      for (std::int64_t b = group_; b < 2 * group_; ++b) {
        world.transition->group[b] = -1;
        world.transition->episode.success[b] = reward != 0 && b % 2 == 0;
        for (std::int64_t t = 0; t < World::T; ++t) {
          std::ranges::fill(world.transition->reward.at(t).at(b).span(), b % 2 == 0 ? reward : 0.0F);
          std::ranges::fill(world.transition->observation.proprioception.at(t).at(b).span(), proprioception);
        }
      }
      Machinery algorithm = machinery(world, knobs_);
      plain_update(algorithm, world, 0, [] {});
      return world.parameters();
    };
    expect(weights_with(0, 0) == weights_with(5, 1),
           "rows whose group is -1 are absent: what stands in them must not change the update");
  }

  void lets_through() {
    World world(group_);
    Machinery algorithm = machinery(world, knobs_);
    const std::vector<float> start = world.parameters();
    expect.refused<std::domain_error>("an update whose before_step throws", "were not packed", [&] {
      plain_update(algorithm, world, 0, [] { throw std::domain_error("the last weights were not packed"); });
    });
    expect(world.parameters() == start, "when before_step throws, the weights must not have changed");
  }

  void refuses_nan() {
    World world(group_);
    std::ranges::fill(world.transition->observation.proprioception.span(),
                      std::numeric_limits<float>::quiet_NaN());  // whatever an optimiser step takes
    Machinery algorithm = machinery(world, knobs_);
    const std::vector<float> start = world.parameters();
    expect.refused("an update with log-probabilities that are not numbers", "",
                   [&] { plain_update(algorithm, world, 0, [] {}); });
    expect(world.parameters() == start, "log-probabilities that are not numbers must not reach the weights");
  }

  const Knobs knobs_;
  const AlgorithmCheck check_;
  std::int64_t group_ = 8;
  Findings expect;
};

}  // namespace detail

/// `Machinery` for `Model`, LinearModel or LinearValueModel, and `UnshardedWeights<Model>`. Of the knobs, `group`, `learning_rate`,
/// `weight_decay`, `entropy_bonus`, `filter_lower` and `filter_upper` mean what they mean in GrpoKnobs; one
/// that is not there is not asked about. Not for algorithms whose gradient is not 0 where all episodes of a
/// group earn the same.
template <class Machinery, class Model = LinearModel, class Knobs>
std::vector<std::string> check_algorithm(const Knobs& knobs, const AlgorithmCheck& check = {}) {
  static_assert(
      AlgorithmMachinery<Machinery, Knobs, Model, UnshardedWeights<Model>>,
      "dvla: check_algorithm needs an algorithm's machinery for the model and UnshardedWeights, and "
      "its knobs (algorithm/concept.hpp)");
  return detail::AlgorithmProbe<Machinery, Knobs, Model>(knobs, check).run();
}

}  // namespace dvla::testing
