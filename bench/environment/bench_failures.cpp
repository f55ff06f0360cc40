// dvla-bench: io smoke=waits,1,80
// What environments in Python that die, hang or raise cost the others. Two workers have half of the rows each, and a
// pass is what a sampler makes of them: one call that resets all rows, then calls that step all rows which have not
// failed, one control step each. What has failed is made anew by the next pass's reset. In every pass of a variant
// one worker, drawn from a seed, fails at a moment drawn from it; the *others* are the rows of the other worker, and
// of an exception, which costs one row, all but that row. Each of them makes one control step a call, so what they
// make in a second is calls a second, whatever becomes of the rest.
//
// Others' throughput, against the first quiet pass of the same round ("quiet again" says how far that is noise):
//   stepping  calls a second of the time in step calls: what a failure costs while a pass goes on. Where a step takes
//             a core (`busy`), who is left alone has more of them, so it may be above 1; where it waits (`waits`, as
//             for a GPU or another machine) nobody gains by a death.
//   whole     of all the time, the next reset with the dead worker's start in it: at one failure a pass
// `beside` is a death after which a second thread resets the lost rows at once, which the machinery allows, while the
// others are stepped on: what a start costs that nobody waits for.
//
//   build/release/bench/bench_environment_failures waits 9 1000      or busy; rounds, steps a pass
//   build/release/bench/bench_environment_failures maniskill PickCube-v1 8 60   task, rows, seconds: one death after a
//                                  third of them, made anew by the sampler's reset, and then the same made anew beside
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "bench/interleaved.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/environment/gymnasium.hpp"
#include "dvla/environment/maniskill.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace {
using Clock = std::chrono::steady_clock;
double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

/// A batch of two workers, and the calls that a sampler makes.
template <class Machinery>
struct World {
  template <class Knobs>
  World(const Knobs& knobs)
      : N(knobs.environments),
        environment(knobs, pool),
        all(dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                                    {.decisions = 1, .episodes = N, .chunk = 1}),
            pool),
        failures(N),
        lost(N) {}
  dvla::Observation seen() {
    return dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  }
  std::vector<std::int64_t> rows_of(int worker) const {
    std::vector<std::int64_t> rows;
    for (std::int64_t row = N * worker / 2; row < N * (worker + 1) / 2; ++row) rows.push_back(row);
    return rows;
  }
  /// Its time.
  double reset(const std::vector<std::int64_t>& rows, dvla::RowFailures& into, dvla::Arena& cores) {
    std::vector<dvla::Start> starts;
    for (std::size_t i = 0; i < rows.size(); ++i) starts.push_back({.seed = ++seed, .training = true});
    const auto begin = Clock::now();
    dvla::Rows of(rows, cores, into);
    environment.reset(of, starts, seen());
    return seconds(Clock::now() - begin);
  }
  double step(const std::vector<std::int64_t>& rows) {
    const auto begin = Clock::now();
    dvla::Rows of(rows, arena, failures);
    environment.step(of, all->action.at(0),
                     {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen()});
    return seconds(Clock::now() - begin);
  }
  /// Of `running`, those that the last call has failed.
  std::vector<std::int64_t> take_failed(std::vector<std::int64_t>& running) const {
    std::vector<std::int64_t> failed;
    std::erase_if(running, [&](std::int64_t row) {
      if (failures.has(row)) failed.push_back(row);
      return failures.has(row);
    });
    return failed;
  }
  void draw(dvla::SplitMix64& random, float share = 1) {
    const dvla::ActionSpec& takes = environment.action_spec();
    for (std::int64_t row = 0; row < N; ++row)
      for (std::int64_t a = 0; a < takes.dimensions; ++a) {
        const auto [low, high] = takes.bounds_of(a);
        all->action.at(0).at(row).at(0)[a] = random.uniform(share * low, share * high);
      }
  }

  std::int64_t N;
  dvla::EnvironmentPool pool{std::size_t{64} << 20};
  Machinery environment;
  dvla::OwnedRecord<dvla::Transition> all;
  dvla::Arena arena, other_arena;
  dvla::RowFailures failures, lost;
  std::atomic<std::uint64_t> seed = 0;
};

enum class Fault { none, death, beside, exception, hang };
struct Pass {
  double stepping = 0, whole = 0;  ///< control steps a second of each of the others
  double found = 0, worst = 0;     ///< seconds: the step call in which the failure showed, the slowest one
  double reset = 0;                ///< seconds: the reset behind it
};

constexpr double deadline = 0.5;  ///< worker_step_s

/// One pass and the reset behind it, as its `victim` fails in call `when`.
template <class Machinery>
Pass pass(World<Machinery>& world, Fault fault, int victim, std::int64_t when, std::int64_t steps,
          dvla::SplitMix64& random) {
  std::vector<std::int64_t> everybody;
  for (std::int64_t row = 0; row < world.N; ++row) everybody.push_back(row);
  const std::int64_t culprit = world.rows_of(victim).front();
  std::vector<std::int64_t> running = everybody, failed;
  Pass result;
  std::thread beside;
  std::atomic<bool> renewed = false;
  double stepping = 0;
  const auto begin = Clock::now();
  for (std::int64_t t = 0; t < steps; ++t) {
    world.draw(random, 0.8F);
    if (t == when) {
      if (fault == Fault::death || fault == Fault::beside)
        ::kill(world.environment.processes()[static_cast<std::size_t>(victim)], SIGKILL);
      if (fault == Fault::exception) world.all->action.at(0).at(culprit).at(0)[0] = 0.48F;
      if (fault == Fault::hang) world.all->action.at(0).at(culprit).at(0)[0] = -0.48F;
    }
    world.failures.clear();
    const double took = world.step(running);
    stepping += took;
    result.worst = std::max(result.worst, took);
    if (const auto now = world.take_failed(running); !now.empty()) {
      result.found = took;
      failed = now;
      if (fault == Fault::beside)
        beside = std::thread([&] {
          world.reset(failed, world.lost, world.other_arena);
          renewed = true;
        });
    }
    if (fault == Fault::beside && beside.joinable() && renewed) {
      beside.join();
      running = everybody;
    }
  }
  if (beside.joinable()) beside.join();
  if (failed.empty() == (fault != Fault::none)) throw dvla::Error("what failed is not what was to");
  world.failures.clear();
  result.reset = world.reset(everybody, world.failures, world.arena);
  for (const std::int64_t row : everybody)
    if (world.failures.has(row)) throw dvla::Error(world.failures.why(row));
  result.stepping = static_cast<double>(steps) / stepping;
  result.whole = static_cast<double>(steps) / seconds(Clock::now() - begin);
  return result;
}

/// The repository's folder, from the working folder up; empty: it is not there.
std::string root() {
  namespace fs = std::filesystem;
  for (fs::path at = fs::current_path(); at.has_relative_path(); at = at.parent_path())
    if (fs::exists(at / "test/environment/python_stub.py") && fs::exists(at / ".venv/bin/python"))
      return at.string() + "/";
  return "";
}

int stub(bool waits, int rounds, std::int64_t steps) {
  if (root().empty()) {
    std::puts("skipped: no .venv/bin/python here or above; scripts/setup makes it");
    return 77;
  }
  ::setenv("PYTHONPATH", (root() + "test/environment").c_str(), 1);
  dvla::GymnasiumKnobs knobs;
  knobs.environments = 8;
  knobs.workers = 2;
  knobs.python = root() + ".venv/bin/python";
  knobs.factory = "python_stub:Frail";
  if (waits) knobs.arguments = R"({"waits": true})";
  knobs.worker_step_s = deadline;
  World<dvla::GymnasiumEnvironment> world(knobs);
  std::vector<std::int64_t> everybody;
  for (std::int64_t row = 0; row < world.N; ++row) everybody.push_back(row);
  world.reset(everybody, world.failures, world.arena);
  const std::vector<std::pair<Fault, const char*>> kinds{{Fault::none, "quiet again"},
                                                         {Fault::death, "death"},
                                                         {Fault::beside, "death, made anew beside"},
                                                         {Fault::exception, "exception"},
                                                         {Fault::hang, "hang, deadline 500 ms"}};
  constexpr std::size_t columns = 5;
  std::vector<std::array<std::vector<double>, columns>> figures(kinds.size());
  std::vector<double> quiet_steps, quiet_resets;
  dvla::SplitMix64 random(7);
  for (int round = -1; round < rounds; ++round) {
    const int victim = static_cast<int>(random.below(2));
    const auto when = static_cast<std::int64_t>(static_cast<std::uint64_t>(steps / 8) +
                                                random.below(static_cast<std::uint64_t>(steps / 2)));
    const Pass quiet = pass(world, Fault::none, victim, when, steps, random);
    if (round >= 0) {
      quiet_steps.push_back(quiet.stepping);
      quiet_resets.push_back(1e3 * quiet.reset);
    }
    for (std::size_t k = 0; k < kinds.size(); ++k) {
      const Pass one = pass(world, kinds[k].first, victim, when, steps, random);
      if (round < 0) continue;
      const std::array<double, columns> row{one.stepping / quiet.stepping, one.whole / quiet.whole,
                                            1e3 * one.found, 1e3 * one.worst, 1e3 * one.reset};
      for (std::size_t i = 0; i < columns; ++i) figures[k][i].push_back(row[i]);
    }
  }
  const auto said = [](const std::vector<double>& all, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f [%.*f, %.*f]", digits, bench::median(all), digits,
                  bench::quantile(all, 0.25), digits, bench::quantile(all, 0.75));
    return std::string(text);
  };
  std::printf(
      "two workers of 4 rows, 0.5 ms %s a step; %d interleaved rounds, a failure a pass of %lld steps; "
      "quiet: "
      "%s calls/s, resets of %s ms\n%-24s  %-22s %-22s %-22s %-22s %s\n",
      waits ? "of waiting" : "of a core", rounds, static_cast<long long>(steps), said(quiet_steps, 0).c_str(),
      said(quiet_resets, 1).c_str(), "", "others' stepping", "whole", "ms: the step it showed",
      "the slowest step", "the reset behind");
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    std::printf("%-24s", kinds[k].second);
    for (std::size_t i = 0; i < columns; ++i)
      std::printf("  %-21s", said(figures[k][i], i < 2 ? 3 : 1).c_str());
    std::printf("\n");
  }
  return 0;
}

/// Steps all rows for so long, resets what ends, kills worker 1 once. Control steps a second of worker 0's rows in
/// windows of half a second, from the death.
void maniskill(const std::string& task, int rows, double span) {
  for (const bool beside : {false, true}) {
    dvla::ManiSkillKnobs knobs;
    knobs.environments = rows;
    knobs.workers = 2;
    knobs.task = task;
    knobs.fast_reset = true;
    World<dvla::ManiSkillEnvironment> world(knobs);
    std::vector<std::int64_t> everybody;
    for (std::int64_t row = 0; row < world.N; ++row) everybody.push_back(row);
    world.reset(everybody, world.failures, world.arena);
    for (int i = 0; i < 20; ++i) world.step(everybody);
    dvla::SplitMix64 random(7);
    const auto survivors = static_cast<std::int64_t>(world.rows_of(0).size());
    constexpr double window = 0.5;
    const double death = span / 3;
    std::vector<double> windows(static_cast<std::size_t>(span / window) + 1);
    std::vector<std::int64_t> running = everybody, lost;
    std::thread second;
    std::atomic<bool> renewed = false;
    double made_anew = 0, found = 0, back = 0;
    bool killed = false;
    const auto begin = Clock::now();
    const auto now = [&] { return seconds(Clock::now() - begin); };
    while (now() < span) {
      if (!killed && now() >= death) {
        ::kill(world.environment.processes()[1], SIGKILL);
        killed = true;
      }
      world.draw(random);
      world.failures.clear();
      const double from = now(), took = world.step(running);
      // Its steps count where they were made: a call longer than a window is spread over those it covers.
      const auto count = [&](double first, double last, double steps) {
        for (double at = first; at < last;) {
          const auto w = static_cast<std::size_t>(at / window);
          const double end = std::min(last, (static_cast<double>(w) + 1) * window);
          if (w < windows.size()) windows[w] += steps * (end - at) / (last - first);
          at = end > at ? end : last;
        }
      };
      count(from, from + took, static_cast<double>(survivors));
      if (const auto failed = world.take_failed(running); !failed.empty()) {
        found = took;
        lost = failed;
        if (beside)
          second = std::thread([&] {
            made_anew = world.reset(lost, world.lost, world.other_arena);
            renewed = true;
          });
      }
      if (renewed.exchange(false)) {
        second.join();
        back = now() - death;
        running = everybody;
        lost.clear();
      }
      std::vector<std::int64_t> over;
      for (const std::int64_t row : running)
        if (world.all->ended(0, row)) over.push_back(row);
      if (over.empty()) continue;
      // A pass ends where the survivors' episodes do: the sampler's reset then takes the lost rows along.
      const bool with_lost = !beside && !lost.empty();
      if (with_lost) {
        over = everybody;
        running = everybody;
        lost.clear();
      }
      world.failures.clear();
      const double took_reset = world.reset(over, world.failures, world.arena);
      if (with_lost) {
        made_anew = took_reset;
        back = now() - death;
      }
    }
    if (second.joinable()) second.join();
    std::vector<double> before, after, dip;
    std::string line;
    for (std::size_t w = 0; w + 1 < windows.size(); ++w) {
      const double rate = windows[w] / window, at = static_cast<double>(w) * window;
      if (at + window <= death && at >= 1) before.push_back(rate);
      if (at >= death && at < death + back) dip.push_back(rate);
      if (at >= death + back + window) after.push_back(rate);
      if (at + window > death - 3 && at < death + back + 3) {
        char text[32];
        std::snprintf(text, sizeof text, " %.1f:%.0f", at - death, rate);
        line += text;
      }
    }
    const auto said = [](const std::vector<double>& rates) {
      char text[64] = "no window";
      if (!rates.empty())
        std::snprintf(text, sizeof text, "%.0f [%.0f, %.0f]", bench::median(rates),
                      bench::quantile(rates, 0.25), bench::quantile(rates, 0.75));
      return std::string(text);
    };
    std::printf("%s, %d rows, two workers, one killed, made anew %s\n", task.c_str(), rows,
                beside ? "beside" : "by the sampler's reset");
    std::printf("  the survivors' %lld rows, steps/s: before %s, while it was gone %s, after %s\n",
                static_cast<long long>(survivors), said(before).c_str(), said(dip).c_str(),
                said(after).c_str());
    std::printf("  the step that found it %.0f ms, the reset that made it anew %.2f s, back after %.2f s\n",
                1e3 * found, made_anew, back);
    std::printf("  seconds from the death:steps/s %s\n", line.c_str());
    std::fflush(stdout);
  }
}
}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  try {
    bench::print_header(argc, argv);
    if (given.size() == 3 && (given[0] == "waits" || given[0] == "busy")) {
      return stub(given[0] == "waits", std::atoi(given[1].c_str()), std::atol(given[2].c_str()));
    } else if (given.size() == 4 && given[0] == "maniskill") {
      maniskill(given[1], std::atoi(given[2].c_str()), std::atof(given[3].c_str()));
    } else {
      std::puts("bench_environment_failures waits|busy ROUNDS STEPS | maniskill TASK ROWS SECONDS");
      return 1;
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
