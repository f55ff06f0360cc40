// dvla-example: smoke
// Own algorithm: REINFORCE with a leave-one-out baseline, and an own staleness correction inside GRPO.
//
// The algorithm slot is two things: a policy that states how old its data may be, and `update`, which turns
// a batch of records into a change of the weights. Algorithms meet models through log-probabilities on
// spans: ask the model for them, compute d loss / d log-prob, hand that back. Nothing below includes torch,
// and nothing would change if the model were written with it. testing::check_algorithm holds it to what the
// lanes rely on. Then the program trains the same pipeline with three fillings of the slot and prints their
// curves.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/algorithm.hpp>
#include <dvla/testing/linear_model.hpp>
#include <string>
#include <vector>

struct RlooKnobs {
  int group = 8;  ///< a run reads it too: these episodes share a reset state (without the knob, none do)
  double learning_rate = 0.03;
};
BOOST_HANA_ADAPT_STRUCT(RlooKnobs, group, learning_rate);
template <>
inline constexpr auto dvla::knob_docs<RlooKnobs> = std::to_array<dvla::KnobDoc>({
    {"group", "episodes that share a reset state", 2, 4096},
    {"learning_rate", "of AdamW", 0, 1},
});

/// REINFORCE whose baseline for an episode is the mean return of the *others* in its group (Ahmadian et al.,
/// arXiv 2402.14740): unbiased, no division by the spread, one gradient step a batch. Policy and machinery
/// in one struct. Importance weights are left out, so data older than one version is refused at compile
/// time.
class LeaveOneOut {
 public:
  using slot = dvla::algorithm_slot;
  using knobs = RlooKnobs;
  static constexpr std::string_view name = "LeaveOneOut";
  static constexpr int max_staleness = 1;

  LeaveOneOut(const RlooKnobs& chosen, dvla::BatchShape shape, std::int64_t action_dim, std::uint64_t)
      : knobs_(chosen),
        extents_{static_cast<std::size_t>(shape.decisions), static_cast<std::size_t>(shape.episodes),
                 static_cast<std::size_t>(shape.chunk)},
        elements_(extents_.chunk * static_cast<std::size_t>(action_dim)),
        mask_(extents_.rows()),
        present_B_(extents_.episodes),
        return_B_(extents_.episodes) {}

  /// One batch. `before_step` is called once, before the weights change: until then they may be read
  /// elsewhere.
  template <class Model, class Weights, class BeforeStep, class Trace>
  dvla::UpdateStats update(Model& model, Weights& weights, const dvla::Transition& transition,
                           const typename Model::Decision& decision, std::int64_t batch,
                           BeforeStep before_step, Trace& trace) {
    const std::size_t T = extents_.decisions, B = extents_.episodes;
    dvla::loss_mask(extents_, dvla::RewardLevel::chunk, transition.terminated.span(),
                    transition.truncated.span(), mask_);
    dvla::episode_returns(extents_, transition.reward.span(), transition.terminated.span(),
                          transition.truncated.span(), return_B_);

    std::vector<std::int64_t> rows;      // decisions that count, n = t * B + b
    for (std::size_t b = 0; b < B; ++b)  // absent: its rollout died, or its environment failed
      present_B_[b] = transition.group[static_cast<std::int64_t>(b)] >= 0;
    for (std::size_t row = 0; row < T * B; ++row)
      if (mask_[row] != 0 && present_B_[row % B] != 0) rows.push_back(static_cast<std::int64_t>(row));
    std::vector<float> log_prob(rows.size() * elements_), entropy(log_prob.size()), gradient(log_prob.size());

    // Records are time-major [T, B, ...]; a model wants rows, so the first two dimensions become one.
    const dvla::Observation observation = dvla::cut_record(transition.observation, [&](auto field) {
      return field.rows(0, static_cast<std::int64_t>(T)).flat();
    });
    const auto decisions = dvla::cut_record(decision, [](auto field) { return field.flat(); });
    {
      auto span = trace.span("forward", batch);  // shows in trace.json
      model.forward(observation, decisions, rows, log_prob, entropy);
    }
    // loss = -mean over episodes of (return - baseline) * log-prob of the episode
    dvla::UpdateStats stats;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t b = static_cast<std::size_t>(rows[i]) % B;
      const float slope = -advantage(b) / static_cast<float>(B);
      std::fill_n(gradient.begin() + static_cast<std::ptrdiff_t>(i * elements_), elements_, slope);
    }
    weights.zero_gradients();
    std::fill(entropy.begin(), entropy.end(), 0.0F);  // d loss / d entropy
    model.backward(gradient, entropy);
    before_step();
    stats.gradient_norm = weights.step({.learning_rate = knobs_.learning_rate, .weight_decay = 0});
    stats.optimiser_steps = 1;
    stats.rows = static_cast<std::int64_t>(rows.size());
    stats.episodes = std::count(present_B_.begin(), present_B_.end(), 1);
    for (std::size_t b = 0; b < B; ++b) {
      const double share = present_B_[b] / std::max(1.0, static_cast<double>(stats.episodes));
      stats.success_rate += transition.episode.success[static_cast<std::int64_t>(b)] * share;
      stats.mean_return += return_B_[b] * share;
    }
    return stats;
  }

 private:
  float advantage(std::size_t b) const {
    const auto group = static_cast<std::size_t>(knobs_.group);
    float sum = 0, others = 0;
    for (std::size_t i = b / group * group; i < (b / group + 1) * group; ++i)
      if (i != b && present_B_[i] != 0) sum += return_B_[i], ++others;
    return others > 0 ? return_B_[b] - sum / others : 0;
  }

  RlooKnobs knobs_;
  dvla::RolloutExtents extents_;
  std::size_t elements_;
  std::vector<std::uint8_t> mask_, present_B_;
  std::vector<float> return_B_;
};

/// A staleness correction: plain clipping, and a sample counts half as much for every version that it is
/// old. GRPO asks for two facts at compile time (what it needs, how old data may get) and one answer for
/// each element of the loss.
struct HalfLife {
  static constexpr std::string_view name = "HalfLife";
  static constexpr int max_staleness = 4;
  static constexpr bool needs_proximal = false;
  static constexpr bool needs_versions = true;
  dvla::Anchor anchor(const dvla::LossElement& element) const {
    return {element.behaviour, std::pow(0.5, static_cast<double>(element.lag))};
  }
};

using Base = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>>;
using WithLeaveOneOut = Base::replace<LeaveOneOut>;
using WithHalfLife = Base::replace<dvla::BasicGRPO<HalfLife>, dvla::Swimlane<2>>;
// Base::replace<LeaveOneOut, dvla::Swimlane<2>> does not compile: the schedule is staler than the algorithm
// allows.

template <class P>
void train(dvla::Config<P> config = {}) {
  config.environment.horizon = 2;
  config.algorithm.learning_rate = 0.03;
  config.run.iterations = 500;
  dvla::Run<P> run(config);
  std::printf("%-24.*s success of a batch:", static_cast<int>(P::algorithm::name.size()),
              P::algorithm::name.data());
  const dvla::RunReport report = run.train([](const dvla::Iteration& done) {
    if (done.batch % 100 == 99) std::printf(" %.2f", done.update.success_rate);
  });
  std::printf("; on fresh seeds %.2f, lag at most %lld\n", run.evaluate(1024),
              static_cast<long long>(report.max_staleness));
}

int main() try {
  const auto broken =
      dvla::testing::check_algorithm<LeaveOneOut>(RlooKnobs{}, {.max_staleness = LeaveOneOut::max_staleness});
  for (const std::string& sentence : broken) std::printf("broken promise: %s\n", sentence.c_str());
  std::printf("check_algorithm: %zu broken promises\n", broken.size());
  if (!broken.empty()) return 1;

  train<Base>();
  train<WithLeaveOneOut>();
  dvla::Config<WithHalfLife> older;
  older.schedule.staleness = 2;
  train<WithHalfLife>(older);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
