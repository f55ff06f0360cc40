// dvla-bench: io smoke=toy
// Control steps a second of environments in Python through the bridge, random actions, rows begun again where an
// episode ends. bench/environment/python_peers.py runs it in turn with Python's own loops and says the ratios.
//
//   bench_environment_python gymnasium HalfCheetah-v5 8 2 3      kind, name, rows, workers (0: embedded), seconds
//   bench_environment_python maniskill PushCube-v1 8 2 3 pd_joint_delta_pos
//   bench_environment_python message 12000 1 1 3                 a stub: numbers of an observation instead of a name
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/environment/gymnasium.hpp"
#include "dvla/environment/maniskill.hpp"
#include "dvla/environment/python/embedded.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace {
using Clock = std::chrono::steady_clock;

template <class Machinery, class Knobs>
void measure(Knobs knobs, int rows, int workers, double seconds) {
  knobs.environments = rows;
  knobs.workers = workers;
  knobs.embedded = workers == 0;
  dvla::EnvironmentPool pool(std::size_t{64} << 20);
  Machinery environment(knobs, pool);
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                              {.decisions = 1, .episodes = rows, .chunk = 1}),
      pool);
  const auto seen = dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  const dvla::ActionSpec& takes = environment.action_spec();
  dvla::Arena arena;
  dvla::RowFailures failures(rows);
  std::uint64_t seed = 0;
  const auto reset = [&](const std::vector<std::int64_t>& which) {
    std::vector<dvla::Start> starts;
    for (std::size_t i = 0; i < which.size(); ++i) starts.push_back({.seed = ++seed, .training = true});
    dvla::Rows of(which, arena, failures);
    environment.reset(of, starts, seen);
  };
  std::vector<std::int64_t> everybody, over;
  for (std::int64_t row = 0; row < rows; ++row) everybody.push_back(row);
  reset(everybody);
  dvla::SplitMix64 random(1);
  std::int64_t steps = 0, calls = 0;
  Clock::duration stepping{};
  for (const auto end = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < end;) {
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t a = 0; a < takes.dimensions; ++a) {
        const auto [low, high] = takes.bounds_of(a);
        const int n = takes.categories_of(a);
        all->action.at(0).at(row).at(0)[a] =
            n > 0 ? static_cast<float>(random.below(static_cast<std::uint64_t>(n)))
                  : random.uniform(low, high);
      }
    dvla::Rows of(everybody, arena, failures);
    const auto begin = Clock::now();
    steps += environment.step(of, all->action.at(0),
                              {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen});
    stepping += Clock::now() - begin;
    ++calls;
    over.clear();
    for (const std::int64_t row : everybody) {
      if (failures.has(row)) throw dvla::Error(failures.why(row));
      if (all->ended(0, row)) over.push_back(row);
    }
    if (!over.empty()) reset(over);
  }
  const double spent = std::chrono::duration<double>(stepping).count();
  std::printf("%.1f steps_per_s %.2f us_per_call\n", static_cast<double>(steps) / spent,
              1e6 * spent / static_cast<double>(calls));
}
}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  try {
    if (given.size() < 5) {
      std::puts(
          "bench_environment_python gymnasium|maniskill|message NAME ROWS WORKERS SECONDS [CONTROL_MODE]");
      return given.size() == 1 && given[0] == "toy" ? 0 : 1;
    }
    const int rows = std::atoi(given[2].c_str()), workers = std::atoi(given[3].c_str());
    const double seconds = std::atof(given[4].c_str());
    if (given[0] == "maniskill") {
      dvla::ManiSkillKnobs knobs;
      knobs.task = given[1];
      knobs.fast_reset = true;
      if (given.size() > 5) knobs.control_mode = given[5];
      measure<dvla::ManiSkillEnvironment>(knobs, rows, workers, seconds);
    } else {
      dvla::GymnasiumKnobs knobs;
      if (given[0] == "message") {
        knobs.factory = "python_stub:Wide";
        knobs.arguments = "{\"width\": " + given[1] + "}";
        knobs.python = ".venv/bin/python";
      } else {
        knobs.id = given[1];
      }
      measure<dvla::GymnasiumEnvironment>(knobs, rows, workers, seconds);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
