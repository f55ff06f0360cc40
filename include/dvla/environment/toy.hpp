// Toy: an environment without physics for tests and benches. A row shows P numbers and an instruction, and
// wants the action whose elements are those numbers, negated for "go left": without the language half of the
// seeds fail, and one control step can solve it. Ends early both ways (solved, or far off), so masks are
// exercised; what it shows does not change in an episode. Not a model of anything; no cameras.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/environment/descriptors.hpp"

namespace dvla {

/// Target: element a is proprioception[a % P], times -1 for "go left". An action all of whose elements lie
/// within `tolerance` of it solves the task (reward 1); one with an element further than `far` from it
/// fails (reward 0). Proprioception is uniform in [-1, 1] from the seed. State lives in the pool;
/// reset, step and expert allocate nothing. Thread-safety as EnvironmentMachinery asks.
class ToyEnvironment {
 public:
  static constexpr float tolerance = 0.3F;
  static constexpr float far = 1.0F;

  /// `pool` must outlive this.
  ToyEnvironment(const ToyKnobs& knobs, std::pmr::memory_resource& pool)
      : knobs_(checked(knobs)),
        rows_(static_cast<std::size_t>(knobs.environments), &pool),
        shown_(static_cast<std::size_t>(knobs.environments) * static_cast<std::size_t>(knobs.proprioception),
               &pool) {
    spec_.proprioception = knobs.proprioception;
    spec_.instructions = {"go left", "go right"};
  }

  std::int64_t size() const { return knobs_.environments; }
  std::int64_t horizon() const { return knobs_.horizon; }
  const ObservationSpec& observation_spec() const { return spec_; }
  ActionSpec action_spec() const { return {knobs_.actions}; }
  bool succeeded(std::int64_t row) const { return rows_.at(static_cast<std::size_t>(row)).solved; }

  void reset(std::int64_t first, std::span<const std::uint64_t> seeds, const Observation& next,
             Arena& arena) {
    const auto count = static_cast<std::int64_t>(seeds.size());
    for_rows(first, count, arena, [&](std::int64_t i) {
      SplitMix64 random(seeds[static_cast<std::size_t>(i)]);
      row(first + i) = {.instruction = static_cast<std::int32_t>(random.below(2))};
      for (float& value : shown(first + i)) value = random.uniform(-1.0F, 1.0F);
      show(first + i, i, next);
    });
  }

  std::int64_t step(std::int64_t first, Field<float> action, Field<float> reward,
                    Field<std::uint8_t> terminated, Field<std::uint8_t> truncated, const Observation& next,
                    Arena& arena) {
    const std::int64_t count = action.extents()[0], chunk = action.extents()[1];
    std::atomic<std::int64_t> made{0};
    for_rows(first, count, arena, [&](std::int64_t i) {
      Row& state = row(first + i);
      const std::int32_t before = state.steps;
      for (std::int64_t c = 0; c < chunk; ++c) {
        const bool solved = !state.over && advance(first + i, action.at(i).at(c).span());
        reward[i * chunk + c] = solved ? 1.0F : 0.0F;
        terminated[i * chunk + c] = state.over && !state.cut ? 1 : 0;
        truncated[i * chunk + c] = state.cut ? 1 : 0;
      }
      made.fetch_add(state.steps - before, std::memory_order_relaxed);
      show(first + i, i, next);
    });
    return made.load();
  }

  /// The target itself.
  void expert(std::int64_t index, std::span<float> action) {
    for (std::size_t a = 0; a < action.size(); ++a) action[a] = target(index, a);
  }

 private:
  struct Row {
    std::int32_t instruction = 0;
    std::int32_t steps = 0;
    bool over = false;
    bool cut = false;  // over because of the horizon alone
    bool solved = false;
  };
  static constexpr std::int64_t block = 32;  // rows a task

  static const ToyKnobs& checked(const ToyKnobs& knobs) {
    if (knobs.environments < 1 || knobs.horizon < 1 || knobs.proprioception < 1 || knobs.actions < 1 ||
        knobs.step_cost_ns < 0) {
      throw ConfigError(
          "Toy: environments, horizon, proprioception and actions must be at least 1, step_cost_ns at least "
          "0");
    }
    return knobs;
  }
  Row& row(std::int64_t index) { return rows_[static_cast<std::size_t>(index)]; }
  std::span<float> shown(std::int64_t index) {
    const auto width = static_cast<std::size_t>(knobs_.proprioception);
    return {shown_.data() + static_cast<std::size_t>(index) * width, width};
  }
  float target(std::int64_t index, std::size_t a) {
    const std::span<float> numbers = shown(index);
    return (row(index).instruction == 0 ? -1.0F : 1.0F) * numbers[a % numbers.size()];
  }

  template <class Body>
  void for_rows(std::int64_t first, std::int64_t count, Arena& arena, const Body& body) {
    if (first < 0 || count < 0 || first + count > size()) {
      throw Error("Toy: rows [" + std::to_string(first) + ", " + std::to_string(first + count) +
                  ") of a batch of " + std::to_string(size()) + "; ask for rows that exist");
    }
    arena.for_each((count + block - 1) / block, [&](std::int64_t part) {
      for (std::int64_t i = part * block; i < std::min(count, (part + 1) * block); ++i) body(i);
    });
  }
  /// One control step of a row that is not over. True if it solved the task.
  bool advance(std::int64_t index, std::span<const float> action) {
    Row& state = row(index);
    float worst = 0;
    for (std::size_t a = 0; a < action.size(); ++a) {
      if (!std::isfinite(action[a])) {
        throw Error("Toy: the action of row " + std::to_string(index) + " at control step " +
                    std::to_string(state.steps) + " is not a finite number; did training diverge?");
      }
      worst = std::max(worst, std::abs(action[a] - target(index, a)));
    }
    if (knobs_.step_cost_ns > 0) work(std::chrono::nanoseconds(knobs_.step_cost_ns));
    state.solved = worst <= tolerance;
    state.over = state.solved || worst > far;
    state.cut = ++state.steps >= knobs_.horizon && !state.over;
    state.over = state.over || state.cut;
    return state.solved;
  }
  void show(std::int64_t index, std::int64_t i, const Observation& next) {
    const std::span<float> numbers = shown(index);
    std::copy(numbers.begin(), numbers.end(), next.proprioception.at(i).data());
    next.instruction[i] = row(index).instruction;
  }
  static void work(std::chrono::nanoseconds cost) {
    const auto end = std::chrono::steady_clock::now() + cost;
    while (std::chrono::steady_clock::now() < end) {
    }
  }

  ToyKnobs knobs_;
  ObservationSpec spec_;
  std::pmr::vector<Row> rows_;
  std::pmr::vector<float> shown_;
};

static_assert(EnvironmentMachinery<ToyEnvironment> && HasExpert<ToyEnvironment>);

template <class Pipeline>
struct machinery<Toy, Pipeline> {
  using type = ToyEnvironment;
};

}  // namespace dvla
