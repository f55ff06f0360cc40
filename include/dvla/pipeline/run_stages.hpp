// What the lanes of a run call, batch after batch: how a batch gets through this rank's parts, and who waits
// for whom on the way. Paper: the four lanes; docs/architecture.md has them as pseudocode. The threads are
// the schedule's (schedule/runner.hpp), the work is the parts' (rank_parts.hpp). Lives for one stretch of
// batches, in which roles and shares of the work stay as they are.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "dvla/core/denormals.hpp"
#include "dvla/core/error.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/credit.hpp"
#include "dvla/handoff/semaphore.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/pipeline/adaptation.hpp"
#include "dvla/pipeline/agreement.hpp"
#include "dvla/pipeline/history.hpp"
#include "dvla/pipeline/rank_parts.hpp"

namespace dvla {

/// One call of Run::train().
struct TrainCall {
  std::function<void(const Iteration&)> on_iteration;
  std::function<void(std::int64_t)> after_update;
  const stop_flag* stop = nullptr;  ///< asked from outside; may be null
  std::function<void(std::int64_t)> at_end{};
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();

  bool asked_to_stop() const { return stop && stop->stop_requested(); }
  double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

/// Cores of the lanes that compute.
struct LaneThreads {
  int sampling = 1, training = 1;
  int most() const { return std::max(sampling, training); }
};

/// Satisfies LaneStages and its optional forms (handoff/stages.hpp).
template <class P, class Trace>
class RunStages {
 public:
  using Parts = RankParts<P, Trace>;
  using Model = typename Parts::Model;
  using Control = typename Parts::Control;
  using Decision = typename Parts::Decision;

  /// `parts` are connected. All but `threads` must outlive this.
  RunStages(Parts& parts, History& history, const TrainCall& call, LaneThreads threads)
      : parts_(parts),
        job_(parts.job),
        history_(history),
        call_(call),
        threads_(threads),
        deadline_(parts.settings.deadline()),
        sampled_(static_cast<std::size_t>(parts.settings.staleness()) + 1) {}

  // ---- The lanes'
  void enter(lane_kind kind) noexcept {
    flush_denormals();
    if constexpr (ModelElsewhere<Model>) Model::enter_lane(kind);
    if (kind == lane_kind::sampling) Model::use_threads(threads_.sampling);
    if (kind == lane_kind::training) Model::use_threads(threads_.training);
    if (kind == lane_kind::every) Model::use_threads(threads_.most());
  }
  template <class Boundaries = no_boundaries>
  void sample(Token& token, Boundaries&& boundaries = {}) {
    Trajectory<Decision>& trajectory = parts_.data().produce(token);
    auto& worker = parts_.worker();
    const RolloutCounts before = worker.counts();
    {
      const Timed timed(sampling_);
      token.version =
          worker.rollout(trajectory.transition, trajectory.decision, token.batch, boundaries, call_.stop);
    }
    if (lost_.load(std::memory_order_acquire)) {
      ended_.acquire_for(deadline_);
      throw Error("sampling stops: the weights that it waited for could not be installed");
    }
    const RolloutCounts steps = worker.counts() - before;
    if constexpr (routed) {
      parts_.data().commit(token, {steps.env_steps, steps.chunk_steps});
      if (!job_.trains() && call_.asked_to_stop()) end();
    } else {
      live(token) = steps;
      parts_.data().commit(token);
      sampled_until_ = token.batch + 1;
    }
  }
  /// In a job the actors go on, or end, together; and the batch is as old as the oldest of their parts.
  bool arrive(Token& token) {
    bool more = true, here = true;
    if constexpr (routed) {
      more = parts_.data().arrive(token, call_.stop);
      here = more && parts_.data().arrival(token).episodes > 0;
    }
    if (job_.alone()) return more;
    const BatchWord own{!more || call_.asked_to_stop(), more ? token.batch - token.version : 0, here};
    const auto largest = [this](std::span<std::int64_t> values) { parts_.largest(values); };
    const auto asked = [this] { return call_.asked_to_stop(); };
    const auto anybody = [this] {
      if constexpr (routed)
        return parts_.data().anybody();
      else
        return true;
    };
    const BatchWord all =
        agree_on_batch(job_, token.batch, own, parts_.settings.inner_deadline(), largest, asked, anybody);
    if (all.ends) {
      if constexpr (routed)
        if (more) parts_.data().drop(token);
      end();
      return false;
    }
    token.version = token.batch - all.age;
    return true;
  }
  void train(Token& token) {
    const Timed timed(training_);
    const std::scoped_lock changing(parts_.changing());
    const Trajectory<Decision>& trajectory = parts_.data().consume(token);
    auto before_step = [&] {
      if (!packed_.acquire(deadline_, {"training", "the last weights to be taken",
                                       broadcasts ? "distribution" : "reception", token.batch}))
        throw Error("training stops: the last weights were not taken because another lane failed");
    };
    parts_.update_began = parts_.weights().steps();
    Iteration iteration;
    iteration.batch = token.batch;
    iteration.staleness = token.batch - token.version;
    iteration.update = parts_.update(trajectory, token.batch, before_step);
    const RolloutCounts steps = parts_.summed(steps_of(token));
    parts_.data().release(token);
    iteration.elapsed_s = call_.elapsed();
    history_.add(iteration, steps);
    parts_.update_began = -1;
    if (call_.after_update) call_.after_update(token.batch);
  }
  /// Between processes the weights are packed, and may change from then on. In one process they are where the
  /// reception lane copies them from, and may change once it has.
  void distribute(Token& token) {
    if constexpr (broadcasts) {
      auto span = parts_.trace.span("pack", token.batch);
      parts_.pack(token.version);
      packed_.release();
    } else {
      parts_.gather();
    }
    auto span = parts_.trace.span("publish", token.batch);
    parts_.control().publish(token.version);
  }
  /// Weights that another process makes are waited for outside of receive(), during which the sampler may
  /// not begin.
  void await(Token& token) requires(RankParts<P, Trace>::broadcasts) {
    if (weights_ended_.load(std::memory_order_relaxed)) return;
    try {
      parts_.control().await(token.batch + 1, deadline_);
    } catch (const typename Control::End&) {
      weights_ended_.store(true, std::memory_order_relaxed);
      ending_.request_stop();
    }
  }
  void receive(Token& token) {
    if (!weights_ended_.load(std::memory_order_relaxed)) parts_.receive(token.batch + 1, lost_);
    if constexpr (!broadcasts) packed_.release();
  }
  void observe(const Token& token) {
    if (call_.on_iteration) call_.on_iteration(history_.at(token.batch));
  }
  /// A lane failed: nobody will pack any more.
  void cancel() noexcept {
    packed_.cancel();
    ended_.cancel();
    parts_.tell_of_failure();
    parts_.cancel();
  }

  // ---- The run's, while no lane runs
  /// What ends the lanes: in a job the actors agree on it.
  const stop_flag* stop() const { return job_.alone() ? call_.stop : &ending_; }
  /// When the lanes have ended: whether this rank, a rollout, leaves the job by itself, which goes on.
  bool leaves() const { return !job_.trains() && call_.asked_to_stop() && !weights_ended_.load(); }
  /// The batch after the last that was sampled here.
  std::int64_t sampled_until() const { return sampled_until_; }
  /// What the lanes were at work, medians over their last batches; 0 for those of another rank.
  LaneTimes times() const {
    return {job_.rolls_out() ? sampling_.median() : 0, job_.trains() ? training_.median() : 0};
  }

 private:
  static constexpr bool routed = Parts::routed;
  static constexpr bool broadcasts = Parts::broadcasts;

  struct Timed {
    explicit Timed(LaneClock& of) : clock(of) {}
    ~Timed() { clock.add(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()); }
    LaneClock& clock;
    const std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  };

  void end() {
    if (call_.stop && call_.stop->signal() != 0)
      ending_.request_stop(call_.stop->signal());
    else
      ending_.request_stop();
  }
  RolloutCounts& live(const Token& token) {
    return sampled_[static_cast<std::size_t>(token.batch) % sampled_.size()];
  }
  RolloutCounts steps_of(const Token& token) {
    if constexpr (routed) {
      const auto arrived = parts_.data().arrival(token).counts;
      return {arrived.env_steps, arrived.chunk_steps};
    } else {
      return live(token);
    }
  }

  Parts& parts_;
  const Job& job_;
  History& history_;
  const TrainCall& call_;
  const LaneThreads threads_;
  const std::chrono::nanoseconds deadline_;
  stop_flag ending_;
  /// Of a live batch, one slot a trajectory buffer: passes from sampling to training with it.
  std::vector<RolloutCounts> sampled_;
  /// Held by the weights while nobody has copied them: an update reads them, but may not change them yet.
  credit<0> packed_{0};
  /// Weights could not be installed, so the sampler may have lost those that it was admitted with: it waits
  /// for the reception lane's own error, which is the one to report.
  std::atomic<bool> lost_{false};
  timed_semaphore ended_{0};
  std::int64_t sampled_until_ = 0;  ///< the sampling lane's
  LaneClock sampling_, training_;   ///< where shares of the work move
  /// A rollout of a job: no more weights will come, in peace.
  std::atomic<bool> weights_ended_{false};
};

}  // namespace dvla
