// A machinery with one batch, its buffers in a pool or on the heap, and what failed in the last call.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <memory_resource>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/record.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace dvla_test {

template <class Machinery>
struct World {
  template <class Knobs>
  explicit World(Knobs knobs, std::int64_t chunk = 2, bool in_pool = true)
      : environment(std::move(knobs), pool),
        all(dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                                    {.decisions = 1, .episodes = environment.size(), .chunk = chunk}),
            in_pool ? static_cast<std::pmr::memory_resource&>(pool) : *std::pmr::new_delete_resource()),
        failures(environment.size()) {
    for (std::int64_t row = 0; row < environment.size(); ++row) everybody.push_back(row);
  }
  dvla::Observation seen() {
    return dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  }
  /// The i-th of them from `seed` + i.
  void reset(std::uint64_t seed = 100, std::vector<std::int64_t> rows = {}) {
    failures.clear();
    if (rows.empty()) rows = everybody;
    std::vector<dvla::Start> starts;
    for (std::size_t i = 0; i < rows.size(); ++i) starts.push_back({.seed = seed + i});
    dvla::Rows of(rows, arena, failures);
    environment.reset(of, starts, seen());
  }
  std::int64_t step(std::vector<std::int64_t> rows) {
    failures.clear();
    dvla::Rows of(rows, arena, failures);
    return environment.step(of, all->action.at(0),
                            {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen()});
  }
  std::vector<std::int64_t> failed() const {
    std::vector<std::int64_t> list;
    for (const std::int64_t row : everybody)
      if (failures.has(row)) list.push_back(row);
    return list;
  }

  dvla::EnvironmentPool pool{std::size_t{8} << 20};
  Machinery environment;
  dvla::OwnedRecord<dvla::Transition> all;
  dvla::Arena arena;
  dvla::RowFailures failures;
  std::vector<std::int64_t> everybody;
};

/// It cannot be made with these knobs, and says why.
template <class Machinery, class Knobs>
void refuses(const Knobs& knobs, const std::string& why) {
  CAPTURE(why);
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  CHECK_THROWS_WITH_AS(Machinery(knobs, pool), doctest::Contains(why.c_str()), dvla::ConfigError);
}

}  // namespace dvla_test
