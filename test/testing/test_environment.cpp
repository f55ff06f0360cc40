// dvla-test: core
// The environment suite must find each way of breaking a promise: one small environment, broken by a switch.
#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "dvla/testing/environment.hpp"
#include "test/testing/found.hpp"

using namespace dvla;

namespace {

enum class Break {
  nothing,
  history,
  row,
  group,
  seed,
  guard,
  unwritten,
  not_finite,
  range,
  sticky,
  both,
  solved_cut,
  reward,
  moved,
  horizon,
  count,
  instruction,
  others,
  fails,
  expert
};

/// A point that drifts with the action; solved when it is beyond 0.9.
class Drift {
 public:
  explicit Drift(Break how) : how_(how), rows_(12) {
    spec_.proprioception = 2;
    spec_.instructions = {"go left", "go right"};
  }
  std::int64_t size() const { return 12; }
  std::int64_t horizon() const { return 7; }
  const ObservationSpec& observation_spec() const { return spec_; }
  ActionSpec action_spec() const { return {1}; }

  void reset(Rows& rows, std::span<const Start> starts, const Observation& next) {
    rows.for_each([&](std::int64_t index, std::int64_t i) {
      Row& row = rows_[static_cast<std::size_t>(index)];
      SplitMix64 random(how_ == Break::seed ? 0 : starts[static_cast<std::size_t>(i)].seed);
      const float before = row.place;
      row = {};
      row.place = random.uniform(-0.5f, 0.5f);
      row.instruction = static_cast<std::int32_t>(random.below(2));
      if (how_ == Break::history) row.place += 0.01f * before;
      if (how_ == Break::row) row.place += 0.01f * static_cast<float>(index);
      if (how_ == Break::group) row.place += 0.01f * static_cast<float>(i);
      if (how_ == Break::fails && index == 1) throw Error("it does not want to");
      write(row, next, index);
    });
  }

  std::int64_t step(Rows& rows, Field<float> action, const Outcome& outcome) {
    const std::int64_t chunk = action.extents()[1];
    std::vector<std::int64_t> made(12, 0);
    rows.for_each([&](std::int64_t i, std::int64_t) {
      Row& row = rows_[static_cast<std::size_t>(i)];
      if (how_ == Break::moved) row.place *= 0.99f;
      for (std::int64_t c = 0; c < chunk; ++c) {
        const bool over = row.ended;
        if (!over) {
          row.place += 0.3f * action[i * chunk + c];
          ++row.steps;
          ++made[static_cast<std::size_t>(i)];
          row.solved = row.place > 0.9f;
          row.ended = row.solved || row.steps >= (how_ == Break::horizon ? 9 : 7);
        }
        outcome.reward[i * chunk + c] = (over ? how_ == Break::reward : row.solved) ? 1.0f : 0.0f;
        const bool shown = row.ended && !(over && how_ == Break::sticky);
        const bool solved = row.solved && how_ != Break::solved_cut;
        outcome.terminated[i * chunk + c] = shown && (solved || how_ == Break::both) ? 1 : 0;
        outcome.truncated[i * chunk + c] = shown && !solved ? 1 : 0;
      }
      write(row, outcome.next, i);
    });
    std::int64_t all = how_ == Break::count ? 1 : 0;
    for (const std::int64_t one : made) all += one;
    if (how_ == Break::guard) outcome.next.proprioception.data()[12 * 2] = 0;
    if (how_ == Break::others)
      for (std::int64_t i = 0; i < 12; ++i) outcome.next.instruction[i] = 0;
    return all;
  }

  bool succeeded(std::int64_t row) const { return rows_[static_cast<std::size_t>(row)].solved; }
  void expert(std::int64_t, std::span<float> action) { action[0] = how_ == Break::expert ? 1.5f : 1.0f; }

 private:
  struct Row {
    float place = 0;
    std::int32_t instruction = 0;
    int steps = 0;
    bool ended = false, solved = false;
  };
  void write(const Row& row, const Observation& next, std::int64_t i) const {
    next.instruction[i] = how_ == Break::instruction ? 2 : row.instruction;
    if (how_ == Break::unwritten && row.steps > 0) return;
    next.proprioception[2 * i] =
        how_ == Break::not_finite ? std::numeric_limits<float>::infinity() : row.place;
    next.proprioception[2 * i + 1] = how_ == Break::range ? 100.0f : 0.0f;
  }

  Break how_;
  std::vector<Row> rows_;
  ObservationSpec spec_;
};

std::string said(Break how) {
  Drift environment(how);
  return lines(testing::check_environment(environment));
}

}  // namespace

TEST_CASE("an environment that keeps its promises gets no complaint") { CHECK(said(Break::nothing) == ""); }

TEST_CASE("each broken promise is found and named") {
  check_each_is_found<Break>(
      {
          {Break::history, "played twice from the same seeds"},
          {Break::row, "on the last rows of the batch"},
          {Break::group, "(a group) do not show the same state"},
          {Break::seed, "the seed is not used"},
          {Break::guard, "bytes outside of the field proprioception"},
          {Break::unwritten, "not finite, or was not written"},
          {Break::not_finite, "not finite, or was not written"},
          {Break::range, "far from [-1, 1]"},
          {Break::sticky, "terminated or truncated changed after"},
          {Break::both, "both terminated and truncated"},
          {Break::solved_cut, "succeeded() is true but the episode is not terminated"},
          {Break::reward, "a reward after the episode's end"},
          {Break::moved, "the observation changed after the episode's end"},
          {Break::horizon, "neither terminated nor truncated at the horizon"},
          {Break::count, "transitions, terminated and truncated say"},
          {Break::instruction, "no index into the table"},
          {Break::others, "a row that was not asked for was written"},
          {Break::fails, "row 1 failed: it does not want to"},
          {Break::expert, "the expert's action is not within its bounds"},
      },
      said);
}
