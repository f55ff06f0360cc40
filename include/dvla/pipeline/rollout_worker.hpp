// The sampling side of a pipeline: environments and a frozen copy of the policy, node-local. Fills one
// trajectory buffer per batch, a chunk at a time. Paper: rollout GPUs hold the parallel environments and a
// frozen copy of the policy; this sampling-inference loop is the unit that is replicated. Knows records, not
// the algorithm. One call at a time; weights may be installed from another thread meanwhile and are picked up
// at the next chunk boundary. A row whose episode is over costs neither inference nor steps.
//
// Legend: N environments, B = rollout_epochs * N rows of a batch, T decisions, C control steps a chunk, S
// episodes that a row may have in a pass, A action dimensions.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/core/arena.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/environment/adapter.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/environment/step_watch.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/model/calls.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/final_values.hpp"
#include "dvla/pipeline/run_knobs.hpp"

namespace dvla {

/// A model to sample from and the version of the weights in it.
template <class Model>
struct VersionedModel {
  Model* model = nullptr;
  std::int64_t version = 0;
};

struct RolloutCounts {
  std::int64_t env_steps = 0;    ///< environment transitions really made
  std::int64_t chunk_steps = 0;  ///< decisions made for episodes that were still running
  std::int64_t failed_rows = 0;  ///< rows of a pass that failed; their own count, no rank sends it
  RolloutCounts& operator+=(const RolloutCounts& more) {
    env_steps += more.env_steps;
    chunk_steps += more.chunk_steps;
    failed_rows += more.failed_rows;
    return *this;
  }
  friend RolloutCounts operator-(const RolloutCounts& all, const RolloutCounts& earlier) {
    return {all.env_steps - earlier.env_steps, all.chunk_steps - earlier.chunk_steps,
            all.failed_rows - earlier.failed_rows};
  }
};

/// An episode of an evaluation.
struct EvaluatedEpisode {
  Start start;
  std::int32_t instruction = 0;          ///< its task, of ObservationSpec::instructions; -1: it did not begin
  bool success = false, failed = false;  ///< a row that failed has not solved it
};

inline double success_of(std::span<const EvaluatedEpisode> episodes) {
  const auto solved = std::ranges::count_if(episodes, [](const auto& each) { return each.success; });
  return static_cast<double>(solved) / static_cast<double>(std::max<std::size_t>(episodes.size(), 1));
}

/// Episodes `first` and following of a stream of fresh ones; the k-th is always the same.
inline std::vector<Start> fresh_starts(std::uint64_t seed, Stream stream, std::int64_t first,
                                       std::int64_t count) {
  std::vector<Start> starts;
  for (std::int64_t k = first; k < first + count; ++k)
    starts.push_back({.seed = stream_seed(seed, stream, k)});
  return starts;
}

/// Decisions in so many control steps, the last of which may be a shorter chunk.
constexpr std::int64_t decisions_in(std::int64_t steps, std::int64_t chunk) {
  return (steps + chunk - 1) / chunk;
}

/// More rows of a batch failed than run.failed_share allows: the trainer's weights are as its last update left
/// them.
class RowsFailed : public Error {
 public:
  using Error::Error;
};

struct RolloutOptions {
  std::uint64_t seed = 1;
  std::int64_t chunk = 4;           ///< C
  std::int64_t group = 8;           ///< consecutive episodes that share a reset state
  std::int64_t rollout_epochs = 1;  ///< passes of all environments that make one batch
  int threads = 1;                  ///< cores of the lane
  int stages = 1;                   ///< parts of the batch: one part steps while another infers
  /// Where several rollouts share a batch: this one's first episode in a pass of all, and how many those are
  /// (0: all of them are here). Seeds follow from places in the whole.
  std::int64_t first_episode = 0, all_episodes = 0;
  std::chrono::nanoseconds deadline =
      std::chrono::minutes(2);  ///< of waiting for weights that are being installed
  std::int64_t pass_steps = 0;  ///< control steps of a pass, rounded up to whole chunks; 0: the horizon
  /// S: a row is reset at the chunk boundary after an episode's end while it has had fewer in this pass.
  std::int64_t table = 1;
  FailureCosts failure_costs = FailureCosts::group;
  double failed_share = 0.5;        ///< of a batch's rows here; more, and more than one, end the run
  double reward_scale = 1;          ///< every reward is multiplied by it
  std::int64_t inference_rows = 0;  ///< of one call of the model, at most; 0: all of a stage
  /// Between the model's units and the environment's; empty: by the environment's bounds.
  std::optional<Adapter> adapter{};
};

template <EnvironmentMachinery Environment, ModelMachinery Model, class Trace>
class RolloutWorker {
 public:
  using Decision = typename Model::Decision;

  /// `front` and `back` are two copies of the policy with the same weights, or twice the same model, where
  /// nobody changes it during a rollout. `on_failure`, which may be empty, is told of each row that failed, in
  /// one sentence, from the thread that calls.
  RolloutWorker(Environment& environment, Model& front, Model& back, RolloutOptions options, Trace& trace,
                std::function<void(const std::string&)> on_failure = {})
      : environment_(environment),
        models_({&front, 0}, {&back, 0}),
        options_(std::move(options)),
        adapter_(options_.adapter ? *options_.adapter : Adapter::bounds(environment.action_spec())),
        arena_(std::in_place, options_.threads),
        trace_(trace),
        on_failure_(std::move(on_failure)),
        failures_(environment.size()),
        everybody_(static_cast<std::size_t>(environment.size())),
        rows_(static_cast<std::size_t>(environment.size())) {
    starts_.reserve(everybody_.size());
    if (C() < 1) throw ConfigError("a chunk of ", C(), " control steps");
    if (options_.group < 1 || environment.size() % options_.group != 0)
      throw ConfigError("environments ", environment.size(), " is not a multiple of group ", options_.group,
                        ": a group is that many consecutive environments");
    std::iota(everybody_.begin(), everybody_.end(), std::int64_t{0});
    if (adapter_.changes_actions()) taken_.resize(everybody_.size() * static_cast<std::size_t>(C() * A()));
  }

  BatchShape shape() const {
    const std::int64_t steps = options_.pass_steps > 0 ? options_.pass_steps : environment_.horizon();
    return {decisions_in(steps, C()), environment_.size() * options_.rollout_epochs, C(), options_.table,
            HasValues<Model>};
  }
  /// Front: read by this worker. Back: filled by whoever installs weights (the reception lane).
  FrontBack<VersionedModel<Model>>& models() { return models_; }
  /// Cores of the lane from now on; between two rollouts.
  void use_threads(int threads) {
    if (threads != arena_->threads()) arena_.emplace(threads);
  }
  /// From now on `on_hang` is told, once and from a thread of its own, when a call to the environment, or to the
  /// model, has not come back within `deadline`. Between two calls.
  void watch_steps(std::chrono::nanoseconds deadline, std::function<void(const std::string&)> on_hang) {
    step_watch_.emplace(
        failures_, environment_.size(), deadline,
        [this, on_hang = std::move(on_hang)](const std::string& what) {
          const std::int64_t batch = batch_.load(std::memory_order_relaxed);
          on_hang(what + (batch < 0 ? ""
                                    : ", in batch " + std::to_string(batch) + ", decision " +
                                          std::to_string(decision_.load(std::memory_order_relaxed))));
        });
  }
  /// Of all batches that this worker has sampled.
  const RolloutCounts& counts() const { return counts_; }

  /// Fills both records with batch number `batch`. Returns the oldest weight version that decided in it.
  /// `boundaries` is told of each chunk boundary, as BoundaryStages says; weights may be installed inside its
  /// before(). Throws RowsFailed where more rows failed than options allow, unless `stop`, which may be null, asks:
  /// what interrupts a run may interrupt its rows.
  template <class Boundaries = no_boundaries>
  std::int64_t rollout(Transition& all, Decision& decisions, std::int64_t batch, Boundaries&& boundaries = {},
                       const stop_flag* stop = nullptr) {
    const std::int64_t B = shape().episodes, N = environment_.size();
    std::int64_t oldest = std::numeric_limits<std::int64_t>::max(), failed = 0;
    std::string first_failure;
    for_each_field(all.episode, [](const char*, auto& field) { clear(field); });
    for (std::int64_t first = 0; first < B; first += N) {
      Pass pass{all, decisions, batch, first, oldest};
      for (std::int64_t row = 0; row < N; ++row) {
        all.group[first + row] = static_cast<std::int32_t>((in_whole(first) + row) / options_.group);
        rows_[static_cast<std::size_t>(row)] = {};
      }
      failures_.clear();
      batch_.store(batch, std::memory_order_relaxed);
      decision_.store(0, std::memory_order_relaxed);
      {
        auto span = trace_.span("reset", batch);
        begin_episodes(pass, everybody_, 0);
      }
      play(pass, boundaries);
      if constexpr (HasValues<Model>) note_final_values(pass);
      for (std::int64_t row = 0; row < N; ++row) {
        if (!failures_.has(row)) continue;
        const std::string what = failure_text(row, batch, pass);
        if (++failed == 1) first_failure = what;
        if (on_failure_) on_failure_(what);
        drop(all, first, row);
      }
    }
    batch_.store(-1, std::memory_order_relaxed);
    counts_.failed_rows += failed;
    if (failed > 1 && static_cast<double>(failed) > options_.failed_share * static_cast<double>(B) &&
        !(stop && stop->stop_requested()))
      throw RowsFailed(failed, " of the ", B, " rows of batch ", batch,
                       " failed, more than run.failed_share allows; the first: ", first_failure);
    return oldest;
  }

  /// The first chunk of a pass of fresh episodes, sampled: for the self-test. `transition` is layout(1, C).
  /// Returns the rows that have one: those that did not fail.
  std::vector<std::int64_t> probe(Transition& transition, Decision& decision) {
    const std::vector<std::int64_t> running =
        some(begin(transition, fresh_starts(options_.seed, Stream::evaluation, 0, environment_.size())));
    act(newest(), now(transition), running, Decoding::sample,
        stream_seed(options_.seed, Stream::action, std::int64_t{-1}), decision, transition.action.at(0));
    return running;
  }

  /// Plays these episodes, each once, with the newest installed weights, and returns what came of each. An
  /// episode that begins solved counts as solved. Throws Stopped at the next decision once `stop`, which may be
  /// null, asks. `before`: how many episodes of the same evaluation are not among these; sampled decisions
  /// follow from places in the whole.
  std::vector<EvaluatedEpisode> evaluate(std::span<const Start> episodes, Decoding decoding,
                                         const stop_flag* stop = nullptr, std::int64_t before = 0) {
    OwnedRecord<Transition> scratch(layout(1, C()), heap());
    OwnedRecord<Decision> decision(newest().decision_layout({environment_.size()}), heap());
    std::vector<EvaluatedEpisode> results;
    const char* const here = " in an evaluation";
    while (results.size() < episodes.size()) {
      const std::int64_t first = std::ssize(results);
      const auto starts = episodes.subspan(results.size())
                              .first(std::min(episodes.size() - results.size(), everybody_.size()));
      std::ranges::fill(now(*scratch).instruction.span(), -1);
      std::vector<std::int64_t> running = begin(*scratch, starts, here);
      for (const Start& start : starts) {
        const std::int32_t instruction = now(*scratch).instruction[std::ssize(results) - first];
        results.push_back({.start = start, .instruction = is_task(instruction) ? instruction : -1});
      }
      const auto result = [&](std::int64_t row) -> EvaluatedEpisode& {
        return results[static_cast<std::size_t>(first + row)];
      };
      const auto solved = [&](std::int64_t row) { return result(row).success = environment_.succeeded(row); };
      std::erase_if(running, solved);
      for (std::int64_t t = 0; t * C() < environment_.horizon() && !running.empty(); ++t) {
        throw_if_stopped(stop, "the evaluation");
        act(newest(), now(*scratch), running, decoding,
            stream_seed(options_.seed, Stream::action, -1 - before - first, t), *decision,
            scratch->action.at(0));
        step(running, *scratch, now(*scratch));
        leave_failed(running, here);
        std::erase_if(running, [&](std::int64_t row) {
          solved(row);
          return scratch->ended(0, row);
        });
      }
      for (std::int64_t row = 0; row < std::ssize(starts); ++row) result(row).failed = failures_.has(row);
    }
    return results;
  }
  /// Success over `episodes` fresh ones of `stream`; the k-th is always the same.
  double evaluate(std::int64_t episodes, Decoding decoding, Stream stream = Stream::evaluation,
                  std::int64_t first = 0, const stop_flag* stop = nullptr) {
    return success_of(evaluate(fresh_starts(options_.seed, stream, first, episodes), decoding, stop));
  }

  /// Plays one pass of fresh episodes and calls `on_step(control step)` at the start and after every control
  /// step: for pictures. The environment's rows can be rendered inside the call, and it may throw. A row that
  /// fails stays as it is.
  template <class OnStep>
  void watch(Decoding decoding, OnStep on_step) {
    OwnedRecord<Transition> chunk(layout(1, C()), heap());
    OwnedRecord<Transition> single(layout(1, 1), heap());
    OwnedRecord<Decision> decision(newest().decision_layout({environment_.size()}), heap());
    std::vector<std::int64_t> running =
        some(begin(*single, fresh_starts(options_.seed, Stream::evaluation, 0, environment_.size())));
    on_step(std::int64_t{0});
    for (std::int64_t t = 0; t * C() < environment_.horizon(); ++t) {
      act(newest(), now(*single), running, decoding,
          stream_seed(options_.seed, Stream::action, std::int64_t{-1}, t), *decision, chunk->action.at(0));
      for (std::int64_t c = 0; c < C() && t * C() + c < environment_.horizon(); ++c) {
        for (const std::int64_t row : running)
          copy(chunk->action.at(0).at(row).at(c), single->action.at(0).at(row).at(0));
        step(running, *single, now(*single));
        leave_failed(running);
        on_step(t * C() + c + 1);
      }
    }
  }

  /// The scripted expert's demonstrations number `first` and following, `count` of them in as many rows, at
  /// most N, with Gaussian noise of standard deviation `noise` on every executed action that is continuous.
  /// `all` has T decisions of N episodes; how they ended says which decisions count, and group -1 that nothing
  /// of a row does, which failed. Returns how many the noisy expert solved. Throws Stopped at the next decision
  /// once `stop`, which may be null, asks.
  std::int64_t demonstrate(Transition& all, std::int64_t first, std::int64_t count, double noise,
                           const stop_flag* stop = nullptr) requires HasExpert<Environment> {
    OwnedRecord<Transition> single(layout(1, 1), heap());
    const std::int64_t N = environment_.size();
    const ActionSpec spec = environment_.action_spec();
    const char* const here = " in the expert's demonstration";
    std::vector<std::int64_t> sound =
        begin(all, fresh_starts(options_.seed, Stream::demonstration, first, count), here);
    for (std::int64_t t = 0; t < all.action.extents()[0]; ++t) {
      throw_if_stopped(stop, "the warm start");
      for (std::int64_t c = 0; c < C(); ++c) {
        for (const std::int64_t row : sound) {
          const Field<float> action = single->action.at(0).at(row).at(0);
          environment_.expert(row, action.span());
          if (adapter_.changes_actions()) {
            const std::span<float> shown = std::span(taken_).first(action.span().size());
            std::copy(action.span().begin(), action.span().end(), shown.begin());
            adapter_.to_model(shown, action.span());
          }
          SplitMix64 random(
              stream_seed(options_.seed, Stream::noise, std::int64_t{0}, first + row, t * C() + c));
          for (std::int64_t a = 0; a < action.count(); ++a)
            if (spec.categories_of(a) == 0) {
              action[a] += static_cast<float>(noise * random.normal());
              if (adapter_.bounded()) action[a] = std::clamp(action[a], -1.0F, 1.0F);
            }
          copy(action, all.action.at(t).at(row).at(c));
        }
        step(sound, *single, rows_at(all.observation, t + 1, 0, N));
        leave_failed(sound, here);
        for (const std::int64_t row : sound) {
          all.reward.at(t).at(row)[c] = single->reward[row];
          all.terminated.at(t).at(row)[c] = single->terminated[row];
          all.truncated.at(t).at(row)[c] = single->truncated[row];
        }
      }
    }
    std::int64_t solved = 0;
    for (std::int64_t row = 0; row < count; ++row) {
      all.group[row] = failures_.has(row) ? -1 : 0;
      solved += !failures_.has(row) && environment_.succeeded(row) ? 1 : 0;
    }
    return solved;
  }

  /// Extents of a Transition with N rows.
  Transition layout(std::int64_t decisions, std::int64_t chunk) const {
    return transition_layout(environment_.observation_spec(), environment_.action_spec(),
                             {.decisions = decisions,
                              .episodes = environment_.size(),
                              .chunk = chunk,
                              .values = HasValues<Model>});
  }

 private:
  /// One pass of a batch: its rows are [first, first + N) of the records.
  struct Pass {
    Transition& all;
    Decision& decisions;
    const std::int64_t batch, first;
    std::int64_t& oldest;
  };
  /// A row in a pass.
  struct RowState {
    std::int64_t episodes = 0;   ///< that it has begun
    std::int64_t failed_in = 0;  ///< decision
    bool over = false;
  };

  static std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }
  static void copy(const Field<float>& from, const Field<float>& to) {
    std::copy(from.span().begin(), from.span().end(), to.data());
  }
  template <class Element>
  static void clear(const Field<Element>& field) {
    std::ranges::fill(field.span(), Element{});
  }
  template <class Type>
  static Type rows_at(const Type& record, std::int64_t t, std::int64_t first, std::int64_t count) {
    if constexpr (Record<Type>) {
      return cut_record(record, [&](auto field) { return field.at(t).rows(first, count); });
    } else {
      return record.at(t).rows(first, count);
    }
  }
  static Observation now(const Transition& scratch) {
    return rows_at(scratch.observation, 0, 0, scratch.group.count());
  }

  std::int64_t C() const { return options_.chunk; }
  std::int64_t A() const { return environment_.action_spec().dimensions; }
  /// Which row of the whole batch this rollout's row `first`, the first of a pass, is.
  std::int64_t in_whole(std::int64_t first) const {
    const std::int64_t here = environment_.size();
    return first / here * (options_.all_episodes > 0 ? options_.all_episodes : here) + options_.first_episode;
  }
  Model& newest() {
    models_.try_swap();
    return *models_.front().model;
  }

  void act(Model& model, const Observation& observation, std::span<const std::int64_t> rows,
           Decoding decoding, std::uint64_t seed, Decision& decision, const Field<float>& action) {
    const std::size_t most =
        options_.inference_rows > 0 ? static_cast<std::size_t>(options_.inference_rows) : rows.size();
    for (; !rows.empty(); rows = rows.subspan(std::min(most, rows.size()))) {
      const auto some = rows.first(std::min(most, rows.size()));
      ask("act", some.size(), observation,
          [&] { model.act(observation, some, decoding, seed, decision, action); });
    }
  }
  template <class Call>
  void ask(std::string_view function, std::size_t rows, const Observation& observation, Call call) {
    const StepWatch::Call watched(step_watch_ ? &*step_watch_ : nullptr, StepWatch::model);
    in_model<Model>(function, rows, observation, call);
  }

  // ---- The environment's calls, and what fails in them
  template <class Call>
  void guarded(std::span<const std::int64_t> rows, const Observation& next, Call call) {
    Rows of(rows, *arena_, failures_);
    const StepWatch::Call watched(step_watch_ ? &*step_watch_ : nullptr, StepWatch::environment);
    try {
      call(of);
    } catch (...) {
      const std::string why = detail::error_text(std::current_exception());
      for (const std::int64_t row : rows) failures_.add(row, why);
    }
    for (const std::int64_t row : rows) {
      if (failures_.has(row)) continue;
      if (!next.proprioception.absent() && !finite(next.proprioception.at(row).span()))
        failures_.add(row, "a number of its proprioception is not finite");
      else if (!is_task(next.instruction[row]))
        failures_.add(row, "its instruction is " + std::to_string(next.instruction[row]) + " of " +
                               std::to_string(environment_.observation_spec().instructions.size()));
      else if (adapter_.changes_proprioception())
        adapter_.proprioception(next.proprioception.at(row).span());
    }
  }
  bool is_task(std::int32_t instruction) const {
    return instruction >= 0 && instruction < std::ssize(environment_.observation_spec().instructions);
  }
  static bool finite(std::span<const float> values) {
    return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
  }
  void reset(std::span<const std::int64_t> rows, std::span<const Start> starts, const Observation& next) {
    guarded(rows, next, [&](Rows& of) { environment_.reset(of, starts, next); });
  }
  /// `actions` and what comes of them are [1, N, ...] or, with t and first, a part of a batch.
  std::int64_t step(std::span<const std::int64_t> rows, const Transition& all, const Observation& next,
                    std::int64_t t = 0, std::int64_t first = 0) {
    const std::int64_t N = environment_.size();
    const Outcome outcome{rows_at(all.reward, t, first, N), rows_at(all.terminated, t, first, N),
                          rows_at(all.truncated, t, first, N), next};
    std::int64_t made = 0;
    const Field<float> action = adapted(rows, rows_at(all.action, t, first, N));
    guarded(rows, next, [&](Rows& of) { made = environment_.step(of, action, outcome); });
    for (const std::int64_t row : rows) {
      const std::span<float> reward = outcome.reward.at(row).span();
      if (options_.reward_scale != 1)
        for (float& value : reward) value *= static_cast<float>(options_.reward_scale);
      if (!failures_.has(row) && !finite(reward)) failures_.add(row, "its reward is not finite");
    }
    return made;
  }
  /// These rows' actions, [N, C, A] of the model, as the environment takes them.
  Field<float> adapted(std::span<const std::int64_t> rows, const Field<float>& action) {
    if (!adapter_.changes_actions()) return action;
    const Field<float> taken(action.extents(), taken_.data());
    for (const std::int64_t row : rows)
      for (std::int64_t c = 0; c < action.extents()[1]; ++c)
        adapter_.to_environment(action.at(row).at(c).span(), taken.at(row).at(c).span());
    return taken;
  }
  std::string failure_text(std::int64_t row, std::int64_t batch, const Pass& pass) const {
    return detail::concat(
        "environment ", options_.first_episode + row, " failed in batch ", batch,
        shape().episodes > environment_.size() ? ", pass " + std::to_string(pass.first / environment_.size())
                                               : "",
        ", decision ", rows_[static_cast<std::size_t>(row)].failed_in, ": ", failures_.why(row),
        options_.failure_costs == FailureCosts::group && options_.group > 1
            ? "; its group is left out, and it is made anew"
            : "; it is left out, and made anew");
  }
  /// Takes a failed row, or its group, out of the batch, and leaves nothing of what it may have half written.
  void drop(Transition& all, std::int64_t first, std::int64_t row) const {
    const std::int64_t member = row % options_.group;
    for (std::int64_t i = row - member; i < row - member + options_.group; ++i)
      if (i == row || options_.failure_costs == FailureCosts::group) all.group[first + i] = -1;
    const auto clear_row = [&](const char*, const auto& field) {
      for (std::int64_t i = 0; i < field.extents()[0]; ++i) clear(field.at(i).rows(first + row, 1));
    };
    for (const auto& flags : {all.terminated, all.truncated}) clear_row("", flags);
    clear_row("", all.reward);
    for (const Observation& shown : {all.observation, all.episode.final_observation})
      for_each_field(shown, clear_row);
  }

  /// These episodes, in the first rows: those in which one has begun.
  std::vector<std::int64_t> begin(const Transition& scratch, std::span<const Start> starts,
                                  const char* where = "") {
    failures_.clear();
    std::vector<std::int64_t> running(everybody_.begin(), everybody_.begin() + std::ssize(starts));
    reset(running, starts, now(scratch));
    leave_failed(running, where);
    return running;
  }
  std::vector<std::int64_t> some(std::vector<std::int64_t> running) const {
    if (running.empty()) throw Error("no environment can be reset; the first: ", failures_.why(0));
    return running;
  }
  /// Takes those that failed out of `running`, and tells of them: outside of batches, where nothing counts.
  void leave_failed(std::vector<std::int64_t>& running, const char* where = "") const {
    std::erase_if(running, [&](std::int64_t row) {
      if (failures_.has(row) && on_failure_)
        on_failure_("environment " + std::to_string(row) + " failed" + where + ": " + failures_.why(row));
      return failures_.has(row);
    });
  }

  // ---- Episodes of a pass
  /// The next episode of each of these rows, seen in decision t. All members of a group begin theirs alike.
  void begin_episodes(const Pass& pass, std::span<const std::int64_t> rows, std::int64_t t) {
    starts_.clear();
    for (const std::int64_t row : rows) {
      const std::int64_t s = rows_[static_cast<std::size_t>(row)].episodes++;
      const std::int64_t group = (in_whole(pass.first) + row) / options_.group;
      starts_.push_back({.seed = s == 0 ? stream_seed(options_.seed, Stream::episode, pass.batch, group)
                                        : stream_seed(options_.seed, Stream::episode, pass.batch, group, s),
                         .training = true});
      pass.all.episode.seed.at(s)[pass.first + row] = starts_.back().seed;
    }
    reset(rows, starts_, rows_at(pass.all.observation, t, pass.first, environment_.size()));
    for (const std::int64_t row : rows)
      if (failures_.has(row)) fail(row, t);
  }
  void fail(std::int64_t row, std::int64_t t) {
    RowState& state = rows_[static_cast<std::size_t>(row)];
    if (!state.over) state.failed_in = t;
    state.over = true;
  }
  /// Notes the episodes that ended in decision t of these rows, which made it. Those to be reset are left in
  /// `again`.
  void note_ends(const Pass& pass, std::span<const std::int64_t> rows, std::int64_t t,
                 std::vector<std::int64_t>& again) {
    const bool last = t + 1 == shape().decisions;
    const EpisodeTable& table = pass.all.episode;
    again.clear();
    for (const std::int64_t row : rows) {
      if (failures_.has(row)) {
        fail(row, t);
        continue;
      }
      RowState& state = rows_[static_cast<std::size_t>(row)];
      const std::int64_t b = pass.first + row, s = state.episodes - 1;
      const Field<std::uint8_t> terminated = pass.all.terminated.at(t).at(b),
                                truncated = pass.all.truncated.at(t).at(b);
      if (last && !pass.all.ended(t, b)) truncated[C() - 1] = 1;  // the pass ends
      if (!pass.all.ended(t, b)) continue;
      std::int64_t c = 0;
      while ((terminated[c] | truncated[c]) == 0) ++c;
      table.decision.at(s)[b] = static_cast<std::int32_t>(t);
      table.step.at(s)[b] = static_cast<std::int32_t>(c);
      table.end.at(s)[b] =
          static_cast<std::uint8_t>(terminated[c] != 0 ? EpisodeEnd::terminated : EpisodeEnd::truncated);
      table.success.at(s)[b] = environment_.succeeded(row) ? 1 : 0;
      copy_observation(pass.all.observation, t + 1, b, table.final_observation, s);
      if (!last && state.episodes < options_.table)
        again.push_back(row);
      else
        state.over = true;
    }
  }
  /// What the weights that act now think of the observations which cut episodes off.
  void note_final_values(const Pass& pass) {
    const EpisodeTable& table = pass.all.episode;
    if (table.final_value.absent()) return;  // the batch is laid out without values
    finals_.clear();
    for (std::int64_t s = 0; s < table.size(); ++s)
      for (std::int64_t row = 0; row < environment_.size(); ++row)
        finals_.add(table, s * table.seed.extents()[1] + pass.first + row);
    const auto width =
        static_cast<std::size_t>(pass.decisions.value.count() / pass.decisions.log_prob.extents()[0] /
                                 pass.decisions.log_prob.extents()[1]);
    const std::size_t most =
        options_.inference_rows > 0 ? static_cast<std::size_t>(options_.inference_rows) : everybody_.size();
    const Observation seen = final_observations(pass.all);
    const auto call = [&](std::span<const std::int64_t> rows, std::span<float> values) {
      ask("values", rows.size(), seen, [&] { models_.front().model->values(seen, rows, values); });
    };
    for (std::size_t first = 0; first < finals_.size(); first += most)
      finals_.ask(first, most, width, call,
                  [&](std::int64_t entry, float value) { table.final_value[entry] = value; });
  }
  static void copy_observation(const Observation& from, std::int64_t t, std::int64_t b, const Observation& to,
                               std::int64_t s) {
    const auto copy_field = [&](const auto& source, const auto& target) {
      if (!target.absent())
        std::memcpy(target.at(s).rows(b, 1).data(), source.at(t).rows(b, 1).data(),
                    source.at(t).rows(b, 1).bytes());
    };
    for (std::size_t i = 0; i < from.frames.size(); ++i) copy_field(from.frames[i], to.frames[i]);
    copy_field(from.proprioception, to.proprioception);
    copy_field(from.instruction, to.instruction);
  }
  /// What a row that is over leaves in decision t: how its episode ended, and 0.
  static void leave_blank(const Pass& pass, std::int64_t row, std::int64_t t) {
    const std::int64_t b = pass.first + row;
    const auto blank = [&](const auto& record) {
      for_each_field(record, [&](const char*, const auto& field) { clear(field.at(t).rows(b, 1)); });
    };
    blank(pass.decisions);
    clear(pass.all.action.at(t).at(b));
    clear(pass.all.reward.at(t).at(b));
    for_each_field(pass.all.observation,
                   [&](const char*, const auto& field) { clear(field.at(t + 1).rows(b, 1)); });
    for (const auto& flags : {pass.all.terminated, pass.all.truncated}) {
      const std::int64_t last = flags.extents()[2] - 1;
      const std::uint8_t before = t > 0 ? flags.at(t - 1).at(b)[last] : 0;
      std::ranges::fill(flags.at(t).at(b).span(), before);
    }
  }

  /// The chunk loop of a pass: stage i steps while stage i + 1 infers.
  template <class Boundaries>
  void play(Pass& pass, Boundaries& boundaries) {
    Transition& all = pass.all;
    const std::int64_t batch = pass.batch, first = pass.first;
    const std::int64_t N = environment_.size();
    const std::int64_t stages = std::min<std::int64_t>(std::max(options_.stages, 1), N);
    const std::int64_t turns = shape().decisions * stages;
    const std::int64_t earlier = first / N * turns;  // chunk boundaries of the passes before
    if (lists_.empty()) {
      lists_.resize(static_cast<std::size_t>(stages));
      for (StageRows& each : lists_)
        for (std::vector<std::int64_t>* list : {&each.rows, &each.in_stage, &each.again})
          list->reserve(everybody_.size());
    }
    auto infer = [&](std::int64_t turn) {
      auto span = trace_.span("infer", batch);
      const std::int64_t t = turn / stages, stage = turn % stages;
      const std::int64_t row = N * stage / stages, count = N * (stage + 1) / stages - row;
      // A chunk boundary: the newest installed weights decide from here on. A rollout's first decision waits
      // for weights that are being copied in just now: its admission counted on them.
      turn == 0 ? models_.swap_within(options_.deadline) : models_.try_swap();
      VersionedModel<Model>& frozen = models_.front();
      boundaries.decides(earlier + turn, frozen.version,
                         [&] { return weights_checksum(frozen.model->units()); });
      StageRows& list = lists_[static_cast<std::size_t>(stage)];
      list.rows.clear();
      list.in_stage.clear();
      for (std::int64_t i = row; i < row + count; ++i) {
        all.version.at(t)[first + i] = frozen.version;
        if (rows_[static_cast<std::size_t>(i)].over) {
          leave_blank(pass, i, t);
          continue;
        }
        list.rows.push_back(i);
        list.in_stage.push_back(i - row);
      }
      if (turn == 0 || !list.rows.empty()) pass.oldest = std::min(pass.oldest, frozen.version);
      if (list.rows.empty()) return;
      Decision decision = rows_at(pass.decisions, t, first + row, count);
      act(*frozen.model, rows_at(all.observation, t, first + row, count), list.in_stage, Decoding::sample,
          stream_seed(options_.seed, Stream::action, batch, t, in_whole(first) + row), decision,
          rows_at(all.action, t, first + row, count));
    };
    auto step_stage = [&](std::int64_t turn) {
      auto span = trace_.span("step", batch);
      const std::int64_t t = turn / stages;
      decision_.store(t, std::memory_order_relaxed);
      StageRows& list = lists_[static_cast<std::size_t>(turn % stages)];
      if (list.rows.empty()) return;
      counts_.chunk_steps += std::ssize(list.rows);
      counts_.env_steps += step(list.rows, all, rows_at(all.observation, t + 1, first, N), t, first);
      note_ends(pass, list.rows, t, list.again);
      if (!list.again.empty()) begin_episodes(pass, list.again, t + 1);
    };
    boundaries.before(earlier);
    infer(0);
    for (std::int64_t turn = 0; turn < turns; ++turn) {
      if (turn + 1 < turns) boundaries.before(earlier + turn + 1);
      if (turn + 1 == turns) {
        step_stage(turn);
      } else if (stages == 1) {
        step_stage(turn);
        infer(turn + 1);
      } else {
        arena_->both([&] { step_stage(turn); }, [&] { infer(turn + 1); });
      }
    }
  }

  /// Of one stage, between its inference and its step.
  struct StageRows {
    std::vector<std::int64_t> rows, in_stage, again;  ///< of the batch; the same, of the stage; to be reset
  };

  Environment& environment_;
  FrontBack<VersionedModel<Model>> models_;
  RolloutOptions options_;
  const Adapter adapter_;
  std::vector<float> taken_;  ///< [N, C, A] the actions of a step, where the adapter changes them
  std::optional<Arena> arena_;
  Trace& trace_;
  std::function<void(const std::string&)> on_failure_;
  RowFailures failures_;
  std::vector<Start> starts_;  ///< of the reset that is being made
  std::vector<std::int64_t> everybody_;
  std::vector<RowState> rows_;
  std::vector<StageRows> lists_;
  FinalValues finals_;
  RolloutCounts counts_;
  std::atomic<std::int64_t> batch_{-1}, decision_{0};  ///< in a rollout, for the watch
  std::optional<StepWatch> step_watch_;
};

}  // namespace dvla
