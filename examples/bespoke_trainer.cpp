// dvla-example: smoke
// A bespoke trainer: the library's parts in a loop that is written by hand.
//
// Pipeline and Run are a convenience. Every part is an ordinary class that can be constructed and called
// alone, and a loop of one's own may do what no schedule does: here the learning rate follows the success of
// the last batch, batches that teach nothing are drawn again, and training stops when a target is reached.
// One thread, no lanes, no planes, no tokens: the worker's own copies of the weights are filled directly.
// Use this form for experiments; what it gives up is overlap, the staleness bound, deadlines and the trace.
#include <algorithm>
#include <cstdio>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/memory/environment_pool.hpp>
#include <dvla/memory/model_pool.hpp>
#include <dvla/pipeline/rollout_worker.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/linear_model.hpp>
#include <dvla/trace/off.hpp>
#include <memory>

using dvla::testing::LinearModel;
using Weights = dvla::UnshardedWeights<LinearModel>;
using Learner = dvla::GrpoTrainer<LinearModel, Weights, dvla::Uncorrected>;

int main() try {
  constexpr std::uint64_t seed = 1;
  constexpr std::int64_t chunk = 1, group = 8;
  constexpr double target = 0.95;

  // Memory first: what is placed in a pool must go before it.
  dvla::EnvironmentPool environment_pool(std::size_t{16} << 20);
  dvla::ModelPool model_pool(std::size_t{16} << 20);
  dvla::trace::Off trace;

  dvla::ToyEnvironment environment({.environments = 64, .horizon = 2}, environment_pool);
  const dvla::ModelInputs inputs{environment.observation_spec(), environment.action_spec(), chunk};
  const auto make_model = [&] {
    return std::make_unique<LinearModel>(dvla::testing::LinearKnobs{}, inputs, seed);
  };
  const auto model = make_model();
  Weights weights(*model, model_pool);  // AdamW's moments, beside the model's parameters

  // The sampling side: nothing trains during a rollout here, so it samples from the trainer's own model, and
  // only has to be told which version that is. Beside lanes it would have two copies, made by
  // LinearModel(*model, dvla::share_frozen) and filled by dvla::copy_weights.
  dvla::RolloutWorker worker(environment, *model, *model, {.seed = seed, .chunk = chunk, .group = group},
                             trace);
  const auto install = [&](std::int64_t version) {
    worker.models().fill([&](auto& served) { served.version = version; });
    worker.models().try_swap();
  };

  // One trajectory buffer, in the environment pool: the environment writes into it, the learner reads there.
  const dvla::BatchShape shape = worker.shape();
  dvla::OwnedRecord<dvla::Transition> transition(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(), shape),
      environment_pool);
  dvla::OwnedRecord<LinearModel::Decision> decision(model->decision_layout({shape.decisions, shape.episodes}),
                                                    environment_pool);

  double rate = 0.01;
  std::int64_t version = 0, drawn = 0, skipped = 0;
  const auto make_learner = [&](double learning_rate) {
    dvla::GrpoKnobs knobs;
    knobs.group = group;
    knobs.epochs = 1;
    knobs.global_batch = 0;
    knobs.learning_rate = learning_rate;
    return std::make_unique<Learner>(knobs, shape, environment.action_spec().dimensions, seed);
  };
  auto learner = make_learner(rate);
  install(version);
  while (version < 2000) {
    worker.rollout(*transition, *decision, drawn++);
    const auto solved = transition->episode.success.span();
    const double success =
        static_cast<double>(std::count(solved.begin(), solved.end(), 1)) / static_cast<double>(solved.size());
    if (success == 0 || success == 1) {  // every group is of one mind: no advantage, no gradient
      ++skipped;
      continue;
    }
    if (const double wanted = 0.05 * (1.0 - success) + 0.002; wanted < 0.8 * rate || wanted > 1.25 * rate)
      learner = make_learner(rate = wanted);
    const dvla::UpdateStats stats = learner->update(
        *model, weights, *transition, *decision, version, [] {}, trace);
    install(++version);
    if (version % 100 == 0) {
      const double fresh = worker.evaluate(512, dvla::Decoding::mode);
      std::printf(
          "version %4lld: success %.2f, on fresh seeds %.2f; learning rate %.3f, gradient norm %.2f\n",
          static_cast<long long>(version), stats.success_rate, fresh, rate, stats.gradient_norm);
      if (fresh >= target) break;
    }
  }
  std::printf("stopped at version %lld of at most 2000; %lld batches drawn, %lld of them taught nothing\n",
              static_cast<long long>(version), static_cast<long long>(drawn),
              static_cast<long long>(skipped));
  const auto pool = environment_pool.report();
  std::printf("environment pool: %.0f of %.0f KiB in use\n", static_cast<double>(pool.in_use) / 1024,
              static_cast<double>(pool.capacity) / 1024);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
