// The machinery that one rank of a job has in its roles: on a rollout environments' worker, on an actor
// weights and algorithm, on both their ends of the two planes, and the watch over the other ranks. Built when
// roles are known, together with all other ranks; taken down as a whole where roles change. Paper: rollouts,
// actors, and the planes between them. Says how parts are made and how weights get from one to another; what
// the lanes do with them batch by batch is run_stages.hpp, a run's beginning and end run.hpp. Reads and
// writes no files.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/algorithm/update_stats.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/pipeline/buildable.hpp"
#include "dvla/pipeline/cause.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/run_report.hpp"
#include "dvla/pipeline/run_settings.hpp"
#include "dvla/pipeline/watch.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/placement/make_group.hpp"
#include "dvla/sharding/actors.hpp"

namespace dvla {

/// Who is told of what happens to other ranks, or to rows of the environment, and does not end the run: nobody,
/// where it is empty.
using Notices = std::function<void(const std::string&)>;

/// What a rank's parts are built from, and what those who use them look at; all of it must outlive them.
template <class P, class Trace>
struct RankContext {
  const RunSettings<P>& settings;
  Cluster& cluster;  ///< of the whole run; the job's may be a part of it
  Job& job;
  const EnvironmentSpec& spec;
  machinery_t<typename P::environment, P>* environment;  ///< a rollout's
  machinery_t<typename P::model, P>& model;
  machinery_t<typename P::memory, P>& memory;
  Trace& trace;
  const Notices& notices;
  const Notices& on_hang;  ///< empty: nobody watches the environment's calls
};

/// Each lane calls what is its own, at the same time as the others; the watch's threads tell the planes of
/// losses. All else while no lane runs.
template <class P, class Trace>
class RankParts : public RankContext<P, Trace> {
  using Context = RankContext<P, Trace>;

 public:
  using Context::settings, Context::cluster, Context::job, Context::spec, Context::environment,
      Context::model, Context::memory, Context::trace, Context::notices, Context::on_hang;

  using Environment = machinery_t<typename P::environment, P>;
  using Model = machinery_t<typename P::model, P>;
  using Weights = machinery_t<typename P::sharding, P>;
  using Algorithm = machinery_t<typename P::algorithm, P>;
  using Data = machinery_t<typename P::data_plane, P>;
  using Control = machinery_t<typename P::control_plane, P>;
  using Memory = machinery_t<typename P::memory, P>;
  using Decision = typename Model::Decision;
  using Worker = RolloutWorker<Environment, Model, Trace>;

  /// Whether trajectories, and weights, travel between processes.
  static constexpr bool routed = detail::spans_processes<typename P::data_plane>;
  static constexpr bool broadcasts = detail::spans_processes<typename P::control_plane>;
  /// Whether one thread plays all lanes, so that none trains while another samples.
  static constexpr bool in_turn = requires { P::schedule::in_turn; };

  /// All but the planes; the watch too, but on a rollout that comes again. Every rank of the job builds its
  /// own at the same time; what one refuses, all refuse (Job::roll_call). `threads`: cores of the sampling
  /// lane.
  RankParts(const Context& context, int threads) : Context(context) {
    job.roll_call(Job::first_call);
    if constexpr (routed)
      plan_ = agree_on_routes(job.cluster(), job.roles(), groups_sent(settings, job), settings.group(),
                              settings.deadline());
    if (!job.trains()) model.hold_gradients(false);
    if (job.trains() && job.alone()) make_weights();
    if (job.rolls_out()) make_worker(threads);
    if (job.trains()) algorithm_ = algorithm_for(settings, spec, trained_episodes(), job.actors());
    if constexpr (requires { algorithm_->check(model.decision_layout({1})); })
      if (job.trains()) algorithm_->check(model.decision_layout({1}));
    job.roll_call(Job::last_call);  // from here on ranks wait for each other
    if (job.alone()) return;
    if (job.trains()) make_weights();
    if (job.incarnation() == 0) make_watch();
  }
  RankParts(const RankParts&) = delete;
  RankParts& operator=(const RankParts&) = delete;

  /// Planes and watch, once; every rank at about the same time. Returns the number of this rank's next batch:
  /// `next`, but on a rollout that comes again the one at which the actors let it in.
  std::int64_t connect(std::int64_t next) {
    if (job.incarnation() > 0) job.announce();
    make_data(next);
    make_control();
    if constexpr (routed)
      if (job.incarnation() > 0) next = data_->first_batch();
    if (job.alone()) return next;
    if (job.incarnation() > 0) make_watch();
    watch_->begin();
    return next;
  }
  bool connected() const { return data_ != nullptr; }

  /// Throws Error on a rank that is no actor.
  Weights& weights() {
    if (!weights_) throw Error(job.name(), " is no actor and has no weights to train");
    return *weights_;
  }
  /// Throws Error on a rank that is no rollout.
  Worker& worker() {
    if (!worker_) throw Error(job.name(), " is no rollout: it has no environments");
    return *worker_;
  }
  /// Once connected.
  Data& data() { return *data_; }
  Control& control() { return *control_; }

  /// Before there is a model: throws ConfigError where an actor could not make its algorithm or its weights.
  /// `sampled`: episodes of a batch that this rank makes itself; `parameters`: of the model, where it plans any.
  static void check(const RunSettings<P>& run, const Job& of, const EnvironmentSpec& shown,
                    std::int64_t sampled, std::span<const Parameter> parameters) {
    if (!of.trains()) return;
    std::int64_t episodes = sampled;
    if constexpr (routed)
      episodes = plan_routes(groups_sent(run, of), run.group(), of.roles(), of.cluster().topology())
                     .episodes_to(of.actor());
    (void)algorithm_for(run, shown, episodes, of.actors());
    if constexpr (requires { Weights::check(run.config().sharding, of.actors(), parameters); })
      Weights::check(run.config().sharding, of.actors(), parameters);
    if constexpr (!takes_groups) refuse_actors(P::sharding::name, of.actors());
  }

  /// That of one of `actors`, with `episodes` of a batch as its own. Throws ConfigError where there can be
  /// none.
  static std::unique_ptr<Algorithm> algorithm_for(const RunSettings<P>& run, const EnvironmentSpec& shown,
                                                  std::int64_t episodes, int actors) {
    const auto& knobs = run.config().algorithm;
    const std::uint64_t seed = run.seed();
    const std::int64_t dimensions = shown.action.dimensions;
    const BatchShape shape = run.shape(shown, episodes);
    if constexpr (requires { Algorithm(knobs, shape, dimensions, seed, actors); }) {
      return std::make_unique<Algorithm>(knobs, shape, dimensions, seed, actors);
    } else {
      refuse_actors(P::algorithm::name, actors);
      return std::make_unique<Algorithm>(knobs, shape, dimensions, seed);
    }
  }

  // ---- Over the actors, in their training lanes
  template <class BeforeStep>
  UpdateStats update(const Trajectory<Decision>& trajectory, std::int64_t batch, BeforeStep& before_step) {
    const UpdateStats stats = algorithm_->update(model, *weights_, trajectory.transition, trajectory.decision,
                                                 batch, before_step, trace);
    if constexpr (in_turn)  // the trainer's own model samples next
      if (job.roles().overlap()) gather();
    return stats;
  }
  void largest(std::span<std::int64_t> values) {
    if constexpr (shared_weights) weights_->max(values);
  }
  RolloutCounts summed(const RolloutCounts& own) {
    if constexpr (shared_weights) {
      if (job.actors() == 1) return own;
      std::array values{static_cast<double>(own.env_steps), static_cast<double>(own.chunk_steps)};
      weights_->sum(values);
      return {static_cast<std::int64_t>(values[0]), static_cast<std::int64_t>(values[1]), 0};
    } else {
      return own;
    }
  }

  /// Where somebody is to be told of a call to the environment that hangs.
  void watch_steps() {
    if (worker_ && on_hang)
      worker_->watch_steps(detail::nanoseconds(settings.config().run.step_deadline_s),
                           [this](const std::string& what) { on_hang(of_this_rank(what)); });
  }

  // ---- Weights
  /// Held while they change, so that another thread can find them standing still.
  std::mutex& changing() { return changing_; }
  /// With that: how many steps the optimiser had taken when an update began; -1 when it has come to its end.
  std::int64_t update_began = -1;
  bool torn() { return update_began >= 0 && update_began != weights_->steps(); }
  /// A rollout samples from two copies of its trainer's model; from the model itself and one copy where the
  /// rank does not train; from the model alone where the lanes take turns, so that nobody changes it while the
  /// worker is at work.
  static int copies_of_the_model(const Job& of) {
    if (!of.rolls_out()) return 0;
    return of.trains() ? (in_turn ? 0 : 2) : 1;
  }
  /// The model's parameters are whole when this returns.
  void gather() {
    if constexpr (requires { weights_->gather_all(); })
      if (weights_) weights_->gather_all();
  }
  std::uint64_t weights_checksum() {
    gather();
    return dvla::weights_checksum(model.units());
  }
  /// The trainer's weights, as `version`, into the worker's copies, without the control plane: while no lane
  /// runs.
  void install(std::int64_t version) {
    gather();
    fill_copy(version, [&](Model& copy) {
      if (&copy == &model) return;
      copy_weights(model.units(), copy.units());
      weights_written(copy);
    });
  }
  /// The copy that the worker reads next: while no lane runs.
  template <class Write>
  void fill_copy(std::int64_t version, Write write) {
    worker().models().fill([&](VersionedModel<Model>& back) {
      write(*back.model);
      back.version = version;
    });
    worker().models().try_swap();
  }
  /// The actors take over the leader's weights.
  void follow_the_leader() {
    if (!actors_) return;
    gather();
    for (const WeightUnit& unit : model.units())
      actors_->broadcast(unit.values, job.roles().actor(job.roles().leader()));
    weights_written(model);
    weights_->take_parameters();
  }
  /// To the rollouts, before they begin.
  void hand_out(std::int64_t version) {
    if constexpr (broadcasts) {
      if (!job.alone()) {
        if (job.trains() && control_->latest() < version) {
          pack(version);
          control_->publish(version);
        }
        if (job.rolls_out()) {
          std::atomic<bool> lost{false};
          control_->await(version, settings.deadline());
          receive(version, lost);
          worker_->models().try_swap();
        }
        return;
      }
    }
    if (worker_) install(version);
  }
  /// Between processes: this actor's part, into the control plane's buffer.
  void pack(std::int64_t version) requires broadcasts { weights_->pack(control_->begin(version)); }
  /// Into the worker's back copy. Sets `lost`, before the worker can go on, where it throws.
  void receive(std::int64_t version, std::atomic<bool>& lost) {
    auto span = trace.span("install", version - 1);
    worker_->models().fill([&](VersionedModel<Model>& back) {
      try {
        back.version = control_->receive(back.model->units(), version, settings.deadline());
        weights_written(*back.model);
      } catch (...) {
        lost.store(true, std::memory_order_release);
        throw;
      }
    });
  }

  /// Of what this rank's environments record in a batch of that shape.
  Transition layout(BatchShape shape) const {
    return transition_layout(spec.observation, spec.action, shape);
  }

  // ---- Losses, and the end
  void notice(const std::string& what) {
    if (notices) notices(what);
  }
  /// Whether a rank is gone.
  bool lost(int rank) const { return watch_ && watch_->lost(rank); }
  /// Of a job: throws JobEnded where `error` is but the consequence of what ended it.
  void name_the_cause(const std::exception& error) {
    const bool knows = dynamic_cast<const Stopped*>(&error) || dynamic_cast<const ConfigError*>(&error);
    if (job.alone() || knows) return;
    const std::string what = error.what();
    if (const std::string why = lost_what_it_needs(); !why.empty())
      throw JobEnded(why != what && why.starts_with(job.name()) ? why + " (" + what + ")" : why);
    const std::string own = job.trains() ? own_end(what) : what;
    if (const std::string why = detail::cause_of(cluster, own, job.trains()); why != own) throw JobEnded(why);
  }
  /// An actor's lane has failed: the others can read why before they see its planes close.
  void tell_of_failure() noexcept try {
    const std::exception_ptr error = std::current_exception();
    if (error && !job.alone() && job.trains() && lost_what_it_needs().empty())
      detail::cause_of(cluster, own_end(detail::error_text(error)), true);
  } catch (...) {  // they have to guess
  }
  /// What the leader does between batches, `work(stop)`: ended when a rank is lost that the run cannot go on
  /// without.
  template <class Work>
  auto unless_lost(const stop_flag* stop, Work work) {
    const stop_flag either(stop, &lost_);
    try {
      return work(&either);
    } catch (const Stopped&) {
      if (stop && stop->stop_requested()) throw;
      const std::string why = watch_->fatal();
      throw JobEnded(why.empty() ? "another rank was asked to stop" : why);
    } catch (const PeerError&) {
      if (const std::string why = lost_what_it_needs(); !why.empty()) throw JobEnded(why);
      throw;
    }
  }
  /// Ends every wait of an actor for another one, here and there.
  void end_collectives() noexcept {
    for (const auto& group : groups_) group->close();
  }
  /// Ends every wait for another rank in the planes.
  void cancel() noexcept {
    if constexpr (routed) data_->cancel();
    if constexpr (broadcasts) control_->close();
  }
  /// Planes part in peace, from the other ranks', where batches before `trained` were trained and those
  /// before `sampled` sampled. `leaves`: this rank alone.
  void part(std::int64_t trained, std::int64_t sampled, bool leaves) {
    const auto end_weights = [&] {
      if constexpr (broadcasts) leaves ? control_->close() : control_->finish(settings.deadline());
    };
    const auto end_data = [&] {
      if constexpr (routed) {
        data_->goodbye();
      } else {
        for (std::int64_t batch = trained; batch < sampled; ++batch)
          data_->drop({batch, batch, static_cast<std::int32_t>(batch % (settings.staleness() + 1))});
      }
    };
    // A rollout's lanes end by the actors' word that no more weights come, and only then it says goodbye.
    if (job.trains()) {
      end_weights();
      end_data();
    } else {
      end_data();
      end_weights();
    }
    if (watch_) watch_->admit_no_more();
  }
  /// In a job, after part(), when this rank has saved what it has to: only the leader is missed from now on.
  void trained() {
    trained_ = true;
    watch_->trained();
  }
  /// In a job, after part(): nobody is missed any more. `leaves`: this rank alone.
  void end_watch(bool leaves = false) { watch_->end(leaves); }

  // ---- Figures
  /// What was sampled before is not counted.
  void count_from_here() { counted_ = worker_ ? worker_->counts() : RolloutCounts{}; }
  /// Counts of this rank since then, in these roles; no times and no trace. `senders_report`: whether
  /// rollouts that are there say themselves what they sent.
  RankReport figures(bool senders_report = true) {
    RankReport own{};
    if (worker_) {
      const RolloutCounts counts = worker_->counts() - counted_;
      own.env_steps = counts.env_steps;
      own.chunk_steps = counts.chunk_steps;
      own.failed_rows = counts.failed_rows;
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
      for (const auto& sender : data.senders)
        own.unreported += senders_report ? sender.unreported : sender.received;
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

 private:
  /// Whether the weights know of other actors (sharding/actors.hpp).
  static constexpr bool shared_weights = requires(Weights & weights, std::span<std::int64_t> values) {
    weights.max(values);
  };

  static constexpr bool takes_groups =
      std::is_constructible_v<Weights, Model&, std::pmr::memory_resource&,
                              const detail::knobs_t<typename P::sharding>&, const GroupSource&>;

  // ---- Sizes
  /// By rollout, groups of a batch.
  static std::vector<std::int64_t> groups_sent(const RunSettings<P>& run, const Job& of) {
    std::vector<std::int64_t> groups;
    for (int rollout = 0; rollout < of.rollouts(); ++rollout)
      groups.push_back(of.share_of_groups(run.groups(), rollout).count * run.rollout_epochs());
    return groups;
  }
  Trajectory<Decision> trajectories(std::int64_t episodes) const {
    const BatchShape shape = settings.shape(spec, episodes);
    return trajectory_layout(layout(shape), model.decision_layout({shape.decisions, episodes}));
  }
  /// Of this actor's part of a batch.
  std::int64_t trained_episodes() const {
    if constexpr (routed)
      return plan_.episodes_to(job.actor());
    else
      return worker_->shape().episodes;
  }

  // ---- Making
  void make_worker(int threads) {
    for (int i = 0; i < copies_of_the_model(job); ++i)
      copies_.push_back(std::make_unique<Model>(std::as_const(model), share_frozen));
    Model* const back = copies_.empty() ? &model : copies_.back().get();
    Model* const front = copies_.size() < 2 ? &model : copies_.front().get();
    RolloutOptions options = settings.rollout_options(job, threads);
    options.adapter = settings.adapter(spec);
    worker_ = std::make_unique<Worker>(*environment, *front, *back, std::move(options), trace,
                                       [this](const std::string& what) { notice(of_this_rank(what)); });
    watch_steps();
  }
  void make_weights() {
    const auto& knobs = settings.config().sharding;
    const GroupSource groups = [this](const std::string& purpose) {
      return groups_.emplace_back(make_group(settings.config().run.collectives, job.cluster(),
                                             "actors/" + purpose, job.roles().actors, settings.deadline()));
    };
    if constexpr (takes_groups) {
      weights_ = std::make_unique<Weights>(model, memory.model(), knobs, groups);
      if constexpr (requires { weights_->trace_to(trace); })
        if (job.actors() > 1) weights_->trace_to(trace);
    } else {
      refuse_actors(P::sharding::name, job.actors());
      weights_ = std::make_unique<Weights>(model, memory.model());
    }
    if (job.actors() > 1) actors_ = groups("start");
  }
  static void refuse_actors(std::string_view policy, int actors) {
    if (actors > 1)
      throw ConfigError(policy, " trains on one actor, and the job has ", actors,
                        "; choose a placement with one");
  }
  void make_data(std::int64_t next) {
    if constexpr (routed) {
      typename Data::Layouts layouts;
      if (job.rolls_out()) layouts.rollout = trajectories(plan_.episodes_from(job.rollout()));
      if (job.trains()) layouts.actor = trajectories(plan_.episodes_to(job.actor()));
      typename Data::Options options;
      options.buffers = settings.staleness() + 1;
      options.first_batch = next;
      options.incarnation = job.incarnation();
      options.deadline = settings.inner_deadline();
      data_ = std::make_unique<Data>(std::move(layouts), plan_, job.cluster(), job.roles(), options,
                                     memory.environment());
    } else {
      const Trajectory<Decision> all = trajectories(worker_->shape().episodes);
      data_ = std::make_unique<Data>(all.transition, all.decision, settings.staleness() + 1,
                                     memory.environment());
    }
  }
  void make_control() {
    if constexpr (broadcasts) {
      const std::size_t bytes = trainable_bytes(model.units());
      std::vector<WeightPart> parts;
      if constexpr (requires { Weights::parts_of(model, 1); })
        parts = Weights::parts_of(model, job.actors());
      else
        parts = {{{0, bytes}}};
      control_ = std::make_unique<Control>(bytes, std::move(parts), settings.config().control_plane,
                                           job.cluster(), job.roles(), static_cast<int>(job.incarnation()),
                                           settings.deadline(), memory.environment());
    } else {
      control_ = std::make_unique<Control>(model.units());
    }
  }
  void make_watch() {
    WatchCallbacks callbacks;
    callbacks.lost_rollout = [this](int rank, const std::string& why) {
      if constexpr (routed)
        if (job.trains() && job.roles().rollout(rank) >= 0) data_->lose(job.roles().rollout(rank), why);
      if constexpr (broadcasts) control_->lose(rank);
      // An actor that is asked to stop ends the job's training, and what the leader does after it.
      if (job.leads() && job.roles().actor(rank) >= 0 && why == Heartbeat::has_left) lost_.request_stop();
      if (job.trains())
        notice(rank, "is gone: " + why +
                         (!trained_ && no_rollout_left() ? "; training waits for one to come again" : ""));
    };
    callbacks.end_run = [this](const std::string& why, bool begun) {
      std::string cause = detail::cause_of(cluster, why, job.trains());
      end_collectives();
      if (begun)
        cancel();
      else
        lost_.request_stop();
      return cause;
    };
    callbacks.lost_store = [this](const std::string& why) { notice("no rank can come again: " + why); };
    callbacks.let_in = [this](int rollout, std::int64_t incarnation) {
      if constexpr (routed && broadcasts) {
        data_->lose(rollout, "it came again");
        const auto limit = Watch::meeting(settings.heartbeat(), settings.deadline());
        data_->rejoin(rollout, incarnation, limit);
        control_->rejoin(rollout, static_cast<int>(incarnation), limit);
        notice(job.roles().rollouts[static_cast<std::size_t>(rollout)], "is here again");
      } else {
        (void)rollout, (void)incarnation;
      }
    };
    watch_ = std::make_unique<Watch>(job, settings.heartbeat(), settings.deadline(), std::move(callbacks));
  }

  /// Why the run cannot go on, or nothing; a lane may see that a rank is lost a little before the heartbeats do.
  std::string lost_what_it_needs() const {
    return watch_ ? watch_->fatal(std::chrono::milliseconds(250)) : "";
  }
  std::string of_this_rank(const std::string& what) const {
    return job.alone() ? what : job.name() + ": " + what;
  }
  std::string own_end(const std::string& what) const { return job.name() + " has ended: " + what; }
  bool no_rollout_left() const {
    const auto& rollouts = job.roles().rollouts;
    return std::all_of(rollouts.begin(), rollouts.end(), [this](int rank) { return watch_->lost(rank); });
  }
  void notice(int rank, const std::string& what) { notice(job.name(rank) + " " + what); }

  std::mutex changing_;
  RoutingPlan plan_;                            ///< of a routed data plane
  std::vector<std::shared_ptr<Group>> groups_;  ///< of all actors; an actor's
  std::unique_ptr<Weights> weights_;            ///< an actor's
  std::shared_ptr<Group> actors_;               ///< of a job with several
  std::vector<std::unique_ptr<Model>> copies_;  ///< of the model, to sample from
  std::unique_ptr<Worker> worker_;              ///< a rollout's
  std::unique_ptr<Algorithm> algorithm_;        ///< an actor's
  std::unique_ptr<Data> data_;
  std::unique_ptr<Control> control_;
  std::atomic<bool> trained_{false};
  stop_flag lost_;  ///< a rank, before training has begun, or an actor that was asked to stop, after it
  std::unique_ptr<Watch> watch_;  ///< a job's; ends before the planes
  RolloutCounts counted_;
};

}  // namespace dvla
