// dvla-test: core
// The algorithm suite must find each way of breaking a promise: REINFORCE against the group's mean, broken by
// a switch.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "dvla/core/knobs.hpp"
#include "dvla/testing/algorithm.hpp"
#include "test/testing/found.hpp"

using namespace dvla;

namespace {

enum class Break {
  nothing,
  early_step,
  no_call,
  two_calls,
  no_call_if_idle,
  swallows,
  writes,
  other_rate,
  other_return,
  steps,
  not_finite,
  uphill,
  own_rate,
  drifts,
  state,
  refuses_old,
  hides_nan,
  absent
};

struct BrokenKnobs {
  Break how = Break::nothing;
  int group = 4;
  double learning_rate = 0.01;
};

/// Every decision of an episode counts until its end.
class Broken {
 public:
  Broken(const BrokenKnobs& knobs, BatchShape shape, std::int64_t action_dim, std::uint64_t)
      : knobs_(knobs), shape_(shape), elements_(shape.chunk * action_dim) {}

  template <class Model, class Weights, class BeforeStep, class Trace>
  UpdateStats update(Model& model, Weights& weights, const Transition& transition,
                     const typename Model::Decision& decision, std::int64_t batch, BeforeStep before_step,
                     Trace&) {
    const auto [T, B, C, table, values] = shape_;
    const Break how = knobs_.how;
    if (how == Break::refuses_old && transition.version[0] != batch) return {};
    UpdateStats stats;
    std::vector<double> advantage(static_cast<std::size_t>(B));
    for (std::int64_t b = 0; b < B; ++b) {
      stats.success_rate += transition.episode.success[b] / static_cast<double>(B);
      for (std::int64_t i = b / knobs_.group * knobs_.group; i < (b / knobs_.group + 1) * knobs_.group; ++i)
        advantage[static_cast<std::size_t>(b)] -=
            transition.episode.success[i] / static_cast<double>(knobs_.group);
      advantage[static_cast<std::size_t>(b)] += transition.episode.success[b];
    }
    stats.mean_return = stats.success_rate;
    std::vector<std::int64_t> rows;
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t b = 0; b < B; ++b)
        if ((t == 0 || !transition.ended(t - 1, b)) && (transition.group[b] >= 0 || how == Break::absent))
          rows.push_back(t * B + b);
    std::vector<float> log_prob(rows.size() * static_cast<std::size_t>(elements_)), entropy(log_prob.size()),
        slope(log_prob.size());
    model.forward(cut_record(transition.observation, [T = T](auto field) { return field.rows(0, T).flat(); }),
                  cut_record(decision, [](auto field) { return field.flat(); }), rows, log_prob, entropy);
    bool idle = true;
    for (std::size_t i = 0; i < slope.size(); ++i) {
      const std::int64_t b = rows[i / static_cast<std::size_t>(elements_)] % B;
      slope[i] = static_cast<float>(-advantage[static_cast<std::size_t>(b)]) * (log_prob[i] / log_prob[i]);
      if (how == Break::uphill) slope[i] = -slope[i];
      if (how == Break::drifts) slope[i] += 1e-3F;
      if (how == Break::hides_nan && !std::isfinite(slope[i])) model.units()[0].floats()[0] = 1, slope[i] = 0;
      idle = idle && slope[i] == 0;
    }
    weights.zero_gradients();
    std::ranges::fill(entropy, 0.0F);
    if (how != Break::hides_nan || std::isfinite(log_prob[0])) model.backward(slope, entropy);
    const double rate =
        (how == Break::own_rate ? 0.01 : knobs_.learning_rate) * (how == Break::state ? ++calls : 1);
    const auto step = [&] { stats.gradient_norm = weights.step({.learning_rate = rate, .weight_decay = 0}); };
    if (how == Break::early_step) step();
    if (how != Break::no_call && (how != Break::no_call_if_idle || !idle)) {
      try {
        before_step();
      } catch (...) {
        if (how != Break::swallows) throw;
      }
    }
    if (how == Break::two_calls) before_step();
    if (how != Break::early_step) step();
    stats.optimiser_steps = how == Break::steps ? 2 : 1;
    stats.rows = static_cast<std::int64_t>(rows.size());
    if (how == Break::other_rate) stats.success_rate /= 2;
    if (how == Break::other_return) stats.mean_return *= 3;
    if (how == Break::not_finite) stats.loss.kl_sum = std::numeric_limits<double>::infinity();
    if (how == Break::writes) transition.reward[0] += 1;
    return stats;
  }

 private:
  static inline int calls = 0;
  BrokenKnobs knobs_;
  BatchShape shape_;
  std::int64_t elements_;
};

std::string said(Break how) {
  return lines(testing::check_algorithm<Broken>(BrokenKnobs{.how = how}, {.max_staleness = 2}));
}

}  // namespace

TEST_CASE("an algorithm that keeps its promises is not accused") { CHECK(said(Break::nothing) == ""); }

TEST_CASE("each broken promise is found and named") {
  check_each_is_found<Break>(
      {
          {Break::absent, "rows whose group is -1 are absent"},
          {Break::early_step, "before_step must be called before the first change of the weights"},
          {Break::no_call, "before_step must be called exactly once, not 0 times"},
          {Break::two_calls, "before_step must be called exactly once, not 2 times"},
          {Break::no_call_if_idle,
           "no episode is solved: before_step must be called exactly once, not 0 times"},
          {Break::swallows, "must be refused: an update whose before_step throws"},
          {Break::writes, "fresh data: the records must stay as they are"},
          {Break::other_rate, "success_rate must be the share of solved episodes"},
          {Break::other_return, "mean_return must be the episodes' mean return"},
          {Break::steps, "optimiser_steps must count the steps"},
          {Break::not_finite, "every figure must be finite"},
          {Break::uphill, "the better half of each group must become likelier"},
          {Break::own_rate, "learning rate 0 must leave every bit of the weights"},
          {Break::drifts, "a batch in which every episode is solved must leave every bit of the weights"},
          {Break::state, "the same inputs must give the same bits"},
          {Break::refuses_old, "data as old as allowed: a batch with a lesson must be trained on"},
          {Break::hides_nan, "log-probabilities that are not numbers must not reach the weights"},
      },
      said);
}
