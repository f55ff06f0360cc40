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
#include "dvla/pipeline/adaptation.hpp"
#include "dvla/pipeline/buildable.hpp"
#include "dvla/pipeline/cause.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/run_report.hpp"
#include "dvla/pipeline/validate.hpp"
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

namespace detail {
/// A group that somebody else can close too.
class SharedGroup final : public Group {
 public:
  explicit SharedGroup(std::shared_ptr<Group> group) : group_(std::move(group)) {}
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  void broadcast(std::span<std::byte> bytes, int root) override { group_->broadcast(bytes, root); }
  void sum(std::span<float> values) override { group_->sum(values); }
  void sum(std::span<double> values) override { group_->sum(values); }
  void max(std::span<std::int64_t> values) override { group_->max(values); }
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override {
    group_->all_gather(part, all);
  }
  void reduce_scatter(std::span<const float> all, std::span<float> part) override {
    group_->reduce_scatter(all, part);
  }
  void barrier() override { group_->barrier(); }
  void close() noexcept override { group_->close(); }

 private:
  std::shared_ptr<Group> group_;
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
  /// A leader that never began tells those who wait for it.
  ~Run() {
    if (!job_->alone() && job_->leads() && !job_->begun())
      detail::cause_of(cluster_, job_->name() + ", which leads the job, ended before training began", true);
  }

  /// Leader: clones the scripted expert until the policy succeeds sometimes. Call before train(), once.
  /// Throws Stopped at the next decision or optimiser step once `stop` asks; the weights are then half
  /// cloned.
  WarmStartResult warm_start(const stop_flag* stop = nullptr) requires HasExpert<Environment> {
    Model::use_threads(caller_threads());
    WarmStartOptions options;
    options.seed = static_cast<std::uint64_t>(config_.run.seed);
    options.demonstrations = config_.run.demonstrations;
    options.noise = config_.run.demonstration_noise;
    options.target = config_.run.imitation_target;
    options.most_steps = config_.run.imitation_steps;
    const auto clone = [&](auto& weights) {
      return unless_lost(stop, [&](const stop_flag* either) {
        return dvla::warm_start(
            worker(), model_, weights, options, [this] { install(); }, either);
      });
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
    OwnedRecord<Transition> transition(worker().layout(1, config_.model.chunk),
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
    return unless_lost(stop, [&](const stop_flag* either) {
      return worker().evaluate(episodes, decoding, Stream::evaluation, 0, either);
    });
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
                  std::function<void(std::int64_t)> after_update = {}, const stop_flag* stop = nullptr) try {
    job_->begin_together(stop);
    if (!data_) make_planes();
    begin_with_the_leaders_weights();
    const std::int64_t first = next_batch_;
    const std::int64_t batches = std::max<std::int64_t>(config_.run.iterations - first, 0);
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
      options.staleness = staleness();
      options.deadline = deadline();
      options.stop = job_->alone() ? stop : &stages->ending;
      if (config_.run.record) options.record = &recorded_;
      if constexpr (replays) options.replay = &replayed_;
      const run_result result = Schedule::run(*stages, options, trace_);
      if (!job_->trains()) next_batch_ += result.batches;
      report.add(result);
      done += options.batches;
      if (result.stopped || done >= batches) break;
      adapt(*stages);
    }
    if constexpr (replays) check_end(report.batches);
    if (config_.run.record) recorded_.final_weights = checksum(weight_bytes());
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
  } catch (const std::exception& error) {
    name_the_cause(error);
    throw;
  }

  const Config<P>& config() const { return config_; }
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
  /// Whether the schedule repeats a recorded run.
  static constexpr bool replays = requires { P::schedule::staleness_is_recorded; };
  /// Whether shares of the work move while the run goes on.
  static constexpr bool adapts = requires { P::placement::adapts; };
  /// Whether the weights know of other actors (sharding/actors.hpp).
  static constexpr bool shared_weights = requires(Weights & weights, std::span<std::int64_t> values) {
    weights.max(values);
  };

  Run(const Config<P>& config, std::unique_ptr<LoneCluster> own, Cluster* given) try
      : config_(checked(config)),
        replayed_(recording_to_repeat()),
        own_cluster_(std::move(own)),
        cluster_(given ? *given : *own_cluster_),
        job_(std::in_place, cluster_, Placement::roles(config_.placement, cluster_.topology()), deadline()),
        memory_(config_.memory),
        tensors_(memory_.model()),
        environment_(std::make_unique<Environment>(environment_knobs(), memory_.environment())),
        model_(config_.model, inputs(), weight_seed()) {
    if ((replays || config_.run.record) && !job_->alone())
      throw ConfigError(std::string(replays ? "the schedule Replay" : "run.record") +
                        " is for a run of one process, and the job has " +
                        std::to_string(job_->cluster().world()));
    if constexpr (requires { config_.control_plane.form; } && !ModelOfTrainable<Model>)
      if (config_.control_plane.form == WeightForm::trainable)
        throw ConfigError("control_plane.form is trainable, but " + std::string(P::model::name) +
                          " does not say which of its weights train; use full or delta");
    if constexpr (adapts) {
      if (config_.run.record)
        throw ConfigError("run.record is for a run whose shares stand still, and Adaptive moves them");
      if (job_->incarnation() > 0)
        throw ConfigError(
            job_->name() +
            " comes again, but Adaptive's ranks change their roles: the others go on without it");
      adaptation_.emplace(config_.placement, *job_, sampling_threads(), training_threads(),
                          job_->leads() ? splits() : std::vector<int>());
    }
    take_place();
    if (!routed && !broadcasts && job_->alone()) make_planes();  // else when the first batch is known
  } catch (const std::exception& why) {
    if (given) Job::refuse(*given, why);
  }

  /// The parts that follow from the roles, but for the planes.
  void take_place() {
    job_->roll_call(Job::first_call);
    if constexpr (routed)
      plan_ = agree_on_routes(job_->cluster(), job_->roles(), group_bytes(), group(), deadline());
    if (job_->trains() && job_->alone()) make_weights();
    if (job_->rolls_out() || job_->leads())
      worker_ =
          std::make_unique<Worker>(*environment_, frozen_model(), frozen_model(), rollout_options(), trace_);
    if (job_->trains()) make_algorithm();
    job_->roll_call(Job::last_call);  // from here on ranks wait for each other
    if (job_->alone()) return;
    if (job_->trains()) make_weights();
    if (job_->incarnation() == 0) make_watch();
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
          sampled(static_cast<std::size_t>(whose.staleness()) + 1) {}

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
        ended.acquire_for(run.deadline());
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
      if constexpr (routed) more = run.data_->arrive(token);
      if (run.job_->alone()) return more;
      bool here = more;  // something of the batch
      if constexpr (routed) here = more && run.data_->arrival(token).episodes > 0;
      std::array<std::int64_t, 3> word{!more || asked_to_stop(), more ? token.batch - token.version : 0,
                                       here};
      run.largest(word);
      if (word[0] == 0 && word[2] == 0) word[0] = await_rollouts(token);
      if (word[0] != 0) {
        if constexpr (routed)
          if (more) run.data_->drop(token);
        end();
        return false;
      }
      token.version = token.batch - word[1];
      return true;
    }
    /// No actor has anything of this batch, for all rollouts are gone: the actors wait until one comes again,
    /// rather than train on nothing, batch after batch. Returns whether one of them is asked to stop.
    bool await_rollouts(const Token& token) {
      const auto limit = run.inner_deadline();
      const auto until = detail::deadline_after(limit);
      for (;;) {
        bool anybody = true;
        if constexpr (routed) anybody = run.data_->anybody();
        const bool late = std::chrono::steady_clock::now() > until;
        std::array<std::int64_t, 3> word{asked_to_stop(), anybody, late};
        run.largest(word);
        if (word[0] != 0 || word[1] != 0) return word[0] != 0;
        if (word[2] != 0)
          throw DeadlineError(
              run.job_->name() + " waited " + detail::seconds_text(limit) +
              " for a rollout to come again: all of them are gone, and nothing is there of batch " +
              std::to_string(token.batch));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
    void train(Token& token) {
      const Timed timed(training);
      const Trajectory<Decision>& trajectory = run.data_->consume(token);
      auto before_step = [&] {
        if (!packed.acquire(run.deadline(),
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
        run.control_->await(token.batch + 1, run.deadline());
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
      run.tell_of_failure();
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

  static Config<P> checked(const Config<P>& config) {
    validate(config);
    return config;
  }

  // ---- What is made of the configuration
  ModelInputs inputs() const {
    ModelInputs inputs{environment_->observation_spec(), environment_->action_spec(), config_.model.chunk};
    if constexpr (requires { config_.memory.device; }) inputs.device = config_.memory.device;
    return inputs;
  }
  std::uint64_t weight_seed() const {
    return stream_seed(static_cast<std::uint64_t>(config_.run.seed), Stream::weights);
  }
  std::unique_ptr<Model> frozen_model() const {
    return std::make_unique<Model>(config_.model, inputs(), weight_seed());
  }
  // An algorithm without groups, or without several passes a batch, need not have knobs for them.
  std::int64_t group() const {
    if constexpr (requires { config_.algorithm.group; })
      return config_.algorithm.group;
    else
      return 1;
  }
  std::int64_t rollout_epochs() const {
    if constexpr (requires { config_.algorithm.rollout_epochs; })
      return config_.algorithm.rollout_epochs;
    else
      return 1;
  }
  /// The groups of a pass that are this rollout's own, of `all_groups`.
  Share own_groups() const { return job_->share_of_groups(all_groups()); }
  std::int64_t all_groups() const {
    if constexpr (requires { config_.environment.environments; })
      return config_.environment.environments / group();
    else
      return 1;
  }
  /// A rollout has its share of the environments; the leader without one all of them, to evaluate; another
  /// actor one group, which never steps: it says what observations and actions are.
  auto environment_knobs() const {
    auto knobs = config_.environment;
    if constexpr (requires { knobs.environments; }) {
      const Share own = own_groups();  // refuses too few
      if (job_->rolls_out())
        knobs.environments = static_cast<int>(own.count * group());
      else if (!job_->leads())
        knobs.environments = static_cast<int>(group());
    } else if (job_->rollouts() > 1) {
      throw ConfigError(std::string(P::environment::name) +
                        " has no knob 'environments', so they cannot be shared by " +
                        std::to_string(job_->rollouts()) + " rollouts");
    }
    return knobs;
  }
  RolloutOptions rollout_options() const {
    RolloutOptions options;
    options.seed = static_cast<std::uint64_t>(config_.run.seed);
    options.chunk = config_.model.chunk;
    options.group = group();
    options.rollout_epochs = rollout_epochs();
    options.threads = sampling_threads();
    options.stages = config_.schedule.sampling_stages;
    options.deadline = deadline();
    if (job_->rolls_out() && !job_->alone()) {
      options.first_episode = own_groups().first * group();
      options.all_episodes = all_groups() * group();
    }
    return options;
  }
  int staleness() const {
    if constexpr (replays)
      return replayed_.staleness;
    else if constexpr (requires { config_.schedule.staleness; })
      return config_.schedule.staleness;
    else
      return 0;
  }
  Recording recording_to_repeat() const {
    Recording recording;
    if constexpr (replays) {
      recording = read_recording(config_.schedule.recording);
      if (recording.staleness > P::algorithm::max_staleness)
        throw ConfigError("schedule.recording '" + config_.schedule.recording +
                          "' is of a run with staleness " + std::to_string(recording.staleness) +
                          ", but the algorithm allows " + std::to_string(P::algorithm::max_staleness));
    }
    return recording;
  }
  int sampling_threads() const {
    return adaptation_ ? adaptation_->shares().sampling_threads : config_.schedule.sampling_threads;
  }
  int training_threads() const {
    return adaptation_ ? adaptation_->shares().training_threads : config_.schedule.training_threads;
  }
  int caller_threads() const { return std::max(sampling_threads(), training_threads()); }
  std::chrono::nanoseconds deadline() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(config_.schedule.deadline_s * 1e9));
  }
  std::chrono::nanoseconds heartbeat() const {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(config_.run.heartbeat_s * 1e9));
  }
  /// Of a wait inside a stage, for another rank: shorter, so that its error, which knows more, comes before
  /// that of the lane that waits for this one.
  std::chrono::nanoseconds inner_deadline() const { return deadline() * 3 / 4; }

  // ---- The parts that not every rank has
  BatchShape shape_of(std::int64_t episodes) const {
    return {environment_->horizon() / config_.model.chunk, episodes, config_.model.chunk};
  }
  Transition transitions(std::int64_t episodes) const {
    return transition_layout(environment_->observation_spec(), environment_->action_spec(),
                             shape_of(episodes));
  }
  Decision decisions(std::int64_t episodes) const {
    return model_.decision_layout({shape_of(episodes).decisions, episodes});
  }
  /// Of each group that this rank rolls out in a batch.
  std::vector<std::int64_t> group_bytes() const {
    if (!job_->rolls_out()) return {};
    const auto bytes =
        static_cast<std::int64_t>(record_bytes(trajectory_layout(transitions(group()), decisions(group()))));
    return std::vector<std::int64_t>(static_cast<std::size_t>(own_groups().count * rollout_epochs()), bytes);
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
    const auto seed = static_cast<std::uint64_t>(config_.run.seed);
    const std::int64_t dimensions = environment_->action_spec().dimensions;
    const BatchShape shape = shape_of(episodes);
    if constexpr (requires { Algorithm(config_.algorithm, shape, dimensions, seed, actors); }) {
      return std::make_unique<Algorithm>(config_.algorithm, shape, dimensions, seed, actors);
    } else {
      refuse_actors(P::algorithm::name, actors);
      return std::make_unique<Algorithm>(config_.algorithm, shape, dimensions, seed);
    }
  }
  void make_weights() {
    const GroupSource groups = [this](const std::string& purpose) { return actors_group(purpose); };
    if constexpr (requires { Weights(model_, memory_.model(), config_.sharding, groups); }) {
      weights_ = std::make_unique<Weights>(model_, memory_.model(), config_.sharding, groups);
      if constexpr (requires { weights_->trace_to(trace_); })
        if (job_->actors() > 1) weights_->trace_to(trace_);
    } else {
      refuse_actors(P::sharding::name, job_->actors());
      weights_ = std::make_unique<Weights>(model_, memory_.model());
    }
    if (job_->actors() > 1) actors_ = actors_group("start");
  }
  /// One that the loss of an actor can end.
  std::unique_ptr<Group> actors_group(const std::string& purpose) {
    std::shared_ptr<Group> group =
        job_->cluster().group("actors/" + purpose, job_->roles().actors, deadline());
    groups_.push_back(group);
    return std::make_unique<detail::SharedGroup>(std::move(group));
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
    if (job_->alone()) return;
    if (job_->incarnation() > 0) make_watch();
    watch_->begin();
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
      options.buffers = staleness() + 1;
      options.first_batch = next_batch_;
      options.incarnation = job_->incarnation();
      options.deadline = inner_deadline();
      data_ = std::make_unique<Data>(std::move(layouts), plan_, job_->cluster(), job_->roles(), options,
                                     memory_.environment());
    } else {
      const std::int64_t episodes = worker_->shape().episodes;
      data_ = std::make_unique<Data>(transitions(episodes), decisions(episodes), staleness() + 1,
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
      control_ = std::make_unique<Control>(floats, std::move(parts), config_.control_plane, job_->cluster(),
                                           job_->roles(), static_cast<int>(job_->incarnation()), deadline(),
                                           memory_.environment(), trainable);
    } else {
      control_ = std::make_unique<Control>(static_cast<std::size_t>(floats) * sizeof(float),
                                           memory_.environment(), deadline());
    }
  }

  void make_watch() {
    WatchCallbacks callbacks;
    callbacks.lost_rollout = [this](int rank, const std::string& why) {
      (void)this, (void)rank, (void)why;  // of planes within one process
      if constexpr (routed)
        if (job_->trains()) data_->lose(job_->roles().rollout(rank), why);
      if constexpr (broadcasts) control_->lose(rank);
    };
    callbacks.end_run = [this](const std::string& why, bool begun) {
      std::string cause = detail::cause_of(cluster_, why, job_->trains());
      for (const auto& group : groups_) group->close();
      if (!begun) {
        lost_.request_stop();
        return cause;
      }
      if constexpr (routed) data_->cancel();
      if constexpr (broadcasts) control_->close();
      return cause;
    };
    callbacks.let_in = [this](int rollout, std::int64_t incarnation) {
      if constexpr (routed && broadcasts) {
        data_->lose(rollout, "it came again");
        const auto limit = Watch::meeting(heartbeat(), deadline());
        data_->rejoin(rollout, incarnation, limit);
        control_->rejoin(rollout, static_cast<int>(incarnation), limit);
      } else {
        (void)rollout, (void)incarnation;
      }
    };
    watch_ = std::make_unique<Watch>(*job_, heartbeat(), deadline(), std::move(callbacks));
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
    if (batches == replayed_.batches && replayed_.final_weights &&
        *replayed_.final_weights != checksum(weight_bytes()))
      throw Error(
          "the replay of '" + config_.schedule.recording +
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
          control_->await(next_batch_, deadline());
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
                                         version, deadline());
        if constexpr (ModelElsewhere<Model>) back.model->weights_written();
      } catch (...) {
        lost.store(true, std::memory_order_release);
        throw;
      }
    });
  }

  // ---- Why a job ends
  /// A lane may see before the heartbeats do that a rank is lost.
  static constexpr std::chrono::milliseconds a_moment{250};
  /// Throws JobEnded where `error` is but the consequence of what ended the job.
  void name_the_cause(const std::exception& error) {
    const bool knows = dynamic_cast<const Stopped*>(&error) || dynamic_cast<const ConfigError*>(&error);
    if (job_->alone() || knows) return;
    const std::string what = error.what();
    if (const std::string why = watch_ ? watch_->fatal(a_moment) : ""; !why.empty())
      throw JobEnded(why != what && why.starts_with(job_->name()) ? why + " (" + what + ")" : why);
    const std::string own = job_->trains() ? own_end(what) : what;
    if (const std::string why = detail::cause_of(cluster_, own, job_->trains()); why != own)
      throw JobEnded(why);
  }
  std::string own_end(const std::string& what) const { return job_->name() + " has ended: " + what; }
  /// An actor's lane has failed: the others can read why before they see its planes close.
  void tell_of_failure() noexcept try {
    const std::exception_ptr error = std::current_exception();
    if (error && !job_->alone() && job_->trains() && watch_->fatal(a_moment).empty())
      detail::cause_of(cluster_, own_end(detail::error_text(error)), true);
  } catch (...) {  // they have to guess
  }
  /// What the leader prepares: ended when a rank is lost meanwhile.
  template <class Work>
  auto unless_lost(const stop_flag* stop, Work work) {
    const stop_flag either(stop, &lost_);
    try {
      return work(&either);
    } catch (const Stopped&) {
      if (stop && stop->stop_requested()) throw;
      throw JobEnded(watch_->fatal());
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
      if (rollouts > all_groups()) continue;
      try {
        const std::int64_t groups = share_of(all_groups() * rollout_epochs(), actors, actors - 1).count;
        (void)algorithm_for(groups * group(), actors);
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
      if (!adaptation_->look(*job_, own, next_batch_, all_groups(), lost, deadline())) return;
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
      const auto all = cluster_.group("carry/" + number, everybody, deadline());
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
      groups_.clear();
      environment_.reset();
    }
    {
      auto span = trace_.span("make", next_batch_);
      auto scope = std::make_unique<ScopedCluster>(cluster_, "roles/" + number);
      const Shares& shares = adaptation_->shares();
      job_.emplace(*scope, detail::separated(shares.actors, cluster_.topology()), deadline(), shares.groups);
      scope_ = std::move(scope);
      try {
        environment_ = std::make_unique<Environment>(environment_knobs(), memory_.environment());
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
      if constexpr (broadcasts) leaves ? control_->close() : control_->finish(deadline());
    };
    const auto end_data = [&] {
      if constexpr (routed) {
        data_->goodbye();
      } else {
        for (std::int64_t batch = next_batch_; batch < stages.sampled_until; ++batch)
          data_->drop({batch, batch, static_cast<std::int32_t>(batch % (staleness() + 1))});
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
      job_->tell("report", serialise(own));
      if (!leaves) watch_->end();
      return;
    }
    for (int rank = 0; rank < job_->cluster().world(); ++rank) {
      if (rank == job_->rank()) {
        report.ranks.push_back(own);
        continue;
      }
      if (watch_->lost(rank) && !job_->has_told("report", rank)) {
        report.silent.push_back(rank);
        continue;
      }
      try {
        report.ranks.push_back(parse_rank_report(job_->told("report", rank)));
      } catch (const DeadlineError&) {
        report.silent.push_back(rank);
      }
    }
    watch_->end();
    report.timing = job_timing(report.ranks);
    const RankReport all = dvla::total(report.ranks);
    report.env_steps = all.env_steps;
    report.chunk_steps = all.chunk_steps;
  }
  RankReport rank_report() {
    RankReport own = total({before_, figures()});
    own.rank = job_->rank();
    own.trace = trace::snapshot(trace_, job_->name());
    std::array<double, 4> seconds{};
    std::array<std::int64_t, 4> spans{};
    for (const trace::span_record& span : own.trace.spans)
      for (std::size_t lane = 0; lane < 4; ++lane)
        if (std::string_view(span.category) == "lane" &&
            std::string_view(span.name) == trace::lane_span_names[lane]) {
          seconds[lane] += static_cast<double>(span.end_ns - span.begin_ns) * 1e-9;
          ++spans[lane];
        }
    const auto mean = [&](std::size_t lane) {
      return spans[lane] > 0 ? seconds[lane] / static_cast<double>(spans[lane]) : 0;
    };
    own.rollout_time_s = mean(0);
    own.actor_time_s = mean(1);
    own.sync_time_s = mean(2) + mean(3);
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

  Config<P> config_;
  Recording replayed_, recorded_;
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
  RoutingPlan plan_;                            ///< of a routed data plane
  std::unique_ptr<Weights> weights_;            ///< an actor's
  std::vector<std::shared_ptr<Group>> groups_;  ///< of the actors, all of them
  std::unique_ptr<Group> actors_;               ///< of a job with several
  std::unique_ptr<Worker> worker_;              ///< a rollout's, and the leader's
  std::unique_ptr<Algorithm> algorithm_;        ///< an actor's
  std::unique_ptr<Data> data_;
  std::unique_ptr<Control> control_;
  stop_flag lost_;                ///< a rank, before training has begun
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
