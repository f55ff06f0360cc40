// A pipeline at work: the nine policies' machinery put together and driven through the four lanes, in one
// process or as one rank of a job. Paper: the D-VLA system; docs/architecture.md has the four lanes as
// pseudocode with the class that owns each line. Reads and writes no files, prints nothing: see
// experiment.hpp for a run with a folder, pictures and a progress bar, and checkpoint.hpp for saving and
// resuming.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/algorithm/update_stats.hpp"
#include "dvla/control_plane/in_process.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/credit.hpp"
#include "dvla/handoff/semaphore.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/model/self_test.hpp"
#include "dvla/pipeline/actor_groups.hpp"
#include "dvla/pipeline/adaptation.hpp"
#include "dvla/pipeline/agreement.hpp"
#include "dvla/pipeline/buildable.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/run_report.hpp"
#include "dvla/pipeline/run_settings.hpp"
#include "dvla/pipeline/warm_start.hpp"
#include "dvla/pipeline/watch.hpp"
#include "dvla/placement/scoped_cluster.hpp"
#include "dvla/schedule/runner.hpp"
#include "dvla/sharding/carried_state.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/trace/recorder.hpp"

namespace dvla {

/// One batch's way through the lanes, as the observer sees it. In a job: over all actors.
struct Iteration {
  std::int64_t batch = 0;
  UpdateStats update;
  std::int64_t staleness = 0;  ///< versions between the weights trained and the oldest that sampled
  RolloutCounts counts;        ///< totals of all batches trained up to this one
  double elapsed_s = 0;        ///< since train() began, when this batch had been trained
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

/// In a job of several processes each makes its Run with the same configuration, at the same time, and calls
/// train(); what begins with "Leader:" only the leader may call. `Buildable` is not for callers: where a
/// policy's machinery is missing, the one error that says so stands in buildable<P>(), and the form below
/// keeps others from following it.
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
  using Placement = machinery_t<typename P::placement, P>;
  using Decision = typename Model::Decision;
  using Worker = RolloutWorker<Environment, Model, Trace>;

  /// Batches that train() makes room for in the history before it begins; more room comes as it is needed.
  static constexpr std::int64_t history_room = std::int64_t{1} << 17;

  /// One process, which is every role. Throws ConfigError before anything starts if a value is wrong or parts
  /// do not fit.
  explicit Run(const Config<P>& config) : Run(config, std::make_unique<LoneCluster>(), nullptr) {}
  /// One rank of a job. What one rank refuses, all refuse, each with a ConfigError that says who and why.
  /// `cluster` must outlive this, and serves this run only.
  Run(const Config<P>& config, Cluster& cluster) : Run(config, nullptr, &cluster) {}

  /// Leader: clones the scripted expert until the policy succeeds sometimes. Call before train(), once.
  /// Throws Stopped at the next decision or optimiser step once `stop` asks; the weights are then half
  /// cloned.
  WarmStartResult warm_start(const stop_flag* stop = nullptr) requires HasExpert<Environment> {
    Model::use_threads(caller_threads());
    const WarmStartOptions options = settings_.warm_start_options();
    const auto clone = [&](auto& weights) {
      return dvla::warm_start(
          worker(), model_, weights, options, [this] { install(); }, stop);
    };
    if (job_->actors() == 1) return clone(*weights_);
    // The other actors take no part in it: they get its outcome when training begins.
    UnshardedWeights<Model> own(model_, *std::pmr::new_delete_resource());
    return clone(own);
  }

  /// Leader: exp(log_prob - behaviour) must be 1 for weights that have not changed: sampling and training
  /// then agree about what a decision is. Returns the largest deviation; throws Error if it is above 1e-5.
  double self_test() {
    Model::use_threads(caller_threads());
    install();
    OwnedRecord<Transition> transition(worker().layout(1, config().model.chunk),
                                       *std::pmr::new_delete_resource());
    OwnedRecord<Decision> decision(model_.decision_layout({environment_->size()}),
                                   *std::pmr::new_delete_resource());
    worker().probe(*transition, *decision);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(environment_->size()));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    return check_ratio(model_, cut_record(transition->observation, [](auto field) { return field.at(0); }),
                       *decision, rows);
  }

  /// Leader: success over fresh episodes that training never sees. Throws Stopped at the next decision once
  /// `stop` asks.
  double evaluate(std::int64_t episodes, Decoding decoding = Decoding::mode,
                  const stop_flag* stop = nullptr) {
    Model::use_threads(caller_threads());
    install();
    return worker().evaluate(episodes, decoding, Stream::evaluation, 0, stop);
  }

  /// Leader: see RolloutWorker::watch.
  template <class OnStep>
  void watch(OnStep on_step, Decoding decoding = Decoding::mode) {
    Model::use_threads(caller_threads());
    install();
    worker().watch(decoding, on_step);
  }

  /// Trains until `config.run.iterations` batches have been trained in all (a resumed run does the rest), or
  /// `stop` asks. On each actor, `on_iteration(const Iteration&)` is called for each batch, in order, off the
  /// lanes' critical path; `after_update(batch)` in the training lane between two updates, where the weights
  /// stand still: for checkpoints. In steady state a batch allocates nothing, but that the history of a run
  /// of more than history_room batches doubles its room from time to time.
  ///
  /// In a job: begins once the leader calls it, with the leader's weights. A stop that any actor is asked for
  /// ends all at the next batch; batches beyond it that are under way are dropped, and counted. A rollout
  /// that is asked alone leaves the job, which goes on.
  RunReport train(std::function<void(const Iteration&)> on_iteration = {},
                  std::function<void(std::int64_t)> after_update = {}, const stop_flag* stop = nullptr) {
    job_->begin_together(stop);
    if (!data_) make_planes();
    begin_with_the_leaders_weights();
    const std::int64_t first = next_batch_;
    const std::int64_t batches = std::max<std::int64_t>(config().run.iterations - first, 0);
    history_.resize(static_cast<std::size_t>(first));
    history_.reserve(static_cast<std::size_t>(first + std::min(batches, history_room)));
    trained_ = history_.empty() ? RolloutCounts{} : history_.back().counts;
    const RolloutCounts trained_before = trained_;
    before_ = {};
    sampled_before_ = worker_ ? worker_->counts() : RolloutCounts{};
    RunReport report;
    std::optional<Stages> stages;
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t done = 0;;) {
      stages.emplace(*this, on_iteration, after_update, stop, start);
      run_options options;
      options.share = job_->share();
      options.first_batch = first + done;
      options.batches = std::min(stretch(), batches - done);
      options.staleness = settings_.staleness();
      options.deadline = settings_.deadline();
      options.stop = job_->alone() ? stop : &stages->ending;
      if (config().run.record) options.record = &recorded_;
      if constexpr (replays) options.replay = &settings_.replayed();
      const run_result result = swim(*stages, options);
      if (!job_->trains()) next_batch_ += result.batches;
      report.add(result);
      done += options.batches;
      if (result.stopped || done >= batches) break;
      adapt(*stages);
    }
    if constexpr (replays) check_end(report.batches);
    if (config().run.record) recorded_.final_weights = checksum(weight_bytes());
    report.train_wall_s = stages->elapsed();
    report.batches = next_batch_ - first;
    if (job_->alone()) {
      const RolloutCounts counts = trained_ - trained_before;
      report.env_steps = counts.env_steps;
      report.chunk_steps = counts.chunk_steps;
    }
    report.timing = trace::make_report(trace_.spans(), trace_.dropped());
    if (adaptation_) report.looks = adaptation_->looks();
    if (!job_->alone()) end_together(*stages, report);
    return report;
  }

  /// On an actor: one sentence for each rollout that is lost or comes again while train() goes on. Called
  /// from threads of this class, several at once. Set before train().
  void on_notice(std::function<void(const std::string&)> say) { on_notice_ = std::move(say); }

  const Config<P>& config() const { return settings_.config(); }
  const Job& job() const { return *job_; }
  /// All batches trained since the start, those before a resume included. It grows as the run goes on: read
  /// it in `after_update` or while no lane runs, not in `on_iteration`, which is given its batch.
  const std::vector<Iteration>& history() const { return history_; }
  /// What the last train() wrote down where `run.record` asked for it, also if it threw: the schedule Replay
  /// repeats it. Empty otherwise.
  const Recording& recording() const { return recorded_; }
  Environment& environment() { return *environment_; }
  Model& model() { return model_; }
  /// Throws Error on a rank that is no actor.
  Weights& weights() {
    if (!weights_) throw Error(job_->name() + " is no actor and has no weights to train");
    return *weights_;
  }
  /// Throws Error on a rank that neither rolls out nor leads.
  Worker& worker() {
    if (!worker_) throw Error(job_->name() + " neither rolls out nor leads: it has no environments");
    return *worker_;
  }
  Memory& memory() { return memory_; }
  Data& data() { return *data_; }
  Trace& trace() { return trace_; }
  /// Number of the next batch = version of the trainer's weights. Set by a resumed run.
  std::int64_t next_batch() const { return next_batch_; }
  /// In a job: on every rank; weights are the leader's.
  void continue_from(std::int64_t batch, std::vector<Iteration> history) {
    next_batch_ = batch;
    history_ = std::move(history);
  }

 private:
  static constexpr bool routed = detail::spans_processes<typename P::data_plane>;
  static constexpr bool broadcasts = detail::spans_processes<typename P::control_plane>;
  static constexpr bool replays = RunSettings<P>::replays;
  static constexpr bool adapts = RunSettings<P>::adapts;
  /// Whether the weights know of other actors (sharding/actors.hpp).
  static constexpr bool shared_weights = requires(Weights & weights, std::span<std::int64_t> values) {
    weights.max(values);
  };

  Run(const Config<P>& config, std::unique_ptr<LoneCluster> own, Cluster* given) try
      : settings_(config),
        own_cluster_(std::move(own)),
        cluster_(given ? *given : *own_cluster_),
        job_(std::in_place, cluster_, Placement::roles(settings_.config().placement, cluster_.topology()),
             settings_.deadline()),
        memory_(settings_.config().memory),
        tensors_(memory_.model()),
        environment_(
            std::make_unique<Environment>(settings_.environment_knobs(*job_), memory_.environment())),
        model_(settings_.config().model, settings_.model_inputs(*environment_), settings_.weight_seed()) {
    settings_.check(*job_);
    if constexpr (adapts)
      adaptation_.emplace(config.placement, *job_, sampling_threads(), training_threads(),
                          job_->leads() ? splits() : std::vector<int>());
    take_place();
    if (!routed && !broadcasts && job_->alone()) make_planes();  // else when the first batch is known
  } catch (const std::exception& why) {
    if (given) Job::refuse(*given, why);
  }

  /// The parts that follow from the roles, but for the planes.
  void take_place() {
    job_->roll_call(Job::first_call);
    if constexpr (routed)
      plan_ = agree_on_routes(job_->cluster(), job_->roles(), group_bytes(), settings_.group(),
                              settings_.deadline());
    if (job_->trains() && job_->alone()) make_weights();
    if (job_->rolls_out() || job_->leads())
      worker_ = std::make_unique<Worker>(*environment_, frozen_model(), frozen_model(),
                                         settings_.rollout_options(*job_, sampling_threads()), trace_);
    if (job_->trains()) make_algorithm();
    job_->roll_call(Job::last_call);  // from here on ranks wait for each other
    if (job_->trains() && !job_->alone()) make_weights();
  }

  /// What the schedule's lanes call. Nested so that a lane can touch only what stands here.
  struct Stages {
    Stages(Run& whose, const std::function<void(const Iteration&)>& each,
           const std::function<void(std::int64_t)>& after, const stop_flag* stop,
           std::chrono::steady_clock::time_point since)
        : run(whose),
          on_iteration(each),
          after_update(after),
          asked(stop),
          start(since),
          sampled(static_cast<std::size_t>(whose.settings_.staleness()) + 1) {}

    Run& run;
    const std::function<void(const Iteration&)>& on_iteration;
    const std::function<void(std::int64_t)>& after_update;
    /// Asked from outside; in a job the lanes end by `ending`, which the actors agree on.
    const stop_flag* asked;
    stop_flag ending;
    const std::chrono::steady_clock::time_point start;
    /// Of a live batch, one slot a trajectory buffer: passes from sampling to training with it.
    std::vector<RolloutCounts> sampled;
    /// Guards the history: training appends to it, an observer that lags behind copies out of it.
    std::mutex history;
    /// Held by the weights while they have not been packed: an update reads them, but may not change them
    /// yet.
    credit<0> packed{0};
    /// Weights could not be installed, so the sampler may have lost those that it was admitted with: it waits
    /// for the reception lane's own error, which is the one to report.
    std::atomic<bool> lost{false};
    timed_semaphore ended{0};
    std::int64_t sampled_until = 0;  ///< the sampling lane's
    LaneClock sampling, training;    ///< where shares of the work move: what these lanes were at work
    /// A rollout of a job: no more weights will come, in peace.
    std::atomic<bool> weights_ended{false};

    double elapsed() const {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    bool asked_to_stop() const { return asked && asked->stop_requested(); }
    void end() {
      if (asked && asked->signal() != 0)
        ending.request_stop(asked->signal());
      else
        ending.request_stop();
    }
    RolloutCounts& live(const Token& token) {
      return sampled[static_cast<std::size_t>(token.batch) % sampled.size()];
    }

    void enter(lane_kind kind) noexcept {
      if constexpr (ModelElsewhere<Model>) Model::enter_lane(kind);
      if (kind == lane_kind::sampling) Model::use_threads(run.sampling_threads());
      if (kind == lane_kind::training) Model::use_threads(run.training_threads());
      if (kind == lane_kind::every) Model::use_threads(run.caller_threads());
    }
    void sample(Token& token) {
      no_boundaries nobody;
      sample(token, nobody);
    }
    template <class Boundaries>
    void sample(Token& token, Boundaries& boundaries) {
      Trajectory<Decision>& trajectory = run.data_->produce(token);
      const RolloutCounts before = run.worker_->counts();
      {
        const Timed timed(sampling);
        token.version =
            run.worker_->rollout(trajectory.transition, trajectory.decision, token.batch, boundaries);
      }
      if (lost.load(std::memory_order_acquire)) {
        ended.acquire_for(run.settings_.deadline());
        throw Error("sampling stops: the weights that it waited for could not be installed");
      }
      const RolloutCounts steps = run.worker_->counts() - before;
      if constexpr (routed) {
        run.data_->commit(token, {steps.env_steps, steps.chunk_steps});
        if (!run.job_->trains() && asked_to_stop()) end();
      } else {
        live(token) = steps;
        run.data_->commit(token);
        sampled_until = token.batch + 1;
      }
    }
    /// In a job the actors go on, or end, together; and the batch is as old as the oldest of their parts.
    bool arrive(Token& token) {
      bool more = true;
      if constexpr (routed) more = run.data_->arrive(token, asked);
      if (run.job_->alone()) return more;
      bool here = more;  // something of the batch
      if constexpr (routed) here = more && run.data_->arrival(token).episodes > 0;
      Agreement agreement(*run.job_, run.settings_.inner_deadline(),
                          [this](std::span<std::int64_t> values) { run.largest(values); });
      const BatchWord all = agreement.on(
          token.batch, {!more || asked_to_stop(), more ? token.batch - token.version : 0, here},
          [this] { return asked_to_stop(); },
          [this] {
            if constexpr (routed) return run.data_->anybody();
            return true;
          });
      if (all.ends) {
        if constexpr (routed)
          if (more) run.data_->drop(token);
        end();
        return false;
      }
      token.version = token.batch - all.age;
      return true;
    }
    void train(Token& token) {
      const Timed timed(training);
      const Trajectory<Decision>& trajectory = run.data_->consume(token);
      auto before_step = [&] {
        if (!packed.acquire(run.settings_.deadline(),
                            {"training", "the last weights to be packed", "distribution", token.batch}))
          throw Error("training stops: the last weights were not packed because another lane failed");
      };
      Iteration iteration;
      iteration.batch = token.batch;
      iteration.staleness = token.batch - token.version;
      iteration.update = run.algorithm_->update(run.model_, *run.weights_, trajectory.transition,
                                                trajectory.decision, token.batch, before_step, run.trace_);
      run.trained_ += run.summed(steps_of(token));
      iteration.counts = run.trained_;
      run.data_->release(token);
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
        run.pack(token.version);
        packed.release();
      }
      auto span = run.trace_.span("publish", token.batch);
      run.control_->publish(token.version);
    }
    /// Weights that another process makes are waited for outside of receive(), during which the sampler may
    /// not begin.
    void await(Token& token) requires broadcasts {
      if (weights_ended.load(std::memory_order_relaxed)) return;
      try {
        run.control_->await(token.batch + 1, run.settings_.deadline());
      } catch (const typename Control::End&) {
        weights_ended.store(true, std::memory_order_relaxed);
        ending.request_stop();
      }
    }
    void receive(Token& token) {
      if (!weights_ended.load(std::memory_order_relaxed)) run.receive(token.batch + 1, lost);
    }
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
      if constexpr (routed) run.data_->cancel();
      if constexpr (broadcasts) run.control_->close();
    }

   private:
    struct Timed {
      explicit Timed(LaneClock& of) : clock(of) {}
      ~Timed() { clock.add(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()); }
      LaneClock& clock;
      const std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
    };
    RolloutCounts steps_of(const Token& token) {
      if constexpr (routed) {
        const auto arrived = run.data_->arrival(token).counts;
        return {arrived.env_steps, arrived.chunk_steps};
      } else {
        return live(token);
      }
    }
  };

  int sampling_threads() const {
    return adaptation_ ? adaptation_->shares().sampling_threads : config().schedule.sampling_threads;
  }
  int training_threads() const {
    return adaptation_ ? adaptation_->shares().training_threads : config().schedule.training_threads;
  }
  int caller_threads() const { return std::max(sampling_threads(), training_threads()); }
  std::unique_ptr<Model> frozen_model() const {
    return std::make_unique<Model>(config().model, settings_.model_inputs(*environment_),
                                   settings_.weight_seed());
  }

  // ---- The parts that not every rank has
  Transition transitions(std::int64_t episodes) const {
    return transition_layout(environment_->observation_spec(), environment_->action_spec(),
                             settings_.shape(*environment_, episodes));
  }
  Decision decisions(std::int64_t episodes) const {
    return model_.decision_layout({settings_.shape(*environment_, episodes).decisions, episodes});
  }
  /// Of each group that this rank rolls out in a batch.
  std::vector<std::int64_t> group_bytes() const {
    if (!job_->rolls_out()) return {};
    const auto bytes = static_cast<std::int64_t>(
        record_bytes(trajectory_layout(transitions(settings_.group()), decisions(settings_.group()))));
    return std::vector<std::int64_t>(
        static_cast<std::size_t>(settings_.own_groups(*job_).count * settings_.rollout_epochs()), bytes);
  }
  /// Of this actor's part of a batch.
  std::int64_t trained_episodes() const {
    if constexpr (routed)
      return plan_.episodes_to(job_->actor());
    else
      return worker_->shape().episodes;
  }
  void make_algorithm() { algorithm_ = algorithm_for(trained_episodes(), job_->actors()); }
  /// On one of `actors`, with `episodes` of a batch as its own.
  std::unique_ptr<Algorithm> algorithm_for(std::int64_t episodes, int actors) const {
    const std::uint64_t seed = settings_.seed();
    const std::int64_t dimensions = environment_->action_spec().dimensions;
    const BatchShape shape = settings_.shape(*environment_, episodes);
    if constexpr (requires { Algorithm(config().algorithm, shape, dimensions, seed, actors); }) {
      return std::make_unique<Algorithm>(config().algorithm, shape, dimensions, seed, actors);
    } else {
      refuse_actors(P::algorithm::name, actors);
      return std::make_unique<Algorithm>(config().algorithm, shape, dimensions, seed);
    }
  }
  void make_weights() {
    const GroupSource groups = [this](const std::string& purpose) {
      return groups_.make(*job_, config().run.collectives, purpose, settings_.deadline());
    };
    if constexpr (requires { Weights(model_, memory_.model(), config().sharding, groups); }) {
      weights_ = std::make_unique<Weights>(model_, memory_.model(), config().sharding, groups);
      if constexpr (requires { weights_->trace_to(trace_); })
        if (job_->actors() > 1) weights_->trace_to(trace_);
    } else {
      refuse_actors(P::sharding::name, job_->actors());
      weights_ = std::make_unique<Weights>(model_, memory_.model());
    }
    if (job_->actors() > 1) actors_ = groups("start");
  }
  static void refuse_actors(std::string_view policy, int actors) {
    if (actors > 1)
      throw ConfigError(std::string(policy) + " trains on one actor, and the job has " +
                        std::to_string(actors) + "; choose a placement with one");
  }
  void make_planes() {
    if (job_->incarnation() > 0) job_->announce();
    make_data();
    make_control();
    if constexpr (routed)
      if (job_->incarnation() > 0) next_batch_ = data_->first_batch();
    if (!job_->alone()) make_watch();
  }
  void make_data() {
    if constexpr (routed) {
      typename Data::Layouts layouts;
      const auto layout = [&](std::int64_t episodes) {
        return trajectory_layout(transitions(episodes), decisions(episodes));
      };
      if (job_->rolls_out()) layouts.rollout = layout(plan_.episodes_from(job_->rollout()));
      if (job_->trains()) layouts.actor = layout(plan_.episodes_to(job_->actor()));
      typename Data::Options options;
      options.buffers = settings_.staleness() + 1;
      options.first_batch = next_batch_;
      options.incarnation = job_->incarnation();
      options.deadline = settings_.inner_deadline();
      data_ = std::make_unique<Data>(std::move(layouts), plan_, job_->cluster(), job_->roles(), options,
                                     memory_.environment());
    } else {
      const std::int64_t episodes = worker_->shape().episodes;
      data_ = std::make_unique<Data>(transitions(episodes), decisions(episodes), settings_.staleness() + 1,
                                     memory_.environment());
    }
  }
  void make_control() {
    const std::int64_t floats = std::ssize(weights_of(model_));
    if constexpr (broadcasts) {
      std::vector<WeightPart> parts;
      if constexpr (requires { Weights::parts_of(model_, 1); })
        parts = Weights::parts_of(model_, job_->actors());
      else
        parts = {{{0, floats}}};
      WeightPart trainable;
      if constexpr (ModelOfTrainable<Model>) trainable = model_.trainable();
      control_ = std::make_unique<Control>(floats, std::move(parts), config().control_plane, job_->cluster(),
                                           job_->roles(), static_cast<int>(job_->incarnation()),
                                           settings_.deadline(), memory_.environment(), trainable);
    } else {
      control_ = std::make_unique<Control>(static_cast<std::size_t>(floats) * sizeof(float),
                                           memory_.environment(), settings_.deadline());
    }
  }

  void make_watch() {
    WatchCallbacks callbacks;
    callbacks.lost_rollout = [this](int rank, const std::string& why) {
      (void)this, (void)rank, (void)why;  // of planes within one process
      if constexpr (routed)
        if (job_->trains()) data_->lose(job_->roles().rollout(rank), why);
      if constexpr (broadcasts) control_->lose(rank);
      if (job_->trains()) notice(rank, "is lost: " + why + "; training goes on without it");
    };
    callbacks.lost_actor = [this](const std::string&) {
      if constexpr (routed) data_->cancel();
      if constexpr (broadcasts) control_->close();
      groups_.close();
    };
    callbacks.let_in = [this](int rollout, std::int64_t incarnation) {
      if constexpr (routed && broadcasts) {
        data_->lose(rollout, "it came again");
        const auto limit = Watch::meeting(settings_.heartbeat(), settings_.deadline());
        data_->rejoin(rollout, incarnation, limit);
        control_->rejoin(rollout, static_cast<int>(incarnation), limit);
        notice(job_->roles().rollouts[static_cast<std::size_t>(rollout)], "is here again");
      } else {
        (void)rollout, (void)incarnation;
      }
    };
    watch_ =
        std::make_unique<Watch>(*job_, settings_.heartbeat(), settings_.deadline(), std::move(callbacks));
  }

  void notice(int rank, const std::string& what) {
    if (on_notice_) on_notice_(rank_name(job_->roles(), rank) + " " + what);
  }

  // ---- Over the actors, in their training lanes
  void largest(std::span<std::int64_t> values) {
    if constexpr (shared_weights) weights_->max(values);
  }
  RolloutCounts summed(const RolloutCounts& own) {
    if constexpr (shared_weights) {
      if (job_->actors() == 1) return own;
      std::array values{static_cast<double>(own.env_steps), static_cast<double>(own.chunk_steps)};
      weights_->sum(values);
      return {static_cast<std::int64_t>(values[0]), static_cast<std::int64_t>(values[1])};
    } else {
      return own;
    }
  }

  // ---- Weights
  std::span<const std::byte> weight_bytes() {
    gather();
    return std::as_bytes(weights_of(model_));
  }
  /// Of a replay of so many batches: the last updates are seen by no rollout.
  void check_end(std::int64_t batches) {
    if (batches == settings_.replayed().batches && settings_.replayed().final_weights &&
        *settings_.replayed().final_weights != checksum(weight_bytes()))
      throw Error(
          "the replay of '" + config().schedule.recording +
          "' ends with other weights than the recorded run, after hand-overs that were equal; are the "
          "training threads and the machine those of that run?");
  }
  /// model_.parameters() are whole when this returns.
  void gather() {
    if constexpr (requires { weights_->gather_all(); })
      if (weights_) weights_->gather_all();
  }
  /// The trainer's weights into both of the worker's copies, without the control plane: while no lane runs.
  void install() {
    gather();
    auto copy = [&](VersionedModel<Model>& frozen) {
      const auto from = weights_of(model_);
      std::copy(from.begin(), from.end(), frozen.model->parameters().begin());
      if constexpr (ModelElsewhere<Model>) frozen.model->weights_written();
      frozen.version = next_batch_;
    };
    worker().models().fill(copy);
    worker().models().try_swap();
  }
  void begin_with_the_leaders_weights() {
    if (actors_) {
      gather();
      if constexpr (requires { weights_->take_parameters(); }) {
        if (job_->leads()) weights_->take_parameters();  // as the trainer rounds them
        actors_->broadcast(std::as_writable_bytes(model_.parameters()),
                           job_->roles().actor(job_->roles().leader()));
        weights_->take_parameters();
      }
    }
    hand_out_weights();
  }
  /// To the rollouts, before they begin.
  void hand_out_weights() {
    if constexpr (broadcasts) {
      if (!job_->alone()) {
        if (job_->trains() && control_->latest() < next_batch_) {
          pack(next_batch_);
          control_->publish(next_batch_);
        }
        if (job_->rolls_out()) {
          std::atomic<bool> lost{false};
          control_->await(next_batch_, settings_.deadline());
          receive(next_batch_, lost);
          worker_->models().try_swap();
        }
        return;
      }
    }
    if (worker_) install();
  }
  void pack(std::int64_t version) {
    const std::span<std::byte> bytes = control_->begin(version);
    if (broadcasts || job_->actors() == 1) {
      weights_->pack(bytes);
    } else {  // a replica's own copies: the whole, not this actor's part
      gather();
      std::memcpy(bytes.data(), weights_of(model_).data(), bytes.size());
    }
  }
  void receive(std::int64_t version, std::atomic<bool>& lost) {
    auto span = trace_.span("install", version - 1);
    worker_->models().fill([&](VersionedModel<Model>& back) {
      try {
        back.version = control_->receive(std::as_writable_bytes(std::span<float>(back.model->parameters())),
                                         version, settings_.deadline());
        if constexpr (ModelElsewhere<Model>) back.model->weights_written();
      } catch (...) {
        lost.store(true, std::memory_order_release);
        throw;
      }
    });
  }

  run_result swim(Stages& stages, const run_options& options) {
    try {
      return Schedule::run(stages, options, trace_);
    } catch (const std::exception& error) {
      if (const std::string why = watch_ ? watch_->fatal() : ""; !why.empty())
        throw PeerError(why + " (" + error.what() + ")");
      throw;
    }
  }

  // ---- Shares of the work that move
  /// Batches until the next look.
  std::int64_t stretch() const {
    return adaptation_ ? adaptation_->stretch() : std::numeric_limits<std::int64_t>::max();
  }
  /// How many ranks of the job may roll out: each then has a group, and the algorithm agrees to so many
  /// actors.
  std::vector<int> splits() const {
    std::vector<int> good;
    for (int actors = 1; actors < cluster_.world(); ++actors) {
      const int rollouts = cluster_.world() - actors;
      if (rollouts > settings_.groups()) continue;
      try {
        const std::int64_t groups =
            share_of(settings_.groups() * settings_.rollout_epochs(), actors, actors - 1).count;
        (void)algorithm_for(groups * settings_.group(), actors);
        good.push_back(rollouts);
      } catch (const ConfigError&) {  // not with so many
      }
    }
    return good;
  }
  /// Between two stretches: looks, and moves what is to be moved.
  void adapt(const Stages& stages) {
    if constexpr (adapts) {
      const LaneTimes own{job_->rolls_out() ? stages.sampling.median() : 0,
                          job_->trains() ? stages.training.median() : 0};
      const auto lost = [this](int rank) { return watch_ && watch_->lost(rank); };
      if (!adaptation_->look(*job_, own, next_batch_, settings_.groups(), lost, settings_.deadline())) return;
      if (job_->alone())
        worker_->use_threads(sampling_threads());
      else
        change_roles(stages);
    }
  }
  /// Every rank of the job calls it. Whoever is lost meanwhile ends the run.
  void change_roles(const Stages& stages) requires adapts {
    auto row = trace_.enter("roles");
    CarriedState state;
    {
      auto span = trace_.span("part", next_batch_);
      part(stages, false);
      watch_->end();
      before_ = total({before_, figures()});
    }
    const std::string number = std::to_string(adaptation_->looked());
    {
      auto span = trace_.span("carry", next_batch_);
      std::vector<int> everybody(static_cast<std::size_t>(cluster_.world()));
      std::iota(everybody.begin(), everybody.end(), 0);
      const auto all = cluster_.group("carry/" + number, everybody, settings_.deadline());
      state = carry(weights_.get(), *all, job_->roles().actors, std::ssize(weights_of(model_)));
      std::array steps{trained_.env_steps, trained_.chunk_steps};
      all->broadcast(std::as_writable_bytes(std::span(steps)), job_->roles().leader());
      trained_ = {steps[0], steps[1]};
    }
    {
      auto span = trace_.span("clear", next_batch_);  // in the reverse order of making
      watch_.reset();
      control_.reset();
      data_.reset();
      algorithm_.reset();
      worker_.reset();
      actors_.reset();
      weights_.reset();
      groups_ = {};
      environment_.reset();
    }
    {
      auto span = trace_.span("make", next_batch_);
      auto scope = std::make_unique<ScopedCluster>(cluster_, "roles/" + number);
      const Shares& shares = adaptation_->shares();
      job_.emplace(*scope, detail::separated(shares.actors, cluster_.topology()), settings_.deadline(),
                   shares.groups);
      scope_ = std::move(scope);
      try {
        environment_ =
            std::make_unique<Environment>(settings_.environment_knobs(*job_), memory_.environment());
        take_place();
      } catch (const std::exception& why) {
        Job::refuse(*scope_, why);
        throw;
      }
      if (weights_) take(*weights_, state);
      history_.resize(static_cast<std::size_t>(next_batch_));  // a new actor knows no earlier ones
      sampled_before_ = worker_ ? worker_->counts() : RolloutCounts{};
    }
    auto span = trace_.span("connect", next_batch_);
    job_->begin_together(nullptr);
    make_planes();
    hand_out_weights();
  }

  // ---- The end of a job
  /// Of the planes, in peace. `leaves`: this rank alone.
  void part(const Stages& stages, bool leaves) {
    const auto end_weights = [&] {
      if constexpr (broadcasts) leaves ? control_->close() : control_->finish(settings_.deadline());
    };
    const auto end_data = [&] {
      if constexpr (routed) {
        data_->goodbye();
      } else {
        for (std::int64_t batch = next_batch_; batch < stages.sampled_until; ++batch)
          data_->drop({batch, batch, static_cast<std::int32_t>(batch % (settings_.staleness() + 1))});
      }
    };
    // A rollout's lanes end by the actors' word that no more weights come, and only then it says goodbye.
    if (job_->trains()) {
      end_weights();
      end_data();
    } else {
      end_data();
      end_weights();
    }
  }
  /// Planes part in peace; the leader puts the job's report together.
  void end_together(Stages& stages, RunReport& report) {
    if (job_->leads()) job_->say_end();
    const bool leaves = !job_->trains() && stages.asked_to_stop() && !stages.weights_ended.load();
    part(stages, leaves);
    const RankReport own = rank_report();
    if (!job_->leads()) {
      hand_in(own, *job_);
      if (!leaves) watch_->end();
      return;
    }
    dvla::gather(report, own, *job_, [this](int rank) { return watch_->lost(rank); });
    watch_->end();
    sum_up(report);
  }
  RankReport rank_report() {
    RankReport own = total({before_, figures()});
    own.rank = job_->rank();
    own.trace = trace::snapshot(trace_, job_->name());
    time_lanes(own);
    return own;
  }
  /// Counts of this rank in its present roles.
  RankReport figures() {
    RankReport own{};
    if (worker_) {
      const RolloutCounts counts = worker_->counts() - sampled_before_;
      own.env_steps = counts.env_steps;
      own.chunk_steps = counts.chunk_steps;
    }
    const auto data = data_->report();
    own.sent = data.sent;
    own.trained = data.trained;
    own.dropped = data.dropped;
    own.in_flight = data.in_flight;
    if constexpr (!routed) {  // which counts batches
      for (auto count :
           {&RankReport::sent, &RankReport::trained, &RankReport::dropped, &RankReport::in_flight})
        own.*count *= worker_->shape().episodes;
    } else {
      own.unacknowledged = data.unacknowledged;
      own.lost = data.lost;
      for (const auto& sender : data.senders) own.unreported += sender.unreported;
      own.data_bytes_sent = data.bytes_sent;
      own.data_bytes_received = data.bytes_received;
    }
    if constexpr (broadcasts) {
      const auto weights = control_->report();
      own.weight_bytes_sent = weights.bytes_sent;
      own.weight_bytes_received = weights.bytes_received;
    }
    if constexpr (requires { weights_->traffic().total(); })
      if (weights_) own.gradient_bytes_sent = weights_->traffic().total();
    return own;
  }

  const RunSettings<P> settings_;
  Recording recorded_;
  std::unique_ptr<LoneCluster> own_cluster_;
  Cluster& cluster_;
  std::unique_ptr<ScopedCluster> scope_;  ///< of the roles that were taken last
  std::optional<Job> job_;
  std::optional<Adaptation> adaptation_;  ///< where shares of the work move
  Trace trace_;
  Memory memory_;
  detail::TensorPool<Model> tensors_;
  std::unique_ptr<Environment> environment_;
  Model model_;
  RoutingPlan plan_;                  ///< of a routed data plane
  std::unique_ptr<Weights> weights_;  ///< an actor's
  ActorGroups groups_;
  std::unique_ptr<Group> actors_;         ///< of a job with several
  std::unique_ptr<Worker> worker_;        ///< a rollout's, and the leader's
  std::unique_ptr<Algorithm> algorithm_;  ///< an actor's
  std::unique_ptr<Data> data_;
  std::unique_ptr<Control> control_;
  std::function<void(const std::string&)> on_notice_;
  std::unique_ptr<Watch> watch_;  ///< a job's; ends before the planes
  std::vector<Iteration> history_;
  RolloutCounts trained_;  ///< in the batches of the history
  RankReport before_{};    ///< of this train(), in roles that this rank had earlier
  RolloutCounts sampled_before_;
  std::int64_t next_batch_ = 0;
};

/// What stands in for a run that cannot be built; none of it is defined.
template <class P, class Trace>
class Run<P, Trace, false> {
 public:
  using pipeline = P;
  explicit Run(const Config<P>&);
  Run(const Config<P>&, Cluster&);
  WarmStartResult warm_start(const stop_flag* = nullptr);
  double self_test();
  double evaluate(std::int64_t, Decoding = Decoding::mode, const stop_flag* = nullptr);
  RunReport train(std::function<void(const Iteration&)> = {}, std::function<void(std::int64_t)> = {},
                  const stop_flag* = nullptr);
};

}  // namespace dvla
