// dvla-bench: smoke=1,12
// Adaptive against every fixed ratio, on simulated work (stages wait on the clock, as for a GPU, and take
// their time in inverse proportion to their workers): sampling that costs three times as much as training,
// and the other way round, each begun at the ratio that is wrong by most. Four ranks as threads whose roles
// move; then one process with four cores that move between its lanes. Printed: batches a second over the
// second half of a run, and over all of it, as a share of the best fixed ratio's in the same round. Aim: >=
// 0.95 in the second half.
//   bench_adaptive [rounds = 5] [batches = 80]
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/fsdp.hpp>
#include <dvla/testing/linear_model.hpp>
#include <dvla/testing/thread_cluster.hpp>

#include "../interleaved.hpp"

namespace {

constexpr int world = 4, episodes = 96;
/// Of a whole batch by one worker, in milliseconds; set before a run begins.
double sampling_ms = 0, training_ms = 0;

void take(double milliseconds) {
  std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(milliseconds));
}

struct Slow {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Slow";
};
struct SlowEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    take(sampling_ms * static_cast<double>(action.extents()[0]) / episodes / rows.arena().threads());
    return ToyEnvironment::step(rows, action, outcome);
  }
};

struct SlowModel : dvla::testing::LinearModel {
  using LinearModel::LinearModel;
  static inline thread_local int threads = 1;
  static void use_threads(int count) { threads = count; }
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    take(training_ms * static_cast<double>(rows.size()) / episodes / threads);
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }
};

}  // namespace

template <class Around>
struct dvla::machinery<Slow, Around> {
  using type = SlowEnvironment;
};

namespace {

using Moving = dvla::Pipeline<dvla::Sampler<Slow, SlowModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>, dvla::FSDP>,
                              dvla::Placement<dvla::Adaptive>>;
using Still = Moving::replace<dvla::Separated<>>;

template <class P>
dvla::Config<P> config_of(int batches) {
  dvla::Config<P> config;
  config.environment.environments = episodes;
  config.environment.horizon = 1;  // so that a batch is as many rows, whatever the policy does
  config.algorithm.group = 8;
  config.algorithm.global_batch = 0;
  config.algorithm.micro_batch = 8;
  config.algorithm.epochs = 1;
  config.memory.environment_pool_mib = config.memory.model_pool_mib = 4;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.iterations = batches;
  config.run.demonstrations = 0;
  if constexpr (requires { config.placement.look_every; }) config.placement.look_every = 5;
  return config;
}

/// Batches a second.
struct Speed {
  double second_half = 0, all = 0;
  std::string moves;
};
template <class Run>
Speed speed_of(const Run& run, const dvla::RunReport& report) {
  const auto& history = run.history();
  const std::size_t half = history.size() / 2;
  Speed speed;
  speed.second_half =
      static_cast<double>(history.size() - half) / (history.back().elapsed_s - history[half - 1].elapsed_s);
  speed.all = static_cast<double>(history.size()) / history.back().elapsed_s;
  for (const dvla::Look& look : report.looks)
    if (!(look.next == look.shares))
      speed.moves +=
          " " + to_text(look.next, run.job().alone()) + " from batch " + std::to_string(look.batch) + ";";
  return speed;
}

template <class P>
Speed job(const dvla::Config<P>& config) {
  const auto clusters = dvla::testing::ThreadCluster::make(world);
  Speed speed;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank)
    ranks.emplace_back([&, rank] {
      dvla::Run<P> run(config, *clusters[static_cast<std::size_t>(rank)]);
      const dvla::RunReport report = run.train();
      if (run.job().leads()) speed = speed_of(run, report);
    });
  for (std::thread& rank : ranks) rank.join();
  return speed;
}
/// One process, whose lanes have four cores together.
Speed process(const dvla::Config<Moving>& config) {
  dvla::Run<Moving> run(config);
  const dvla::RunReport report = run.train();
  return speed_of(run, report);
}

Speed fixed_ratio(bool lanes, int batches, int sampling) {
  if (!lanes) {
    auto config = config_of<Still>(batches);
    config.placement = {sampling == 2 ? 1 : sampling, sampling == 2 ? 1 : world - sampling};
    return job(config);
  }
  auto config = config_of<Moving>(batches);
  config.placement.look_every = 1000000;  // never looks
  config.schedule.sampling_threads = sampling;
  config.schedule.training_threads = world - sampling;
  return process(config);
}
Speed adaptive(bool lanes, int batches, int sampling) {
  auto config = config_of<Moving>(batches);
  if (lanes) {
    config.schedule.sampling_threads = sampling;
    config.schedule.training_threads = world - sampling;
    return process(config);
  }
  config.placement.rollouts = sampling;
  config.placement.actors = world - sampling;
  return job(config);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
  const int batches = argc > 2 ? std::max(4, std::atoi(argv[2])) : 80;
  bench::print_header(argc, argv);
  std::printf(
      "# %d batches; batches a second of the fixed ratios; of Adaptive as a share of the best of them in the "
      "same round; median [quartiles] of %d interleaved rounds\n",
      batches, rounds);
  for (const bool lanes : {false, true})
    for (const int start : {1, 3}) {
      const int right = world - start;
      sampling_ms = right == 3 ? 60 : 20;
      training_ms = right == 3 ? 20 : 60;
      std::vector<std::vector<double>> fixed(world - 1);
      std::vector<double> second_half, all;
      std::string moves;
      for (int round = -1; round < rounds; ++round) {
        Speed best;
        for (int sampling = 1; sampling < world; ++sampling) {
          const Speed speed = fixed_ratio(lanes, batches, sampling);
          if (round >= 0) fixed[static_cast<std::size_t>(sampling - 1)].push_back(speed.second_half);
          best.second_half = std::max(best.second_half, speed.second_half);
          best.all = std::max(best.all, speed.all);
        }
        const Speed speed = adaptive(lanes, batches, start);
        if (round < 0) continue;
        second_half.push_back(speed.second_half / best.second_half);
        all.push_back(speed.all / best.all);
        moves = speed.moves;
      }
      std::printf("%s, sampling %.0f ms and training %.0f ms a batch by one\n",
                  lanes ? "four cores of one process" : "four ranks", sampling_ms, training_ms);
      for (int sampling = 1; sampling < world; ++sampling) {
        const auto& speeds = fixed[static_cast<std::size_t>(sampling - 1)];
        std::printf("  fixed %d:%d     %7.2f batches/s [%.2f, %.2f]\n", sampling, world - sampling,
                    bench::median(speeds), bench::quantile(speeds, 0.25), bench::quantile(speeds, 0.75));
      }
      std::printf(
          "  Adaptive from %d:%d: second half %.3f [%.3f, %.3f] of the best, all %.3f [%.3f, %.3f]; last "
          "round:%s\n",
          start, right, bench::median(second_half), bench::quantile(second_half, 0.25),
          bench::quantile(second_half, 0.75), bench::median(all), bench::quantile(all, 0.25),
          bench::quantile(all, 0.75), moves.c_str());
      std::fflush(stdout);
    }
}
