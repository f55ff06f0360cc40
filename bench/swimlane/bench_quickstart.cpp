// dvla-bench: torch mujoco io smoke=1,2,32
// The quickstart's real work under three schedules, over seeds, interleaved: Synchronous (both cores in each
// phase), Swimlane K = 1 with plain clipping, Swimlane K = 1 with decoupled clipping. Prints wall time, the
// gain over Synchronous of the same seed, success on fresh episodes, and where the time went; writes the
// success curves against environment steps and against wall time, mean and range over seeds, as
// <folder>/success_by_steps.svg and success_by_time.svg (with their numbers as .csv). docs/numbers.md holds
// what was last measured.
//   bench_quickstart [seeds = 3] [iterations = 200] [environments = 256] [folder = .]
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/io/plot.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/sharding/unsharded.hpp>

#include "../interleaved.hpp"

namespace {

using Sampling = dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>;
using Plain = dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>;
using Corrected = dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>>;

struct Outcome {
  std::vector<dvla::Iteration> history;
  dvla::RunReport report;
  double before = 0, after = 0;
};

template <class P>
Outcome train(int seed, int iterations, int environments) {
  dvla::Config<P> config;
  config.run.seed = seed;
  config.run.iterations = iterations;
  config.run.demonstrations = 64;
  config.run.demonstration_noise = 0.2;
  config.environment.environments = environments;
  config.algorithm.learning_rate = 6e-4;
  config.algorithm.beta2 = 0.999;
  config.algorithm.filter_lower = 0.01;
  config.algorithm.filter_upper = 0.99;
  dvla::Run<P> run(config);
  run.warm_start();
  Outcome outcome;
  outcome.before = run.evaluate(512);
  outcome.report = run.train();
  outcome.after = run.evaluate(512);
  outcome.history = run.history();
  return outcome;
}

struct Variant {
  std::string name;
  Outcome (*train)(int, int, int);
  std::vector<Outcome> outcomes;
};

/// Mean and range over seeds of the success, averaged over ten batches, at each iteration's mean x.
template <class X>
dvla::io::PlotSeries curve(const Variant& variant, X x_of) {
  dvla::io::PlotSeries series{variant.name, {}, {}, {}, {}};
  const std::size_t iterations = variant.outcomes.front().history.size();
  for (std::size_t i = 9; i < iterations; ++i) {
    double x = 0, sum = 0, low = 1, high = 0;
    for (const Outcome& outcome : variant.outcomes) {
      double success = 0;
      for (std::size_t j = i - 9; j <= i; ++j) success += outcome.history[j].update.success_rate / 10;
      x += x_of(outcome.history[i]);
      sum += success;
      low = std::min(low, success);
      high = std::max(high, success);
    }
    const auto seeds = static_cast<double>(variant.outcomes.size());
    series.x.push_back(x / seeds);
    series.y.push_back(sum / seeds);
    series.low.push_back(low);
    series.high.push_back(high);
  }
  return series;
}

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::atoi(argv[index]) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argument(argc, argv, 1, 3), iterations = argument(argc, argv, 2, 200);
  const int environments = argument(argc, argv, 3, 256);
  const std::string folder = argc > 4 ? argv[4] : ".";
  bench::print_header(argc, argv);
  std::vector<Variant> variants{
      {"Synchronous (K = 0)", &train<dvla::Pipeline<Sampling, Plain, dvla::Schedule<dvla::Synchronous>>>, {}},
      {"Swimlane K = 1, plain clipping", &train<dvla::Pipeline<Sampling, Plain>>, {}},
      {"Swimlane K = 1, decoupled clipping", &train<dvla::Pipeline<Sampling, Corrected>>, {}}};
  std::printf("%-36s %4s %7s %6s %8s %8s %9s %9s %9s %8s %7s\n", "schedule", "seed", "wall_s", "gain",
              "before", "after", "rollout_s", "actor_s", "overlap_%", "bubble_%", "steps/s");
  for (int seed = 1; seed <= seeds; ++seed) {
    for (Variant& variant : variants) {
      const Outcome& outcome = variant.outcomes.emplace_back(variant.train(seed, iterations, environments));
      const double base = variants.front().outcomes.back().report.train_wall_s;
      const dvla::RunReport& report = outcome.report;
      std::printf("%-36s %4d %7.1f %6.2f %8.3f %8.3f %9.3f %9.3f %9.1f %8.1f %7.0f\n", variant.name.c_str(),
                  seed, report.train_wall_s, base / report.train_wall_s, outcome.before, outcome.after,
                  report.timing.rollout_time_s, report.timing.actor_time_s, report.timing.overlap,
                  report.timing.bubble, report.env_steps_per_s());
      std::fflush(stdout);
    }
  }
  for (const Variant& variant : variants) {
    std::vector<double> gains, success;
    for (std::size_t i = 0; i < variant.outcomes.size(); ++i) {
      gains.push_back(variants.front().outcomes[i].report.train_wall_s /
                      variant.outcomes[i].report.train_wall_s);
      success.push_back(variant.outcomes[i].after);
    }
    std::printf("%-36s median gain %.2f [%.2f, %.2f], median success %.3f [%.3f, %.3f]\n",
                variant.name.c_str(), bench::median(gains), bench::quantile(gains, 0),
                bench::quantile(gains, 1), bench::median(success), bench::quantile(success, 0),
                bench::quantile(success, 1));
  }
  if (iterations < 10) return 0;  // nothing to average
  const auto draw = [&](const char* file, const char* x_title, auto x_of) {
    dvla::io::LineChart chart;
    chart.title = "TinyVLA on MuJoCo Push: success while training, " + std::to_string(seeds) + " seeds";
    chart.x_title = x_title;
    chart.y_title = "success rate (mean of 10 batches; band: range over seeds)";
    chart.y_range = {0.0, 1.0};
    for (const Variant& variant : variants) chart.series.push_back(curve(variant, x_of));
    dvla::io::write_line_chart(folder + "/" + file, chart);
  };
  draw("success_by_steps.svg", "environment steps",
       [](const dvla::Iteration& i) { return static_cast<double>(i.counts.env_steps); });
  draw("success_by_time.svg", "seconds of training", [](const dvla::Iteration& i) { return i.elapsed_s; });
  return 0;
}
