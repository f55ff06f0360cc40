// Conformance suite for environments: does a machinery keep the promises of environment/concept.hpp? For your
// own environments too, in any test framework: the answer is a list of sentences, empty if all is well.
// Checks: extents and ranges, values written where they were asked for and nowhere else (other rows, and guard
// bytes around every field), finite numbers, rewards and flags after the end, counted transitions, same start
// same episode (on any row, after any past, with any number of threads, whatever the other rows do), disjoint
// rows from two threads, cases, a row that is asked for something impossible, experts that only look. Does not
// check that a task is sensible, nor speed.
//
// Legend: N rows of the batch, n rows of a call, C control steps a chunk, A action dimensions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/testing/findings.hpp"

namespace dvla::testing {

struct EnvironmentCheck {
  std::int64_t chunk = 3;            ///< C
  std::int64_t rows = 8;             ///< at most so many rows are used; the batch needs at least 2
  std::int64_t most_steps = 60;      ///< control steps played per episode, if the horizon is longer
  float largest_proprioception = 3;  ///< "about [-1, 1]", with room for random actions
  std::uint64_t seed = 1;
  bool experts = true;  ///< false: of those that only some of its tasks have
};

namespace detail {

/// What a step is given and what it writes.
struct Played : Outcome {
  Field<float> action;  ///< [N, C, A]
};

}  // namespace detail
}  // namespace dvla::testing

BOOST_HANA_ADAPT_STRUCT(dvla::testing::detail::Played, reward, terminated, truncated, next, action);

namespace dvla::testing {
namespace detail {

/// A record whose fields stand between guard bytes, filled so that an unwritten element is seen.
template <Record Type>
class Guarded {
 public:
  explicit Guarded(const Type& layout) : record_(layout) {
    for_each_field(record_, [&](const char*, auto& field) {
      using Element = typename std::remove_cvref_t<decltype(field)>::element_type;
      bytes_.emplace_back(2 * guard + field.bytes(), pattern);
      field.place(reinterpret_cast<Element*>(bytes_.back().data() + guard));
    });
  }
  Type& operator*() { return record_; }
  Type* operator->() { return &record_; }
  /// Every element that can hold a sign of not having been written holds it.
  void forget() {
    for_each_field(record_, [](const char*, auto& field) {
      using Element = typename std::remove_cvref_t<decltype(field)>::element_type;
      Element blank{};
      std::memset(&blank, 0xEE, sizeof blank);
      if constexpr (std::is_floating_point_v<Element>) blank = std::numeric_limits<Element>::quiet_NaN();
      std::ranges::fill(field.span(), blank);
    });
  }
  /// A field beside which something was written; empty: none.
  std::string overrun() const {
    std::string found;
    std::size_t i = 0;
    for_each_field(record_, [&](const char* name, const auto&) {
      const std::span<const std::uint8_t> all = bytes_[i++];
      for (const auto& bytes : {all.first(guard), all.last(guard)})
        if (std::ranges::any_of(bytes, [](std::uint8_t byte) { return byte != pattern; })) found = name;
    });
    return found;
  }

 private:
  static constexpr std::size_t guard = 64;
  static constexpr std::uint8_t pattern = 0xA5;
  Type record_;
  std::vector<std::vector<std::uint8_t>> bytes_;  ///< of each field
};

/// What one row showed in one play, byte for byte.
using RowRecord = std::vector<std::uint8_t>;

/// Of row i of a record with leading dimension N.
template <Record Type>
RowRecord row_of(const Type& record, std::int64_t i) {
  RowRecord bytes;
  for_each_field(record, [&](const char*, const auto& field) {
    const auto row = field.rows(i, 1);
    const auto* first = reinterpret_cast<const std::uint8_t*>(row.data());
    bytes.insert(bytes.end(), first, first + row.bytes());
  });
  return bytes;
}

template <EnvironmentMachinery Machinery>
class EnvironmentProbe {
 public:
  EnvironmentProbe(Machinery& environment, const EnvironmentCheck& check)
      : environment_(environment),
        check_(check),
        spec_(environment.action_spec()),
        actions_(spec_.dimensions),
        rows_(std::min<std::int64_t>(check.rows, environment.size())) {}

  std::vector<std::string> run() {
    if (!specs_hold()) return wrong_.sentences;
    Starts seeds;
    for (std::int64_t i = 0; i < rows_; ++i) seeds.push_back({mix_seed(check_.seed, i)});
    Arena one(1), two(2);

    const std::vector<RowRecord> plain = play(0, seeds, one, 7);
    same(plain, play(0, seeds, one, 7), "played twice from the same seeds and actions, row ");
    same(plain, play(0, seeds, two, 7), "with two threads instead of one, row ");
    play(0, Starts(seeds.rbegin(), seeds.rend()), one, 8);
    same(plain, play(0, seeds, one, 7), "after another episode on the same rows, row ");
    if (environment_.size() > rows_) {
      const std::int64_t last = environment_.size() - rows_;
      same(plain, play(last, seeds, one, 7), "on the last rows of the batch instead of the first, row ");
    }
    independent(seeds, plain, one);
    concurrent(seeds, plain);
    groups(one);
    resets(one);
    scattered(seeds, plain, one);
    if constexpr (HasCases<Machinery>)
      if (environment_.cases() > 0) cases(one);
    if constexpr (HasExpert<Machinery>)
      if (check_.experts) experts(seeds, one);
    return wrong_.sentences;
  }

 private:
  using Starts = std::vector<Start>;

  void fault(const std::string& sentence) { wrong_(false, sentence); }
  static std::string at(std::int64_t row, std::int64_t step) {
    return " (row " + std::to_string(row) + ", control step " + std::to_string(step) + ")";
  }

  bool specs_hold() {
    if (environment_.size() < 2) fault("size() is below 2; give the suite a batch of at least two rows");
    try {
      check_specs(environment_, "that is checked");
    } catch (const ConfigError& error) {
      fault(error.what());
    }
    return wrong_.sentences.empty();
  }

  Played layout(std::int64_t chunk) const {
    const std::int64_t N = environment_.size();
    Played all;
    all.reward = Field<float>({N, chunk});
    all.terminated = all.truncated = Field<std::uint8_t>({N, chunk});
    all.next = observation_layout(environment_.observation_spec(), {N});
    all.action = Field<float>({N, chunk, actions_});
    return all;
  }
  std::vector<std::int64_t> range(std::int64_t first, std::int64_t n) const {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
    std::iota(rows.begin(), rows.end(), first);
    return rows;
  }
  /// One call, about rows that must not fail in it.
  template <class Call>
  void with(const std::vector<std::int64_t>& rows, Arena& arena, Call call) {
    RowFailures failures(environment_.size());
    Rows of(rows, arena, failures);
    call(of);
    for (std::int64_t row = 0; row < environment_.size(); ++row)
      if (failures.has(row)) fault("row " + std::to_string(row) + " failed: " + failures.why(row));
  }
  void reset(const std::vector<std::int64_t>& rows, const Starts& starts, const Observation& next,
             Arena& arena) {
    with(rows, arena, [&](Rows& of) { environment_.reset(of, starts, next); });
  }

  void look(Guarded<Played>& all, const std::vector<std::int64_t>& rows, std::int64_t step) {
    const std::int64_t sentences =
        static_cast<std::int64_t>(environment_.observation_spec().instructions.size());
    if (const std::string field = all.overrun(); !field.empty())
      fault("bytes outside of the field " + field + " were written");
    for (std::int64_t i = 0; i < environment_.size(); ++i)
      if (!std::binary_search(rows.begin(), rows.end(), i) &&
          all->next.instruction[i] != static_cast<std::int32_t>(0xEEEEEEEE))
        fault("a row that was not asked for was written");
    for (const std::int64_t i : rows) {
      const std::int32_t instruction = all->next.instruction[i];
      if (instruction < 0 || instruction >= sentences)
        fault("the instruction was not written, or is no index into the table" + at(i, step));
      if (all->next.proprioception.absent()) continue;
      for (const float value : all->next.proprioception.at(i).span()) {
        if (!std::isfinite(value)) {
          fault("a proprioception value is not finite, or was not written" + at(i, step));
        } else if (std::abs(value) > check_.largest_proprioception) {
          fault("a proprioception value is " + dvla::detail::number_text(value) + ", far from [-1, 1]" +
                at(i, step));
        }
      }
    }
  }

  void draw(SplitMix64 random, const Field<float>& action) const {  // [C, A]
    for (std::int64_t i = 0; i < action.count(); ++i) {
      const int n = spec_.categories_of(i % actions_);
      const auto [low, high] = spec_.bounds_of(i % actions_);
      action[i] = n == 0 ? random.uniform(low, high)
                         : static_cast<float>(random.below(static_cast<std::uint64_t>(n)));
    }
  }

  /// One episode on rows [first, first + starts.size()); actions follow from `actions` and the place in the
  /// call.
  std::vector<RowRecord> play(std::int64_t first, const Starts& starts, Arena& arena, std::uint64_t actions) {
    return play(range(first, std::ssize(starts)), starts, arena, actions);
  }
  std::vector<RowRecord> play(const std::vector<std::int64_t>& rows, const Starts& starts, Arena& arena,
                              std::uint64_t actions) {
    const std::int64_t chunk = check_.chunk;
    Guarded<Played> all(layout(chunk));
    std::vector<RowRecord> records(rows.size()), before(rows.size());
    std::vector<std::uint8_t> over(rows.size(), 0);  // over: 1 terminated, 2 truncated

    all.forget();
    reset(rows, starts, all->next, arena);
    look(all, rows, 0);
    for (std::size_t u = 0; u < rows.size(); ++u) records[u] = before[u] = row_of(all->next, rows[u]);

    const std::int64_t horizon = environment_.horizon();
    const std::int64_t decisions = std::min(horizon, check_.most_steps) / chunk + 2;
    for (std::int64_t t = 0; t < decisions; ++t) {
      all.forget();
      for (std::size_t u = 0; u < rows.size(); ++u)
        draw(SplitMix64(mix_seed(actions, u, t)), all->action.at(rows[u]));
      const std::vector<float> given(all->action.span().begin(), all->action.span().end());
      std::int64_t made = 0;
      with(rows, arena, [&](Rows& of) { made = environment_.step(of, all->action, *all); });
      const std::int64_t step = t * chunk;
      look(all, rows, step + chunk);
      if (std::memcmp(given.data(), all->action.data(), all->action.bytes()) != 0)
        fault("step() changed the actions");
      std::int64_t alive = 0;
      for (std::size_t u = 0; u < rows.size(); ++u) {
        const std::int64_t i = rows[u];
        const bool was_over = over[u] != 0;
        for (std::int64_t c = 0; c < chunk; ++c) {
          const float gain = all->reward[i * chunk + c];
          const std::uint8_t ends = all->terminated[i * chunk + c], cut = all->truncated[i * chunk + c];
          const auto flag = static_cast<std::uint8_t>(ends + 2 * cut);
          alive += over[u] == 0;
          if (!std::isfinite(gain)) fault("a reward is not finite, or was not written" + at(i, step + c));
          if (ends > 1 || cut > 1)
            fault("terminated or truncated is neither 0 nor 1, or was not written" + at(i, step + c));
          if (ends == 1 && cut == 1) fault("an episode is both terminated and truncated" + at(i, step + c));
          if (over[u] != 0 && gain != 0) fault("a reward after the episode's end is not 0" + at(i, step + c));
          if (over[u] != 0 && flag != over[u])
            fault("terminated or truncated changed after the episode's end" + at(i, step + c));
          if (over[u] == 0) over[u] = flag;
          if (over[u] == 0 && step + c + 1 >= horizon)
            fault("an episode is neither terminated nor truncated at the horizon" + at(i, step + c));
        }
        if (environment_.succeeded(i) && over[u] != 1)
          fault("succeeded() is true but the episode is not terminated" + at(i, step));
        const RowRecord now = row_of(all->next, i), wrote = row_of<Outcome>(*all, i);
        if (was_over && now != before[u])
          fault("the observation changed after the episode's end" + at(i, step));
        before[u] = now;
        records[u].insert(records[u].end(), wrote.begin(), wrote.end());
        records[u].push_back(environment_.succeeded(i) ? 1 : 0);
      }
      if (made != alive) {
        fault("step() says it made " + std::to_string(made) + " transitions, terminated and truncated say " +
              std::to_string(alive));
      }
    }
    return records;
  }

  void same(const std::vector<RowRecord>& one, const std::vector<RowRecord>& other, const std::string& how) {
    for (std::size_t i = 0; i < one.size(); ++i) {
      if (one[i] != other[i]) return fault(how + std::to_string(i) + " shows a different episode");
    }
  }

  /// Row 0 with other episodes beside it.
  void independent(const Starts& starts, const std::vector<RowRecord>& plain, Arena& arena) {
    Starts others = starts;
    for (std::size_t i = 1; i < others.size(); ++i) others[i] = {mix_seed(check_.seed + 1, i)};
    if (play(0, others, arena, 7)[0] != plain[0]) fault("row 0's episode depends on what the other rows do");
  }
  /// Every other row of the batch, so that a call's rows are no range.
  void scattered(const Starts& starts, const std::vector<RowRecord>& plain, Arena& arena) {
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 1; row < environment_.size() && std::ssize(rows) < rows_; row += 2)
      rows.push_back(row);
    const Starts some(starts.begin(), starts.begin() + std::ssize(rows));
    same(play(rows, some, arena, 7), plain, "on every other row of the batch, row ");
  }

  /// The two halves of the rows from two threads at once.
  void concurrent(const Starts& starts, const std::vector<RowRecord>& plain) {
    const std::int64_t half = rows_ / 2;
    const Starts low(starts.begin(), starts.begin() + half);
    Arena arena_low(1), arena_high(1);
    EnvironmentProbe beside(environment_, check_);  // its own list of faults
    Beside other([&] { beside.play(half, low, arena_high, 7); });
    const std::vector<RowRecord> together = play(0, low, arena_low, 7);
    if (other.how() != "done") fault("rows stepped at the same time as others: " + other.how());
    for (const std::string& sentence : beside.wrong_.sentences)
      fault("rows stepped at the same time as others: " + sentence);
    same(together, std::vector<RowRecord>(plain.begin(), plain.begin() + half),
         "with other rows stepped at the same time, row ");
  }

  void groups(Arena& arena) {
    Guarded<Played> all(layout(1));
    reset(range(0, rows_), Starts(static_cast<std::size_t>(rows_), Start{check_.seed}), all->next, arena);
    for (std::int64_t i = 1; i < rows_; ++i) {
      if (row_of(all->next, i) != row_of(all->next, 0))
        return fault("rows reset from one seed (a group) do not show the same state");
    }
  }

  void resets(Arena& arena) {
    Guarded<Played> all(layout(1));
    std::vector<RowRecord> seen;
    std::vector<std::int32_t> sentences;
    for (std::uint64_t round = 0; round < 8; ++round) {
      Starts starts;
      for (std::int64_t i = 0; i < rows_; ++i) starts.push_back({mix_seed(check_.seed + 2, round, i)});
      reset(range(0, rows_), starts, all->next, arena);
      for (std::int64_t i = 0; i < rows_; ++i) {
        seen.push_back(row_of(all->next, i));
        sentences.push_back(all->next.instruction[i]);
      }
    }
    if (std::adjacent_find(seen.begin(), seen.end(), std::not_equal_to<>()) == seen.end()) {
      fault("every seed gives the same state: the seed is not used");
    }
    std::sort(sentences.begin(), sentences.end());
    if (environment_.observation_spec().instructions.size() > 1 && sentences.size() >= 16 &&
        sentences.front() == sentences.back()) {
      fault("the table has several instructions but " + std::to_string(sentences.size()) +
            " seeds gave only one of them");
    }
  }

  /// The first cases, whatever the seed beside them, and one that there is not.
  void cases(Arena& arena) {
    const std::int64_t count = environment_.cases(), asked = std::min(count, rows_);
    if (count < 1) return fault("cases() is below 1");
    Starts starts, again;
    for (std::int64_t i = 0; i < asked; ++i) {
      starts.push_back({.seed = 1, .case_index = i});
      again.push_back({.seed = 2, .case_index = i});
    }
    same(play(0, starts, arena, 7), play(0, again, arena, 7), "from the same case and another seed, row ");
    Guarded<Played> all(layout(1));
    RowFailures failures(environment_.size());
    const std::vector<std::int64_t> rows = range(0, 2);
    Rows of(rows, arena, failures);
    environment_.reset(of, Starts{{.seed = 1, .case_index = count}, {.seed = 1}}, all->next);
    if (!failures.has(0) || failures.has(1))
      fault("a case that there is not must fail the row that it was asked of, and no other");
  }

  void experts(const Starts& starts, Arena& arena) {
    Guarded<Played> all(layout(1));
    reset(range(0, rows_), starts, all->next, arena);
    std::vector<float> again(static_cast<std::size_t>(actions_));
    for (std::int64_t step = 0; step < std::min(environment_.horizon(), check_.most_steps); ++step) {
      all.forget();
      environment_.expert(0, all->action.at(0).span());
      environment_.expert(0, again);
      if (!all.overrun().empty()) fault("expert() wrote outside of the action");
      for (std::int64_t i = 0; i < actions_; ++i) {
        const int n = spec_.categories_of(i);
        const float value = all->action[i];
        const auto [low, high] = spec_.bounds_of(i);
        if (n == 0 ? !(value >= low && value <= high) : !(value >= 0 && value < static_cast<float>(n)))
          return fault("the expert's action is not within its bounds, or was not written" + at(0, step));
        if (value != again[static_cast<std::size_t>(i)])
          return fault("the expert says different things about the same state" + at(0, step));
      }
      with(range(0, 1), arena, [&](Rows& of) { environment_.step(of, all->action, *all); });
      if (all->terminated[0] + all->truncated[0] != 0) break;
    }
  }

  Machinery& environment_;
  EnvironmentCheck check_;
  ActionSpec spec_;
  std::int64_t actions_;
  std::int64_t rows_;
  Findings wrong_;
};

}  // namespace detail

/// Sentences about what `environment` does wrong; empty if it conforms. Throws what the environment throws.
/// Uses rows [0, check.rows) and the last ones; leaves them in the middle of episodes.
template <EnvironmentMachinery Machinery>
std::vector<std::string> check_environment(Machinery& environment, const EnvironmentCheck& check = {}) {
  return detail::EnvironmentProbe<Machinery>(environment, check).run();
}

}  // namespace dvla::testing
