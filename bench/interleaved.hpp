// Ratios between variants on a machine whose speed drifts: the variants run in turn, round after round, and
// what is compared is each round's own ratio. Prints median, quartiles, the load of the machine and the
// command line. Figures in isolation are Google Benchmark's business; this is for "A against B".
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace bench {

/// Value at `share` (0 to 1) of the sorted values.
inline double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}
inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

/// The machine and the command, once per program.
inline void print_header(int argc, char** argv) {
  double load[3] = {};
  if (::getloadavg(load, 3) < 0) load[0] = load[1] = load[2] = -1;
  std::printf("# cores %u, load average %.2f %.2f %.2f, command:", std::thread::hardware_concurrency(),
              load[0], load[1], load[2]);
  for (int i = 0; i < argc; ++i) std::printf(" %s", argv[i]);
  std::printf("\n");
}

struct variant {
  std::string name;
  std::function<double()> run;  ///< runs once and returns its figure, of any unit (seconds, gain, ...)
};

/// Runs all variants `rounds` times in turn (after one round that is not counted); result[variant][round].
inline std::vector<std::vector<double>> interleave(const std::vector<variant>& variants, int rounds) {
  std::vector<std::vector<double>> figures(variants.size());
  for (int round = -1; round < rounds; ++round)
    for (std::size_t i = 0; i < variants.size(); ++i) {
      const double figure = variants[i].run();
      if (round >= 0) figures[i].push_back(figure);
    }
  return figures;
}

/// Interleaves, and prints each variant's figure (times `scale`, in `unit`) and its ratio to the first
/// variant's of the same round: median [lower quartile, upper quartile].
inline std::vector<std::vector<double>> compare(const std::string& title,
                                                const std::vector<variant>& variants, int rounds,
                                                double scale, const char* unit) {
  const auto figures = interleave(variants, rounds);
  std::printf("%s (%d interleaved rounds)\n", title.c_str(), rounds);
  for (std::size_t i = 0; i < variants.size(); ++i) {
    std::vector<double> ratios;
    for (std::size_t round = 0; round < figures[i].size(); ++round)
      ratios.push_back(figures[i][round] / figures[0][round]);
    std::printf("  %-44s %9.3f %-5s [%.3f, %.3f]   ratio %6.3f [%.3f, %.3f]\n", variants[i].name.c_str(),
                scale * median(figures[i]), unit, scale * quantile(figures[i], 0.25),
                scale * quantile(figures[i], 0.75), median(ratios), quantile(ratios, 0.25),
                quantile(ratios, 0.75));
  }
  return figures;
}

}  // namespace bench
