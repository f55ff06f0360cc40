// A pipeline at work: the nine policies' machinery put together and driven through the four lanes.
// Paper: the D-VLA system; docs/architecture.md has the four lanes as pseudocode with the class that owns
// each line. Reads and writes no files, prints nothing: see experiment.hpp for a run with a folder, pictures
// and a progress bar, and checkpoint.hpp for saving and resuming.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "dvla/algorithm/update_stats.hpp"
#include "dvla/control_plane/in_process.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/handoff/credit.hpp"
#include "dvla/handoff/semaphore.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/model/self_test.hpp"
#include "dvla/pipeline/buildable.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/validate.hpp"
#include "dvla/pipeline/warm_start.hpp"
#include "dvla/schedule/runner.hpp"
#include "dvla/trace/recorder.hpp"
#include "dvla/trace/report.hpp"

namespace dvla {

/// One batch's way through the lanes, as the observer sees it.
struct Iteration {
  std::int64_t batch = 0;
  UpdateStats update;
  std::int64_t staleness = 0;  ///< versions between the weights trained and the oldest that sampled
  RolloutCounts counts;        ///< totals when this batch had been sampled
  double elapsed_s = 0;        ///< since train() began, when this batch had been trained
};

/// A run's figures by the definitions of docs/numbers.md.
struct RunReport {
  trace::report timing;
  std::int64_t env_steps = 0, chunk_steps = 0;  ///< in this train()
  double train_wall_s = 0;                      ///< from the start of train() to its end
  std::int64_t max_staleness = 0;
  std::vector<std::int64_t> staleness;  ///< batches with lag 0, 1, ... K
  std::int64_t batches = 0;
  bool stopped = false;
  int signal = 0;
  double env_steps_per_s() const {
    return train_wall_s > 0 ? static_cast<double>(env_steps) / train_wall_s : 0;
  }
  double chunk_steps_per_s() const {
    return train_wall_s > 0 ? static_cast<double>(chunk_steps) / train_wall_s : 0;
  }
};

namespace detail {
/// While it lives, the model's tensors come from the model pool, if its tensor library can be told so: a
/// model's machinery names what does it as `tensor_pool` (TinyVLA: TorchAllocator).
template <class Model>
struct TensorPool {
  template <class Pool>
  explicit TensorPool(Pool&) {}
};
template <class Model>
requires requires { typename Model::tensor_pool; }
struct TensorPool<Model> : Model::tensor_pool {
  using Model::tensor_pool::tensor_pool;
};
}  // namespace detail

/// `Buildable` is not for callers: where a policy's machinery is missing, the one error that says so stands
/// in buildable<P>(), and the form below keeps others from following it.
template <class P, class Trace = trace::Recorder, bool Buildable = buildable<P, Trace>()>
class Run {
 public:
  using pipeline = P;
  using Environment = machinery_t<typename P::environment, P>;
  using Model = machinery_t<typename P::model, P>;
  using Weights = machinery_t<typename P::sharding, P>;
  using Algorithm = machinery_t<typename P::algorithm, P>;
  using Data = machinery_t<typename P::data_plane, P>;
  using Control = machinery_t<typename P::control_plane, P>;
  using Memory = machinery_t<typename P::memory, P>;
  using Schedule = machinery_t<typename P::schedule, P>;
  using Decision = typename Model::Decision;

  /// Batches that train() makes room for in the history before it begins; more room comes as it is needed.
  static constexpr std::int64_t history_room = std::int64_t{1} << 17;

  /// Builds everything; throws ConfigError before anything starts if a value is wrong or parts do not fit.
  explicit Run(const Config<P>& config)
      : config_(checked(config)),
        memory_(config_.memory),
        tensors_(memory_.model()),
        environment_(config_.environment, memory_.environment()),
        model_(config_.model, inputs(), weight_seed()),
        weights_(model_, memory_.model()),
        worker_(environment_, frozen_model(), frozen_model(), rollout_options(), trace_),
        algorithm_(config_.algorithm, worker_.shape(), environment_.action_spec().dimensions,
                   static_cast<std::uint64_t>(config_.run.seed)),
        data_(transition_layout(environment_.observation_spec(), environment_.action_spec(), worker_.shape()),
              model_.decision_layout({worker_.shape().decisions, worker_.shape().episodes}), staleness() + 1,
              memory_.environment()),
        control_(weights_.packed_bytes(), memory_.environment(), deadline()) {}

  /// Clones the scripted expert until the policy succeeds sometimes. Call before train(), once. Throws
  /// Stopped at the next decision or optimiser step once `stop` asks; the weights are then half cloned.
  WarmStartResult warm_start(const stop_flag* stop = nullptr) requires HasExpert<Environment> {
    Model::use_threads(caller_threads());
    WarmStartOptions options;
    options.seed = static_cast<std::uint64_t>(config_.run.seed);
    options.demonstrations = config_.run.demonstrations;
    options.noise = config_.run.demonstration_noise;
    options.target = config_.run.imitation_target;
    options.most_steps = config_.run.imitation_steps;
    return dvla::warm_start(
        worker_, model_, weights_, options, [this] { install(); }, stop);
  }

  /// exp(log_prob - behaviour) must be 1 for weights that have not changed: sampling and training then agree
  /// about what a decision is. Returns the largest deviation; throws Error if it is above 1e-5.
  double self_test() {
    Model::use_threads(caller_threads());
    install();
    OwnedRecord<Transition> transition(worker_.layout(1, worker_.shape().chunk),
                                       *std::pmr::new_delete_resource());
    OwnedRecord<Decision> decision(model_.decision_layout({environment_.size()}),
                                   *std::pmr::new_delete_resource());
    worker_.probe(*transition, *decision);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(environment_.size()));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    return check_ratio(model_, cut_record(transition->observation, [](auto field) { return field.at(0); }),
                       *decision, rows);
  }

  /// Success over fresh episodes that training never sees. Throws Stopped at the next decision once `stop`
  /// asks.
  double evaluate(std::int64_t episodes, Decoding decoding = Decoding::mode,
                  const stop_flag* stop = nullptr) {
    Model::use_threads(caller_threads());
    install();
    return worker_.evaluate(episodes, decoding, Stream::evaluation, 0, stop);
  }

  /// See RolloutWorker::watch.
  template <class OnStep>
  void watch(OnStep on_step, Decoding decoding = Decoding::mode) {
    Model::use_threads(caller_threads());
    install();
    worker_.watch(decoding, on_step);
  }

  /// Trains until `config.run.iterations` batches have been trained in all (a resumed run does the rest), or
  /// `stop` asks. `on_iteration(const Iteration&)` is called for each batch, in order, off the lanes'
  /// critical path; `after_update(batch)` in the training lane between two updates, where the weights stand
  /// still: for checkpoints. In steady state a batch allocates nothing, but that the history of a run of more
  /// than history_room batches doubles its room from time to time.
  RunReport train(std::function<void(const Iteration&)> on_iteration = {},
                  std::function<void(std::int64_t)> after_update = {}, const stop_flag* stop = nullptr) {
    install();
    const std::int64_t first = next_batch_;
    const std::int64_t batches = std::max<std::int64_t>(config_.run.iterations - first, 0);
    history_.resize(static_cast<std::size_t>(first));
    history_.reserve(static_cast<std::size_t>(first + std::min(batches, history_room)));
    Stages stages(*this, std::move(on_iteration), std::move(after_update));
    run_options options;
    options.first_batch = first;
    options.batches = batches;
    options.staleness = staleness();
    options.deadline = deadline();
    options.stop = stop;
    const RolloutCounts before = worker_.counts();
    const run_result result = Schedule::run(stages, options, trace_);
    RunReport report;
    report.train_wall_s = stages.elapsed();
    report.batches = result.batches;
    report.stopped = result.stopped;
    report.signal = result.signal;
    report.max_staleness = result.max_staleness;
    report.staleness = result.staleness;
    report.env_steps = worker_.counts().env_steps - before.env_steps;
    report.chunk_steps = worker_.counts().chunk_steps - before.chunk_steps;
    report.timing = trace::make_report(trace_.spans(), trace_.dropped());
    return report;
  }

  const Config<P>& config() const { return config_; }
  /// All batches trained since the start, those before a resume included. It grows as the run goes on: read
  /// it in `after_update` or while no lane runs, not in `on_iteration`, which is given its batch.
  const std::vector<Iteration>& history() const { return history_; }
  Environment& environment() { return environment_; }
  Model& model() { return model_; }
  Weights& weights() { return weights_; }
  RolloutWorker<Environment, Model, Trace>& worker() { return worker_; }
  Memory& memory() { return memory_; }
  Data& data() { return data_; }
  Trace& trace() { return trace_; }
  /// Number of the next batch = version of the trainer's weights. Set by a resumed run.
  std::int64_t next_batch() const { return next_batch_; }
  void continue_from(std::int64_t batch, std::vector<Iteration> history) {
    next_batch_ = batch;
    history_ = std::move(history);
    worker_.count_from(history_.empty() ? RolloutCounts{} : history_.back().counts);
  }

 private:
  /// What the schedule's lanes call. Nested so that a lane can touch only what stands here.
  struct Stages {
    Stages(Run& whose, std::function<void(const Iteration&)> each, std::function<void(std::int64_t)> after)
        : run(whose),
          on_iteration(std::move(each)),
          after_update(std::move(after)),
          sampled(static_cast<std::size_t>(whose.staleness()) + 1) {}

    Run& run;
    std::function<void(const Iteration&)> on_iteration;
    std::function<void(std::int64_t)> after_update;
    /// What sampling knows of a live batch, one slot a trajectory buffer: passes to training with it.
    std::vector<Iteration> sampled;
    /// Guards the history: training appends to it, an observer that lags behind copies out of it.
    std::mutex history;
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    /// Held by the weights while they have not been packed: an update reads them, but may not change them
    /// yet.
    credit<0> packed{0};
    /// Weights could not be installed, so the sampler may have lost those that it was admitted with: it waits
    /// for the reception lane's own error, which is the one to report.
    std::atomic<bool> lost{false};
    timed_semaphore ended{0};

    double elapsed() const {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    Iteration& live(const Token& token) {
      return sampled[static_cast<std::size_t>(token.batch) % sampled.size()];
    }

    void enter(lane_kind kind) noexcept {
      if (kind == lane_kind::sampling) Model::use_threads(run.sampling_threads());
      if (kind == lane_kind::training) Model::use_threads(run.training_threads());
      if (kind == lane_kind::every) Model::use_threads(run.caller_threads());
    }
    void sample(Token& token) {
      Trajectory<Decision>& trajectory = run.data_.produce(token);
      token.version = run.worker_.rollout(trajectory.transition, trajectory.decision, token.batch);
      if (lost.load(std::memory_order_acquire)) {
        ended.acquire_for(run.deadline());
        throw Error("sampling stops: the weights that it waited for could not be installed");
      }
      Iteration& iteration = live(token);
      iteration.batch = token.batch;
      iteration.staleness = token.batch - token.version;
      iteration.counts = run.worker_.counts();
      run.data_.commit(token);
    }
    void train(Token& token) {
      const Trajectory<Decision>& trajectory = run.data_.consume(token);
      auto before_step = [&] {
        if (!packed.acquire(run.deadline(),
                            {"training", "the last weights to be packed", "distribution", token.batch}))
          throw Error("training stops: the last weights were not packed because another lane failed");
      };
      Iteration iteration = live(token);
      iteration.update = run.algorithm_.update(run.model_, run.weights_, trajectory.transition,
                                               trajectory.decision, token.batch, before_step, run.trace_);
      run.data_.release(token);
      iteration.elapsed_s = elapsed();
      {
        const std::scoped_lock lock(history);
        run.history_.push_back(iteration);
      }
      token.version = token.batch + 1;
      run.next_batch_ = token.version;
      if (after_update) after_update(token.batch);
    }
    void distribute(Token& token) {
      {
        auto span = run.trace_.span("pack", token.batch);
        run.weights_.pack(run.control_.begin(token.version));
        packed.release();
      }
      auto span = run.trace_.span("publish", token.batch);
      run.control_.publish(token.version);
    }
    void receive(Token& token) { run.receive(token.version, lost); }
    void observe(const Token& token) {
      if (!on_iteration) return;
      const Iteration iteration = [&] {
        const std::scoped_lock lock(history);
        return run.history_[static_cast<std::size_t>(token.batch)];
      }();
      on_iteration(iteration);
    }
    /// A lane failed: nobody will pack any more.
    void cancel() noexcept {
      packed.cancel();
      ended.cancel();
    }
  };

  static Config<P> checked(const Config<P>& config) {
    validate(config);
    return config;
  }
  ModelInputs inputs() const {
    return {environment_.observation_spec(), environment_.action_spec(), config_.model.chunk};
  }
  std::uint64_t weight_seed() const {
    return stream_seed(static_cast<std::uint64_t>(config_.run.seed), Stream::weights);
  }
  std::unique_ptr<Model> frozen_model() const {
    return std::make_unique<Model>(config_.model, inputs(), weight_seed());
  }
  RolloutOptions rollout_options() const {
    RolloutOptions options;
    options.seed = static_cast<std::uint64_t>(config_.run.seed);
    options.chunk = config_.model.chunk;
    // An algorithm without groups, or without several passes a batch, need not have knobs for them.
    options.group = 1;
    if constexpr (requires { config_.algorithm.group; }) options.group = config_.algorithm.group;
    if constexpr (requires { config_.algorithm.rollout_epochs; })
      options.rollout_epochs = config_.algorithm.rollout_epochs;
    options.threads = sampling_threads();
    options.stages = config_.schedule.sampling_stages;
    options.deadline = deadline();
    return options;
  }
  int staleness() const {
    if constexpr (requires { config_.schedule.staleness; }) return config_.schedule.staleness;
    return 0;
  }
  int sampling_threads() const { return config_.schedule.sampling_threads; }
  int training_threads() const { return config_.schedule.training_threads; }
  int caller_threads() const { return std::max(sampling_threads(), training_threads()); }
  std::chrono::nanoseconds deadline() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(config_.schedule.deadline_s * 1e9));
  }

  /// The trainer's weights into both of the worker's copies, without the control plane: before the lanes
  /// start.
  void install() {
    auto copy = [&](VersionedModel<Model>& frozen) {
      const auto from = model_.parameters();
      std::copy(from.begin(), from.end(), frozen.model->parameters().begin());
      frozen.version = next_batch_;
    };
    worker_.models().fill(copy);
    worker_.models().try_swap();
  }
  void receive(std::int64_t version, std::atomic<bool>& lost) {
    auto span = trace_.span("install", version - 1);
    worker_.models().fill([&](VersionedModel<Model>& back) {
      try {
        back.version = control_.receive(std::as_writable_bytes(std::span<float>(back.model->parameters())),
                                        version, deadline());
      } catch (...) {
        lost.store(true, std::memory_order_release);
        throw;
      }
    });
  }

  Config<P> config_;
  Trace trace_;
  Memory memory_;
  detail::TensorPool<Model> tensors_;
  Environment environment_;
  Model model_;
  Weights weights_;
  RolloutWorker<Environment, Model, Trace> worker_;
  Algorithm algorithm_;
  Data data_;
  Control control_;
  std::vector<Iteration> history_;
  std::int64_t next_batch_ = 0;
};

/// What stands in for a run that cannot be built; none of it is defined.
template <class P, class Trace>
class Run<P, Trace, false> {
 public:
  using pipeline = P;
  explicit Run(const Config<P>&);
  WarmStartResult warm_start(const stop_flag* = nullptr);
  double self_test();
  double evaluate(std::int64_t, Decoding = Decoding::mode, const stop_flag* = nullptr);
  RunReport train(std::function<void(const Iteration&)> = {}, std::function<void(std::int64_t)> = {},
                  const stop_flag* = nullptr);
};

}  // namespace dvla
