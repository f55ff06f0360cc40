// The sampling side of a pipeline: environments and a frozen copy of the policy, node-local. Fills one
// trajectory buffer per batch, a chunk at a time. Paper: rollout GPUs hold the parallel environments and a
// frozen copy of the policy; this sampling-inference loop is the unit that is replicated. Knows records, not
// the algorithm. One call at a time; weights may be installed from another thread meanwhile and are picked up
// at the next chunk boundary.
//
// Legend: N environments, B = rollout_epochs * N episodes of a batch, T decisions, C control steps a chunk,
// A action dimensions.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/core/arena.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/model/concept.hpp"

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
  RolloutCounts& operator+=(const RolloutCounts& more) {
    env_steps += more.env_steps;
    chunk_steps += more.chunk_steps;
    return *this;
  }
  friend RolloutCounts operator-(const RolloutCounts& all, const RolloutCounts& earlier) {
    return {all.env_steps - earlier.env_steps, all.chunk_steps - earlier.chunk_steps};
  }
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
};

template <EnvironmentMachinery Environment, ModelMachinery Model, class Trace>
class RolloutWorker {
 public:
  using Decision = typename Model::Decision;

  /// `front` and `back` are two copies of the policy with the same weights, or twice the same model, where
  /// nobody changes it during a rollout.
  RolloutWorker(Environment& environment, Model& front, Model& back, RolloutOptions options, Trace& trace)
      : environment_(environment),
        models_({&front, 0}, {&back, 0}),
        options_(options),
        arena_(std::in_place, options.threads),
        trace_(trace),
        seeds_(static_cast<std::size_t>(environment.size())) {
    if (options.chunk < 1 || environment.horizon() % options.chunk != 0)
      throw ConfigError("horizon " + std::to_string(environment.horizon()) + " is not a multiple of chunk " +
                        std::to_string(options.chunk) + ": choose a horizon of whole chunks");
    if (options.group < 1 || environment.size() % options.group != 0)
      throw ConfigError("environments " + std::to_string(environment.size()) +
                        " is not a multiple of group " + std::to_string(options.group) +
                        ": a group is that many consecutive environments");
  }

  BatchShape shape() const {
    return {environment_.horizon() / options_.chunk, environment_.size() * options_.rollout_epochs,
            options_.chunk};
  }
  /// Front: read by this worker. Back: filled by whoever installs weights (the reception lane).
  FrontBack<VersionedModel<Model>>& models() { return models_; }
  /// Cores of the lane from now on; between two rollouts.
  void use_threads(int threads) {
    if (threads != arena_->threads()) arena_.emplace(threads);
  }
  /// Of all batches that this worker has sampled.
  const RolloutCounts& counts() const { return counts_; }

  /// Fills both records with batch number `batch`. Returns the oldest weight version that decided in it.
  /// `boundaries` is told of each chunk boundary, as BoundaryStages says; weights may be installed inside its
  /// before().
  template <class Boundaries = no_boundaries>
  std::int64_t rollout(Transition& all, Decision& decisions, std::int64_t batch,
                       Boundaries&& boundaries = {}) {
    const auto [T, B, C] = shape();
    const std::int64_t N = environment_.size();
    std::int64_t oldest = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t first = 0; first < B; first += N) {
      for (std::int64_t row = 0; row < N; ++row) {
        const std::int64_t group = (in_whole(first) + row) / options_.group;
        all.group[first + row] = static_cast<std::int32_t>(group);
        all.seed[first + row] = seeds_[static_cast<std::size_t>(row)] =
            stream_seed(options_.seed, Stream::episode, batch, group);
      }
      {
        auto span = trace_.span("reset", batch);
        environment_.reset(0, seeds_, rows_at(all.observation, 0, first, N), *arena_);
      }
      play(all, decisions, batch, first, oldest, boundaries);
      for (std::int64_t row = 0; row < N; ++row)
        all.success[first + row] = environment_.succeeded(row) ? 1 : 0;
    }
    return oldest;
  }

  /// The first chunk of a pass of fresh episodes, sampled: for the self-test. `transition` is layout(1, C).
  void probe(Transition& transition, Decision& decision) {
    begin(transition, Stream::evaluation, 0);
    newest().act(now(transition), Decoding::sample,
                 stream_seed(options_.seed, Stream::action, std::int64_t{-1}), decision,
                 transition.action.at(0));
  }

  /// Success over `episodes` fresh episodes of `stream` with the newest installed weights. Throws Stopped at
  /// the next decision once `stop`, which may be null, asks.
  double evaluate(std::int64_t episodes, Decoding decoding, Stream stream = Stream::evaluation,
                  std::int64_t first_pass = 0, const stop_flag* stop = nullptr) {
    OwnedRecord<Transition> scratch(layout(1, C()), heap());
    OwnedRecord<Decision> decision(newest().decision_layout({environment_.size()}), heap());
    std::int64_t solved = 0;
    for (std::int64_t played = 0, pass = first_pass; played < episodes;
         ++pass, played += environment_.size()) {
      begin(*scratch, stream, pass);
      for (std::int64_t t = 0; t < shape().decisions; ++t) {
        throw_if_stopped(stop, "the evaluation");
        newest().act(now(*scratch), decoding, stream_seed(options_.seed, Stream::action, -1 - pass, t),
                     *decision, scratch->action.at(0));
        environment_.step(0, scratch->action.at(0), scratch->reward.at(0), scratch->terminated.at(0),
                          scratch->truncated.at(0), now(*scratch), *arena_);
      }
      const std::int64_t count = std::min(episodes - played, environment_.size());
      for (std::int64_t row = 0; row < count; ++row) solved += environment_.succeeded(row) ? 1 : 0;
    }
    return static_cast<double>(solved) / static_cast<double>(std::max<std::int64_t>(episodes, 1));
  }

  /// Plays one pass of fresh episodes and calls `on_step(control step)` at the start and after every control
  /// step: for pictures. The environment's rows can be rendered inside the call, and it may throw.
  template <class OnStep>
  void watch(Decoding decoding, OnStep on_step) {
    OwnedRecord<Transition> chunk(layout(1, C()), heap());
    OwnedRecord<Transition> single(layout(1, 1), heap());
    OwnedRecord<Decision> decision(newest().decision_layout({environment_.size()}), heap());
    begin(*single, Stream::evaluation, 0);
    on_step(std::int64_t{0});
    for (std::int64_t t = 0; t < shape().decisions; ++t) {
      newest().act(now(*single), decoding, stream_seed(options_.seed, Stream::action, std::int64_t{-1}, t),
                   *decision, chunk->action.at(0));
      for (std::int64_t c = 0; c < C(); ++c) {
        for (std::int64_t row = 0; row < environment_.size(); ++row)
          copy(chunk->action.at(0).at(row).at(c), single->action.at(0).at(row).at(0));
        environment_.step(0, single->action.at(0), single->reward.at(0), single->terminated.at(0),
                          single->truncated.at(0), now(*single), *arena_);
        on_step(t * C() + c + 1);
      }
    }
  }

  /// One pass of the scripted expert over all environments, pass number `pass`, with Gaussian noise of
  /// standard deviation `noise` on every executed action. `all` has T decisions of N episodes; how they
  /// ended says which rows count. Returns how many of the first `episodes` rows the noisy expert solved.
  /// Throws Stopped at the next decision once `stop`, which may be null, asks.
  std::int64_t demonstrate(Transition& all, std::int64_t episodes, std::int64_t pass, double noise,
                           const stop_flag* stop = nullptr) requires HasExpert<Environment> {
    OwnedRecord<Transition> single(layout(1, 1), heap());
    const std::int64_t N = environment_.size();
    for (std::int64_t row = 0; row < N; ++row)
      seeds_[static_cast<std::size_t>(row)] = stream_seed(options_.seed, Stream::demonstration, pass, row);
    environment_.reset(0, seeds_, rows_at(all.observation, 0, 0, N), *arena_);
    for (std::int64_t t = 0; t < shape().decisions; ++t) {
      throw_if_stopped(stop, "the warm start");
      for (std::int64_t c = 0; c < C(); ++c) {
        for (std::int64_t row = 0; row < N; ++row) {
          const Field<float> action = single->action.at(0).at(row).at(0);
          environment_.expert(row, action.span());
          SplitMix64 random(stream_seed(options_.seed, Stream::noise, pass, row, t * C() + c));
          for (float& value : action.span())
            value = std::clamp(value + static_cast<float>(noise * random.normal()), -1.0F, 1.0F);
          copy(action, all.action.at(t).at(row).at(c));
        }
        environment_.step(0, single->action.at(0), single->reward.at(0), single->terminated.at(0),
                          single->truncated.at(0), rows_at(all.observation, t + 1, 0, N), *arena_);
        for (std::int64_t row = 0; row < N; ++row) {
          all.reward.at(t).at(row)[c] = single->reward[row];
          all.terminated.at(t).at(row)[c] = single->terminated[row];
          all.truncated.at(t).at(row)[c] = single->truncated[row];
        }
      }
    }
    std::int64_t solved = 0;
    for (std::int64_t row = 0; row < episodes; ++row) solved += environment_.succeeded(row) ? 1 : 0;
    return solved;
  }

  /// Extents of a Transition with N episodes.
  Transition layout(std::int64_t decisions, std::int64_t chunk) const {
    return transition_layout(environment_.observation_spec(), environment_.action_spec(),
                             {decisions, environment_.size(), chunk});
  }

 private:
  static std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }
  static void copy(const Field<float>& from, const Field<float>& to) {
    std::copy(from.span().begin(), from.span().end(), to.data());
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
    return rows_at(scratch.observation, 0, 0, scratch.seed.count());
  }

  std::int64_t C() const { return options_.chunk; }
  /// Which episode of the whole batch this rollout's episode `first`, the first of a pass, is.
  std::int64_t in_whole(std::int64_t first) const {
    const std::int64_t here = environment_.size();
    return first / here * (options_.all_episodes > 0 ? options_.all_episodes : here) + options_.first_episode;
  }
  Model& newest() {
    models_.try_swap();
    return *models_.front().model;
  }

  void begin(const Transition& scratch, Stream stream, std::int64_t pass) {
    for (std::int64_t row = 0; row < environment_.size(); ++row)
      seeds_[static_cast<std::size_t>(row)] = stream_seed(options_.seed, stream, pass, row);
    environment_.reset(0, seeds_, now(scratch), *arena_);
  }

  /// The chunk loop over episodes [first, first + N) of the batch: stage i steps while stage i + 1 infers.
  template <class Boundaries>
  void play(Transition& all, Decision& decisions, std::int64_t batch, std::int64_t first,
            std::int64_t& oldest, Boundaries& boundaries) {
    const std::int64_t N = environment_.size();
    const std::int64_t stages = std::min<std::int64_t>(std::max(options_.stages, 1), N);
    const std::int64_t turns = shape().decisions * stages;
    const std::int64_t earlier = first / N * turns;  // chunk boundaries of the passes before
    auto stage_rows = [&](std::int64_t turn) {
      const std::int64_t stage = turn % stages;
      return std::pair{N * stage / stages, N * (stage + 1) / stages - N * stage / stages};
    };
    auto infer = [&](std::int64_t turn) {
      auto span = trace_.span("infer", batch);
      const std::int64_t t = turn / stages;
      const auto [row, count] = stage_rows(turn);
      // A chunk boundary: the newest installed weights decide from here on. A rollout's first decision waits
      // for weights that are being copied in just now: its admission counted on them.
      turn == 0 ? models_.swap_within(options_.deadline) : models_.try_swap();
      VersionedModel<Model>& frozen = models_.front();
      boundaries.decides(earlier + turn, frozen.version,
                         [&] { return weights_checksum(frozen.model->units()); });
      Decision decision = rows_at(decisions, t, first + row, count);
      frozen.model->act(rows_at(all.observation, t, first + row, count), Decoding::sample,
                        stream_seed(options_.seed, Stream::action, batch, t, in_whole(first) + row), decision,
                        rows_at(all.action, t, first + row, count));
      for (std::int64_t& version : rows_at(all.version, t, first + row, count).span())
        version = frozen.version;
      oldest = std::min(oldest, frozen.version);
    };
    auto step = [&](std::int64_t turn) {
      auto span = trace_.span("step", batch);
      const std::int64_t t = turn / stages;
      const auto [row, count] = stage_rows(turn);
      for (std::int64_t i = first + row; i < first + row + count; ++i)
        counts_.chunk_steps += t == 0 || !all.ended(t - 1, i);
      counts_.env_steps += environment_.step(
          row, rows_at(all.action, t, first + row, count), rows_at(all.reward, t, first + row, count),
          rows_at(all.terminated, t, first + row, count), rows_at(all.truncated, t, first + row, count),
          rows_at(all.observation, t + 1, first + row, count), *arena_);
    };
    boundaries.before(earlier);
    infer(0);
    for (std::int64_t turn = 0; turn < turns; ++turn) {
      if (turn + 1 < turns) boundaries.before(earlier + turn + 1);
      if (turn + 1 == turns) {
        step(turn);
      } else if (stages == 1) {
        step(turn);
        infer(turn + 1);
      } else {
        arena_->both([&] { step(turn); }, [&] { infer(turn + 1); });
      }
    }
  }

  Environment& environment_;
  FrontBack<VersionedModel<Model>> models_;
  RolloutOptions options_;
  std::optional<Arena> arena_;
  Trace& trace_;
  std::vector<std::uint64_t> seeds_;
  RolloutCounts counts_;
};

}  // namespace dvla
