// Toy: an environment without physics for tests and benches. A row shows P numbers and an instruction, and
// wants the action whose elements are those numbers, negated for "go left": without the language half of the
// seeds fail, and one control step can solve it. Ends early both ways (solved, or far off), so masks are
// exercised; what it shows does not change in an episode. Its actions may be categories instead: then it wants
// the number's n-th of [-1, 1]. Not a model of anything; no cameras.
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
#include "dvla/environment/checked_knobs.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/environment/descriptors.hpp"

namespace dvla {

/// Target: element a is proprioception[a % P], times -1 for "go left". An action all of whose elements lie
/// within `tolerance` of it solves the task (reward 1); one with an element further than `far` from it
/// fails (reward 0). Of categories the right one is within, and one that is off by more than half of them far. Proprioception is uniform in [-1, 1] from the seed. State lives in the pool;
/// reset, step and expert allocate nothing. Thread-safety as EnvironmentMachinery asks.
class ToyEnvironment {
 public:
  static constexpr float tolerance = 0.3F;
  static constexpr float far = 1.0F;

  /// `pool` must outlive this.
  ToyEnvironment(const ToyKnobs& knobs, std::pmr::memory_resource& pool)
      : knobs_(detail::checked(knobs)),
        spec_(spec(knobs)),
        rows_(static_cast<std::size_t>(knobs.environments), &pool),
        shown_(static_cast<std::size_t>(knobs.environments) * static_cast<std::size_t>(knobs.proprioception),
               &pool) {}
  static EnvironmentSpec spec(const ToyKnobs& knobs) {
    EnvironmentSpec spec{{{}, knobs.proprioception, {"go left", "go right"}}, {knobs.actions}, knobs.horizon};
    if (knobs.categories > 0)
      spec.action.categories.assign(static_cast<std::size_t>(knobs.actions), knobs.categories);
    spec.cases = 1000;
    return spec;
  }

  std::int64_t size() const { return knobs_.environments; }
  std::int64_t horizon() const { return spec_.horizon; }
  const ObservationSpec& observation_spec() const { return spec_.observation; }
  ActionSpec action_spec() const { return spec_.action; }
  bool succeeded(std::int64_t row) const { return rows_.at(static_cast<std::size_t>(row)).solved; }

  /// As many as there are instructions by 500 initial states: case c is instruction c % 2.
  std::int64_t cases() const { return spec_.cases; }

  void reset(Rows& rows, std::span<const Start> starts, const Observation& next) {
    rows.check("Toy", size());
    rows.for_each(
        [&](std::int64_t index, std::int64_t i) {
          const Start& start = starts[static_cast<std::size_t>(i)];
          const bool listed = start.case_index >= 0;
          if (start.case_index >= cases())
            throw Error("Toy: there is no case " + std::to_string(start.case_index));
          SplitMix64 random(listed ? mix_seed(std::uint64_t{0}, start.case_index / 2) : start.seed);
          row(index) = {.instruction = static_cast<std::int32_t>(random.below(2))};
          if (listed) row(index).instruction = static_cast<std::int32_t>(start.case_index % 2);
          for (float& value : shown(index)) value = random.uniform(-1.0F, 1.0F);
          show(index, next);
        },
        block);
  }

  std::int64_t step(Rows& rows, Field<float> action, const Outcome& outcome) {
    const std::int64_t chunk = action.extents()[1];
    rows.check("Toy", size());
    std::atomic<std::int64_t> made{0};
    rows.for_each(
        [&](std::int64_t index, std::int64_t) {
          Row& state = row(index);
          const std::int32_t before = state.steps;
          for (std::int64_t c = 0; c < chunk; ++c) {
            const bool solved = !state.over && advance(index, action.at(index).at(c).span());
            outcome.reward.at(index)[c] = solved ? 1.0F : 0.0F;
            outcome.terminated.at(index)[c] = state.over && !state.cut ? 1 : 0;
            outcome.truncated.at(index)[c] = state.cut ? 1 : 0;
          }
          made.fetch_add(state.steps - before, std::memory_order_relaxed);
          show(index, outcome.next);
        },
        block);
    return made.load();
  }

  /// The target itself.
  void expert(std::int64_t index, std::span<float> action) {
    for (std::size_t a = 0; a < action.size(); ++a)
      action[a] = knobs_.categories > 0 ? category(target(index, a)) : target(index, a);
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

  Row& row(std::int64_t index) { return rows_[static_cast<std::size_t>(index)]; }
  std::span<float> shown(std::int64_t index) {
    const auto width = static_cast<std::size_t>(knobs_.proprioception);
    return {shown_.data() + static_cast<std::size_t>(index) * width, width};
  }
  /// The n-th of [-1, 1] in which a number lies.
  float category(float value) const {
    const auto n = static_cast<float>(knobs_.categories);
    return std::min(std::floor((value + 1) / 2 * n), n - 1);
  }
  float target(std::int64_t index, std::size_t a) {
    const std::span<float> numbers = shown(index);
    return (row(index).instruction == 0 ? -1.0F : 1.0F) * numbers[a % numbers.size()];
  }

  /// One control step of a row that is not over. True if it solved the task.
  bool advance(std::int64_t index, std::span<const float> action) {
    Row& state = row(index);
    float worst = 0;
    for (std::size_t a = 0; a < action.size(); ++a) {
      if (!std::isfinite(action[a])) {
        throw Error("its action at control step " + std::to_string(state.steps) +
                    " is not a finite number; did training diverge?");
      }
      worst = std::max(worst, knobs_.categories > 0 ? 2 * std::abs(action[a] - category(target(index, a))) /
                                                          static_cast<float>(knobs_.categories)
                                                    : std::abs(action[a] - target(index, a)));
    }
    if (knobs_.step_cost_ns > 0) work(std::chrono::nanoseconds(knobs_.step_cost_ns));
    state.solved = knobs_.categories > 0 ? worst == 0 : worst <= tolerance;
    state.over = state.solved || worst > far;
    state.cut = ++state.steps >= knobs_.horizon && !state.over;
    state.over = state.over || state.cut;
    return state.solved;
  }
  void show(std::int64_t index, const Observation& next) {
    const std::span<float> numbers = shown(index);
    std::copy(numbers.begin(), numbers.end(), next.proprioception.at(index).data());
    next.instruction[index] = row(index).instruction;
  }
  static void work(std::chrono::nanoseconds cost) {
    const auto end = std::chrono::steady_clock::now() + cost;
    while (std::chrono::steady_clock::now() < end) {
    }
  }

  ToyKnobs knobs_;
  EnvironmentSpec spec_;
  std::pmr::vector<Row> rows_;
  std::pmr::vector<float> shown_;
};

static_assert(EnvironmentMachinery<ToyEnvironment> && HasExpert<ToyEnvironment> && HasCases<ToyEnvironment> &&
              HasStaticSpec<ToyEnvironment, ToyKnobs>);

template <class Pipeline>
struct machinery<Toy, Pipeline> {
  using type = ToyEnvironment;
};

}  // namespace dvla
