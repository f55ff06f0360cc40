// Control steps a second of an environment under random actions, rows begun again where an episode ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/environment/concept.hpp"

namespace bench {

/// Of rows on so many threads (0: all cores), for so many seconds, a chunk of so many control steps a call; resets are not counted. Prints a
/// line. Throws what a row throws.
template <class Machinery>
void measure_steps(Machinery& environment, std::pmr::memory_resource& pool, int threads, double seconds,
                   int chunk = 1) {
  using Clock = std::chrono::steady_clock;
  const auto rows = static_cast<int>(environment.size());
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                              {.decisions = 1, .episodes = rows, .chunk = chunk}),
      pool);
  const auto seen = dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  const dvla::ActionSpec& takes = environment.action_spec();
  dvla::Arena arena(threads);
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
      for (std::int64_t c = 0; c < chunk; ++c)
        for (std::int64_t a = 0; a < takes.dimensions; ++a) {
          const auto [low, high] = takes.bounds_of(a);
          const int n = takes.categories_of(a);
          all->action.at(0).at(row).at(c)[a] =
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

}  // namespace bench
