// dvla-bench: torch mujoco io smoke=1,2,32
// Which staleness correction should be the default: GRPO on Push under K = 1 and K = 4 with plain clipping (its bound
// lifted, here only), decoupled clipping and GIPO; the same seeds for all, variants interleaved. Prints for each the area
// under the success curve (mean success of its batches) and the success on 512 fresh episodes at the end, seed by
// seed, and in how many seeds it is above the first. Writes <folder>/corrections_k<K>.svg with its numbers as .csv.
//   bench_algorithm_corrections [seeds = 5] [iterations = 80] [environments = 256] [folder = .] [width = 128] [K = 0: both]
#include <cstdio>
#include <cstdlib>
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
#include <dvla/sharding/unsharded.hpp>

namespace {

struct AnyLag : dvla::Uncorrected {
  static constexpr int max_staleness = 4;
};
template <class Correction>
using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>,
                         dvla::Trainer<dvla::BasicGRPO<Correction>>, dvla::Swimlane<4>>;

struct Sizes {
  int seeds = 5, iterations = 80, environments = 256, width = 128;
};
struct Outcome {
  std::vector<double> success;  ///< of each batch
  double area = 0, final = 0, lag = 0;
};

template <class Correction>
Outcome train(int staleness, int seed, const Sizes& sizes) {
  dvla::Config<P<Correction>> config;
  config.run.seed = seed;
  config.run.iterations = sizes.iterations;
  config.run.demonstrations = 64;
  config.run.demonstration_noise = 0.2;
  config.environment.environments = sizes.environments;
  config.model.width = sizes.width;
  config.schedule.staleness = staleness;
  config.algorithm.learning_rate = 6e-4;
  config.algorithm.beta2 = 0.999;
  config.algorithm.filter_lower = 0.01;
  config.algorithm.filter_upper = 0.99;
  dvla::Run<P<Correction>> run(config);
  run.warm_start();
  run.train();
  Outcome outcome;
  for (const dvla::Iteration& each : run.history()) {
    outcome.success.push_back(each.update.success_rate);
    outcome.area += each.update.success_rate / static_cast<double>(run.history().size());
    outcome.lag += static_cast<double>(each.staleness) / static_cast<double>(run.history().size());
  }
  outcome.final = run.evaluate(512);
  return outcome;
}

struct Variant {
  const char* name;
  Outcome (*train)(int, int, const Sizes&);
  std::vector<Outcome> outcomes;
};

void print(const std::vector<Variant>& variants, int staleness) {
  std::printf("K = %d\n", staleness);
  for (const Variant& variant : variants) {
    std::printf("  %-14s area ", variant.name);
    double lag = 0;
    int better_area = 0, better_final = 0;
    for (std::size_t i = 0; i < variant.outcomes.size(); ++i) {
      const Outcome& here = variant.outcomes[i];
      const Outcome& first = variants.front().outcomes[i];
      std::printf(" %.3f", here.area);
      lag += here.lag / static_cast<double>(variant.outcomes.size());
      better_area += here.area > first.area ? 1 : 0;
      better_final += here.final > first.final ? 1 : 0;
    }
    std::printf("   final ");
    for (const Outcome& here : variant.outcomes) std::printf(" %.3f", here.final);
    std::printf("   above %s in %d and %d of %zu; mean lag %.2f\n", variants.front().name, better_area,
                better_final, variant.outcomes.size(), lag);
  }
  std::fflush(stdout);
}

void draw(const std::vector<Variant>& variants, int staleness, const std::string& folder) {
  dvla::io::LineChart chart;
  chart.title = "GRPO on Push, K = " + std::to_string(staleness);
  chart.x_title = "iterations";
  chart.y_title = "success rate, mean of 10 batches";
  chart.y_range = {0.0, 1.0};
  for (const Variant& variant : variants) {
    dvla::io::PlotSeries series{variant.name, {}, {}, {}, {}};
    for (std::size_t i = 9; i < variant.outcomes.front().success.size(); ++i) {
      double mean = 0, low = 1, high = 0;
      for (const Outcome& outcome : variant.outcomes) {
        double success = 0;
        for (std::size_t j = i - 9; j <= i; ++j) success += outcome.success[j] / 10;
        mean += success / static_cast<double>(variant.outcomes.size());
        low = std::min(low, success);
        high = std::max(high, success);
      }
      series.x.push_back(static_cast<double>(i + 1));
      series.y.push_back(mean);
      series.low.push_back(low);
      series.high.push_back(high);
    }
    chart.series.push_back(series);
  }
  dvla::io::write_line_chart(folder + "/corrections_k" + std::to_string(staleness) + ".svg", chart);
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int at, int otherwise) { return argc > at ? std::atoi(argv[at]) : otherwise; };
  const Sizes sizes{number(1, 5), number(2, 80), number(3, 256), number(5, 128)};
  const std::string folder = argc > 4 ? argv[4] : ".";
  for (const int staleness : {1, 4}) {
    if (const int only = number(6, 0); only > 0 && only != staleness) continue;
    std::vector<Variant> variants{{"Uncorrected", train<AnyLag>, {}},
                                  {"DecoupledClip", train<dvla::DecoupledClip>, {}},
                                  {"GIPO", train<dvla::GIPO>, {}}};
    for (int seed = 1; seed <= sizes.seeds; ++seed)
      for (Variant& variant : variants) {
        variant.outcomes.push_back(variant.train(staleness, seed, sizes));
        std::fprintf(stderr, "K %d, seed %d, %s: area %.3f, final %.3f\n", staleness, seed, variant.name,
                     variant.outcomes.back().area, variant.outcomes.back().final);
      }
    print(variants, staleness);
    if (sizes.iterations > 10) draw(variants, staleness, folder);
  }
}
