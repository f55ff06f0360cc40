// A pipeline at work: the nine policies' machinery put together and driven through the four lanes, in one
// process or as one rank of a job. Paper: the D-VLA system; docs/architecture.md has the four lanes as
// pseudocode with the class that owns each line. Here are beginning and end, stretches of batches, and
// changes of roles; what this rank has in its roles is rank_parts.hpp, what its lanes call run_stages.hpp.
// Reads and writes no files, prints nothing: see experiment.hpp for a run with a folder, pictures and a
// progress bar, and checkpoint.hpp for saving and resuming.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/control_plane/in_process.hpp"
#include "dvla/core/denormals.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/record.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/model/self_test.hpp"
#include "dvla/pipeline/adaptation.hpp"
#include "dvla/pipeline/buildable.hpp"
#include "dvla/pipeline/cause.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/evaluation.hpp"
#include "dvla/pipeline/history.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/memory_plan.hpp"
#include "dvla/pipeline/rank_parts.hpp"
#include "dvla/pipeline/requests.hpp"
#include "dvla/pipeline/run_report.hpp"
#include "dvla/pipeline/run_settings.hpp"
#include "dvla/pipeline/run_stages.hpp"
#include "dvla/pipeline/warm_start.hpp"
#include "dvla/placement/deal.hpp"
#include "dvla/placement/scoped_cluster.hpp"
#include "dvla/schedule/runner.hpp"
#include "dvla/sharding/carried_state.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/trace/recorder.hpp"

namespace dvla {

/// What a trainer's weights are where no update changes them.
struct StillWeights {
  bool torn;  ///< an update was broken off between two of its steps; else they are those of next_batch()
};

namespace detail {
/// Where two JSON values differ first: the field, as "run.seed", and what it is in each.
struct JsonDifference {
  JsonDifference(const nlohmann::json& first, const nlohmann::json& second) {
    const std::string path = nlohmann::json::diff(first, second).front().at("path");
    field = path.substr(1);
    std::replace(field.begin(), field.end(), '/', '.');
    const nlohmann::json::json_pointer place(path);
    for (const auto& [text, of] : {std::pair(&there, &first), std::pair(&here, &second)})
      *text = of->contains(place) ? of->at(place).dump() : "missing";
  }
  std::string field, there, here;
};

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
  using Parts = RankParts<P, Trace>;

 public:
  using pipeline = P;
  using Environment = typename Parts::Environment;
  using Model = typename Parts::Model;
  using Weights = typename Parts::Weights;
  using Data = typename Parts::Data;
  using Memory = typename Parts::Memory;
  using Decision = typename Parts::Decision;
  using Worker = typename Parts::Worker;
  using Schedule = machinery_t<typename P::schedule, P>;
  using Placement = machinery_t<typename P::placement, P>;

  using OnPlan = std::function<void(const MemoryPlan&, const Job&)>;

  /// Batches that train() makes room for in the history before it begins; more room comes as it is needed.
  static constexpr std::int64_t history_room = History::room;

  /// One process, which is every role. Throws ConfigError before anything starts if a value is wrong or parts
  /// do not fit.
  /// `on_plan` is given the memory that is about to be taken, before it is.
  explicit Run(const Config<P>& config, const OnPlan& on_plan = {})
      : Run(config, std::make_unique<LoneCluster>(), nullptr, on_plan) {}
  /// One rank of a job. What one rank refuses, all refuse, each with a ConfigError that says who and why.
  /// `cluster` must outlive this, and serves this run only.
  Run(const Config<P>& config, Cluster& cluster, const OnPlan& on_plan = {})
      : Run(config, nullptr, &cluster, on_plan) {}
  /// A leader that never began tells those who wait for it; one that has trained lets the rollouts go.
  ~Run() {
    if (job_->alone() || !job_->leads()) return;
    if (!job_->begun())
      detail::cause_of(cluster_, job_->name() + ", which leads the job, ended before training began", true);
    if (serving_) try {
        job_->dismiss([this](int rank) { return parts_->lost(rank); });
        parts_->end_watch();
      } catch (const std::exception&) {  // then they see that this rank is gone
      }
  }

  /// Leader: clones the scripted expert until the policy succeeds sometimes. Call before train(), once.
  /// Throws Stopped at the next decision or optimiser step once `stop` asks; the weights are then half
  /// cloned.
  WarmStartResult warm_start(const stop_flag* stop = nullptr) {
    if constexpr (!HasExpert<Environment>) {
      static_assert(HasExpert<Environment>,
                    "dvla: the environment has no scripted expert, so there is nothing for warm_start() to "
                    "clone; leave the call out, or add expert(row, action) (environment/concept.hpp)");
    } else {
      if (config().run.demonstrations < 1)
        throw Error(
            "Run::warm_start has no demonstrations to clone; raise run.demonstrations or leave it out");
      if (next_batch() > 0)
        throw Error("Run::warm_start was called after batch ", next_batch() - 1,
                    " was trained; it comes before training");
      Model::use_threads(threads().most());
      const auto clone = [&](auto& weights) {
        return parts().unless_lost(stop, [&](const stop_flag* either) {
          return dvla::warm_start(*requests_, model_, weights, config().run, either);
        });
      };
      if (job_->actors() == 1) return clone(weights());
      // The other actors take no part in it: they get its outcome when training begins.
      UnshardedWeights<Model> own(model_, *std::pmr::new_delete_resource());
      return clone(own);
    }
  }

  /// Leader: with weights that have not changed, log-probabilities that the trainer computes again are those
  /// that the sampler stored, whatever the order of rows: both then agree about what a decision is. Returns
  /// how far they are apart; throws Error beyond what model/self_test.hpp allows. train() begins with it.
  RatioError self_test() {
    return ask(nullptr, [&](const stop_flag* stop) {
      auto first = requests_->probe(stop);
      const auto at_0 = [](auto field) { return field.at(0); };
      const Observation observation = cut_record((*first.transition)->observation, at_0);
      const Decision decision = cut_record(**first.decision, at_0);
      std::vector<std::int64_t>& rows = first.answer.rows;
      const RatioError found = check_ratio(model_, observation, decision, rows);
      std::reverse(rows.begin(), rows.end());
      check_ratio(model_, observation, decision, rows);
      tested_ = true;
      return found;
    });
  }

  /// Leader: has the rollouts play these episodes, each once: fresh_episodes(n), evaluation_episodes(), or any
  /// other. Throws Stopped at the next decision once `stop` asks. A rollout that is lost when training has ended
  /// is named by a notice, and the others play its episodes.
  std::vector<EvaluatedEpisode> evaluate(std::span<const Start> episodes, Decoding decoding = Decoding::mode,
                                         const stop_flag* stop = nullptr) {
    return ask(stop,
               [&](const stop_flag* either) { return requests_->evaluate(episodes, decoding, either); });
  }
  /// Leader: success over fresh episodes that training never sees.
  double evaluate(std::int64_t episodes, Decoding decoding = Decoding::mode,
                  const stop_flag* stop = nullptr) {
    return success_of(evaluate(fresh_episodes(episodes), decoding, stop));
  }
  /// Of seeds that training never draws; the k-th is the same however many there are.
  std::vector<Start> fresh_episodes(std::int64_t count) {
    return fresh_starts(settings_.seed(), Stream::evaluation, 0, count);
  }
  /// What run.evaluation_cases names, or else run.evaluation_episodes fresh ones.
  const std::vector<Start>& evaluation_episodes() const { return evaluation_episodes_; }

  /// Leader: see Requests::draw. Throws Stopped at the next picture once `stop` asks.
  template <class OnPicture>
  void draw(std::int64_t columns, std::int64_t side, OnPicture on_picture, const stop_flag* stop = nullptr,
            Decoding decoding = Decoding::mode) requires HasRender<Environment> {
    ask(stop, [&](const stop_flag* either) { requests_->draw(columns, side, decoding, either, on_picture); });
  }

  /// Trains until `config.run.iterations` batches have been trained in all (a resumed run does the rest), or
  /// `stop` asks. On each actor, `on_iteration(const Iteration&)` is called for each batch, in order, off the
  /// lanes' critical path; `after_update(batch)` in the training lane between two updates, where the weights
  /// stand still: for checkpoints. In steady state a batch allocates nothing, but that the history of a run
  /// of more than history_room batches doubles its room from time to time.
  ///
  /// In a job: begins once the leader calls it, with the leader's weights. A stop that any actor is asked for
  /// ends all at the next batch; batches beyond it that are under way are dropped, and counted. A rollout
  /// that is asked alone leaves the job, which goes on. Before training and after it the rollouts do what the
  /// leader asks for: on them this returns when the leader's Run ends. `at_end(batches)` is called, where so
  /// many have been trained here, before that, on all actors at the same time.
  RunReport train(std::function<void(const Iteration&)> on_iteration = {},
                  std::function<void(std::int64_t)> after_update = {}, const stop_flag* stop = nullptr,
                  std::function<void(std::int64_t)> at_end = {}) {
    const std::int64_t left = std::max<std::int64_t>(config().run.iterations - next_batch(), 0);
    return train_batches(left, {std::move(on_iteration), std::move(after_update), stop, std::move(at_end)});
  }
  /// The same for exactly so many batches more, whatever `run.iterations` says: for a program whose loop is its
  /// own. Between two calls no lane runs, so weights may be evaluated, saved or changed; within a call the
  /// lanes overlap as ever. In one process only: a job parts when its training ends.
  RunReport train(std::int64_t batches, std::function<void(const Iteration&)> on_iteration = {},
                  std::function<void(std::int64_t)> after_update = {}, const stop_flag* stop = nullptr) {
    if (batches < 0) throw Error("Run::train was asked for ", batches, " batches; ask for 0 or more");
    if (!job_->alone())
      throw Error(
          "Run::train(batches) is for a run of one process; a job trains run.iterations batches in one call");
    return train_batches(batches, {std::move(on_iteration), std::move(after_update), stop});
  }

  /// One sentence for each row of the environment that fails; on an actor also for each rollout that is lost or
  /// comes again while train() goes on. Called from threads of this class, several at once. Set before train().
  void on_notice(Notices notices) { notices_ = std::move(notices); }

  /// `told` is called once, from a thread of its own, when a call to the environment, or to the model that acts,
  /// has not come back within run.step_deadline_s: with a sentence that names rows or model, batch and decision.
  /// That call cannot be ended, so
  /// `told` had better end the process (std::_Exit), having saved what it wants by while_still(). Before train().
  void on_hang(Notices told) {
    on_hang_ = std::move(told);
    parts().watch_steps();
  }
  /// On an actor: calls `work(weights)` while no update changes them, from any thread, and also when train() has
  /// thrown. False: they did not stand still within schedule.deadline_s.
  template <class Work>
  bool while_still(Work work) {
    const auto until = detail::deadline_after(settings_.deadline());
    std::unique_lock still(parts().changing(), std::try_to_lock);
    while (!still && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      (void)still.try_lock();
    }
    if (!still) return false;
    work(StillWeights{.torn = parts().torn()});
    return true;
  }
  /// On an actor that has failed: those that wait for it wait no more. Whether another rank is gone.
  void end_collectives() { parts().end_collectives(); }
  bool lost(int rank) const { return parts_ && parts_->lost(rank); }

  const Config<P>& config() const { return settings_.config(); }
  const Job& job() const { return *job_; }
  /// All batches trained since the start, those before a resume included. It grows as the run goes on: read
  /// it in `after_update` or while no lane runs, not in `on_iteration`, which is given its batch.
  const std::vector<Iteration>& history() const { return history_.iterations(); }
  /// The same for an observer beside training.
  const History& live_history() const { return history_; }
  /// What the last train() wrote down where `run.record` asked for it, also if it threw: the schedule Replay
  /// repeats it. Empty otherwise.
  const Recording& recording() const { return recorded_; }
  /// What the environment says of itself, on every rank; the environment itself, on a rollout.
  const EnvironmentSpec& spec() const { return spec_; }
  /// How it plays (HasConventions); empty where it does not say.
  const Conventions& conventions() const { return conventions_; }
  Environment& environment() { return *environment_; }
  Model& model() { return model_; }
  const Model& model() const { return model_; }
  /// Throws Error on a rank that is no actor.
  Weights& weights() { return parts().weights(); }
  /// Throws Error on a rank that is no rollout.
  Worker& worker() { return parts().worker(); }
  Memory& memory() { return memory_; }
  const MemoryPlan& memory_plan() const { return plan_; }
  /// Between the model's units and the environment's.
  Adapter adapter() const { return settings_.adapter(spec_); }
  Data& data() { return parts().data(); }
  Trace& trace() { return trace_; }
  /// Number of the next batch = version of the trainer's weights. Set by a resumed run.
  std::int64_t next_batch() const { return history_.next_batch(); }
  /// In a job: on every rank; weights are the leader's.
  void continue_from(std::int64_t batch, std::vector<Iteration> history) {
    history_.continue_from(batch, std::move(history));
  }

 private:
  using Stages = RunStages<P, Trace>;
  static constexpr bool routed = Parts::routed;
  static constexpr bool broadcasts = Parts::broadcasts;
  static constexpr bool replays = RunSettings<P>::replays;
  static constexpr bool adapts = RunSettings<P>::adapts;

  Run(const Config<P>& config, std::unique_ptr<LoneCluster> own, Cluster* given, const OnPlan& on_plan) try
      : settings_(config, ranks_on_this_machine(given)),
        own_cluster_(std::move(own)),
        cluster_(given ? *given : *own_cluster_),
        job_(take_place()),
        memory_(settings_.config().memory),
        tensors_(memory_.model()),
        spec_(make_environment()),
        conventions_(make_conventions()),
        evaluation_episodes_(make_evaluation()),
        plan_(plan_memory(on_plan)),
        model_(settings_.config().model, settings_.model_inputs(spec_), settings_.weight_seed()) {
    const Extents decided = model_.decision_layout({1}).log_prob.extents(),
                  wanted{1, config.model.chunk, spec_.action.dimensions};
    if (decided != wanted)
      throw ConfigError("the model ", P::model::name, " lays out Decision::log_prob with ", decided.count(),
                        " elements a decision, or in another shape than [", wanted[1], ", ", wanted[2],
                        "], chunk by action dimensions; what it writes there would not fit");
    if constexpr (adapts)
      adaptation_.emplace(settings_.config().placement, *job_, threads().sampling, threads().training,
                          job_->leads() ? splits() : std::vector<int>());
    build_parts();
    if (!routed && !broadcasts && job_->alone()) connect();  // else when the first batch is known
  } catch (const std::exception& why) {
    if (given) Job::refuse(*given, why);
  }

  static int ranks_on_this_machine(const Cluster* job) {
    if (job == nullptr) return 1;
    const std::vector<int>& node = job->topology().node;
    return static_cast<int>(std::ranges::count(node, node[static_cast<std::size_t>(job->rank())]));
  }
  RunReport train_batches(std::int64_t batches, const TrainCall& call) try {
    if (job_->leads() && !tested_) self_test();
    job_->begin_together(call.stop, serve(call.stop));
    if (!parts().connected()) connect();
    parts_->follow_the_leader();
    parts_->hand_out(next_batch());
    const std::int64_t first = next_batch();
    history_.begin(batches);
    const RolloutCounts trained_before = history_.trained();
    before_ = {};
    parts_->count_from_here();
    RunReport report;
    std::optional<Stages> stages;
    for (std::int64_t done = 0;;) {
      stages.emplace(*parts_, history_, call, threads());
      run_options options;
      options.share = job_->share();
      options.first_batch = first + done;
      options.batches = std::min(stretch(), batches - done);
      options.staleness = settings_.staleness();
      options.deadline = settings_.deadline();
      options.stop = stages->stop();
      options.on_give_up = on_hang_;
      if (config().run.record) options.record = &recorded_;
      if constexpr (replays) options.replay = &settings_.replayed();
      const run_result result = Schedule::run(*stages, options, trace_);
      if (!job_->trains()) history_.skip_to(next_batch() + result.batches);
      report.add(result);
      done += options.batches;
      if (result.stopped || done >= batches) break;
      adapt(*stages);
    }
    if constexpr (replays) check_end(report.batches);
    if (config().run.record) recorded_.final_weights = parts_->weights_checksum();
    report.train_wall_s = call.elapsed();
    report.batches = next_batch() - first;
    if (job_->alone()) {
      const RolloutCounts counts = history_.trained() - trained_before;
      report.env_steps = counts.env_steps;
      report.chunk_steps = counts.chunk_steps;
      report.failed_rows = counts.failed_rows;
    }
    report.timing = trace::make_report(trace_.spans(), trace_.dropped());
    if (adaptation_) report.looks = adaptation_->looks();
    if (!job_->alone())
      end_together(*stages, report, call);
    else if (call.at_end)
      call.at_end(report.batches);
    return report;
  } catch (const std::exception& error) {
    if (parts_) parts_->name_the_cause(error);
    throw;
  }

  /// Who this rank is in its job, for which this pipeline, so configured, is found good.
  std::unique_ptr<Job> take_place() {
    auto job = std::make_unique<Job>(
        cluster_, Placement::roles(settings_.config().placement, cluster_.topology()), settings_.deadline());
    settings_.check(*job);
    return job;
  }
  std::vector<Start> make_evaluation() {
    const RunKnobs& knobs = config().run;
    if (knobs.evaluation_cases.empty()) return fresh_episodes(knobs.evaluation_episodes);
    std::vector<Start> episodes;
    for (const std::int64_t each : parse_cases(knobs.evaluation_cases, spec_.cases))
      episodes.push_back({.case_index = each});
    return episodes;
  }
  /// Whether a warm start comes first.
  bool clones() const {
    return HasExpert<Environment> && config().run.resume.empty() && config().run.demonstrations > 0;
  }
  /// A rollout's, and what is known of it on every rank, as the ranks of a job agree.
  EnvironmentSpec make_environment() {
    const auto knobs = settings_.environment_knobs(*job_);
    std::optional<EnvironmentSpec> own;
    if (job_->rolls_out()) {
      environment_ = std::make_unique<Environment>(knobs, memory_.environment());
      check_specs(*environment_, P::environment::name);
      // An environment of several tasks may have an expert for some of them: which, it says itself.
      if constexpr (requires { environment_->check_expert(); })
        if (clones()) environment_->check_expert();
      own = spec_of(*environment_);
    } else if constexpr (HasStaticSpec<Environment, decltype(config().environment)>) {
      own = Environment::spec(config().environment);
    }
    if (job_->alone()) return *own;
    const std::string text = own ? json_text(*own) : "", first = job_->agree("environment", text);
    auto agreed = parse_json<EnvironmentSpec>(first, "what a rollout says of the environment");
    if (own && first != text) {
      const detail::JsonDifference differs(json_of(agreed), json_of(*own));
      throw ConfigError("the environment of ", job_->name(),
                        " is not that of the rank which was built first: ", differs.field, " is ",
                        differs.there, " there and ", differs.here, " here");
    }
    return agreed;
  }
  Conventions make_conventions() const {
    if constexpr (HasConventions<Environment, decltype(config().environment)>)
      return Environment::conventions(config().environment);
    else
      return {};
  }
  /// What this rank will take in its roles, found good and told, and the environment pool's pages in place. Of
  /// a model that plans nothing (ModelPlan) only what is no model's.
  MemoryPlan plan_memory(const OnPlan& on_plan) {
    check_devices(spec_.observation, P::environment::name, reads_on<Model>, P::model::name);
    (void)settings_.adapter(spec_);  // throws where its statistics do not fit
    MemoryPlan plan;
    const std::int64_t environments = environment_ ? environment_->size() : 0;
    const std::int64_t here = environments * settings_.rollout_epochs();
    const std::int64_t all = settings_.groups() * settings_.group() * settings_.rollout_epochs();
    const std::int64_t trained = job_->trains() ? (all + job_->actors() - 1) / job_->actors() : 0;
    const BatchShape shape = settings_.shape(spec_, 1);
    ModelPlan model;
    const ModelInputs inputs = settings_.model_inputs(spec_);
    if constexpr (PlanningModel<Model, decltype(config().model)>)
      model = Model::plan(config().model, inputs,
                          settings_.sampling_rows(std::max<std::int64_t>(environments, 1)),
                          settings_.training_rows(trained * shape.decisions));
    Parts::check(settings_, *job_, spec_, here, model.parameters);
    for (const auto& [name, words] : conventions_) plan.note(name + ": " + words);
    for (const std::string& note : model.notes) plan.note(note);
    if (!model.parameters.empty()) plan.note(parameters_text(model.parameters));
    WeightsPlan weights{.parameters = model.parameters,
                        .copies = Parts::copies_of_the_model(*job_),
                        .trains = job_->trains(),
                        .actors = detail::spans_processes<typename P::sharding> ? job_->actors() : 1};
    if constexpr (requires { Weights::units_at_once(config().sharding); }) {
      weights.units_at_once = Weights::units_at_once(config().sharding);
      weights.shard_frozen = config().sharding.shard_frozen;
    }
    plan_weights(plan, weights);
    if (job_->rolls_out()) plan.add("activations of sampling", MemoryPlace::model_pool, model.sampling_bytes);
    if (job_->trains())
      plan.add("activations of training", MemoryPlace::model_pool,
               std::max(model.training_bytes, clones() ? model.cloning_bytes : 0));
    if (broadcasts && !job_->alone()) {
      std::size_t trainable = 0;
      for (const Parameter& each : model.parameters) trainable += each.trainable ? each.bytes() : 0;
      plan.add("buffers of the control plane", MemoryPlace::environment_pool,
               2 * (job_->rolls_out() ? trainable : trainable / static_cast<std::size_t>(job_->actors())));
    }
    const std::size_t recorded = record_bytes(transition_layout(spec_.observation, spec_.action, shape)),
                      episode = recorded + model.decision_bytes * static_cast<std::size_t>(shape.decisions);
    const std::int64_t in_flight =
        routed ? (job_->rolls_out() ? here : 0) + trained : (job_->rolls_out() ? here : 0);
    plan.add("batches in flight", MemoryPlace::environment_pool,
             episode * static_cast<std::size_t>(in_flight * (settings_.staleness() + 1)));
    if (clones())
      plan.add("demonstrations", MemoryPlace::heap,
               recorded * static_cast<std::size_t>((job_->leads() ? config().run.demonstrations : 0) +
                                                   (job_->rolls_out() ? environments : 0)));
    // A rank that trains alone is sent all rows of a rollout; a prefix that they keep becomes tensors once more.
    std::int64_t tested = environments;
    if (job_->leads())
      for (std::size_t at = 0; at < job_->roles().rollouts.size(); ++at)
        tested = std::max(tested, settings_.environments_of(*job_, static_cast<int>(at)));
    plan.add("decisions of the self-test", MemoryPlace::heap,
             2 * model.decision_bytes * static_cast<std::size_t>(tested));
    const std::size_t taken = memory_.environment().report().in_use;
    plan.add("simulators", MemoryPlace::environment_pool, taken);
    if constexpr (HasOutsideBytes<Environment>)
      if (environment_)
        plan.add("simulators, beside the pool", MemoryPlace::heap, environment_->outside_bytes());
    if (on_plan) on_plan(plan, *job_);
    plan.check(usable_memory_bytes() - std::min<std::size_t>(usable_memory_bytes(), resident_bytes()));
    const bool one_pool = &memory_.environment() == &memory_.model();
    for (const auto& [place, pool] : {std::pair(MemoryPlace::environment_pool, &memory_.environment()),
                                      std::pair(MemoryPlace::model_pool, &memory_.model())}) {
      const std::size_t needed = (one_pool ? plan.total() - plan.of(MemoryPlace::heap) : plan.of(place)) +
                                 (one_pool || place == MemoryPlace::model_pool ? plan.addresses() : 0);
      if (needed > pool->report().capacity)
        throw ConfigError("the ", pool->report().name, " may have ", mebibytes(pool->report().capacity),
                          ", and the run needs ", mebibytes(needed), " of it; raise ", pool->knob());
    }
    job_->roll_call(Job::plan_call);  // nobody takes memory for a job that another refuses
    memory_.environment().prefault(plan.of(MemoryPlace::environment_pool));
    return plan;
  }
  void build_parts() {
    const RankContext<P, Trace> context{settings_, cluster_, *job_,  spec_,    environment_.get(),
                                        model_,    memory_,  trace_, notices_, on_hang_};
    parts_ = std::make_unique<Parts>(context, threads().sampling);
    requests_.emplace(*parts_);
  }
  Parts& parts() {
    if (!parts_) throw Error("this rank can do no more: its roles were to change, and that failed");
    return *parts_;
  }
  void connect() { history_.skip_to(parts_->connect(next_batch())); }
  /// Leader, while no lane runs: `work(stop)`, which asks the rollouts, with the trainer's weights.
  template <class Work>
  auto ask(const stop_flag* stop, Work work) {
    Model::use_threads(threads().most());
    return parts().unless_lost(stop, [&](const stop_flag* either) {
      requests_->install(next_batch());
      return work(either);
    });
  }
  /// What a rollout does for the leader while it waits for it.
  Job::Serve serve(const stop_flag* stop) {
    if (!job_->rolls_out()) return {};
    return [this, stop](std::int64_t number, const std::string& request) {
      Model::use_threads(threads().most());
      requests_->serve(number, request, stop);
    };
  }
  LaneThreads threads() const {
    if (adaptation_) return {adaptation_->shares().sampling_threads, adaptation_->shares().training_threads};
    return {config().schedule.sampling_threads, config().schedule.training_threads};
  }

  /// Of a replay of so many batches: the last updates are seen by no rollout.
  void check_end(std::int64_t batches) {
    const Recording& recorded = settings_.replayed();
    if (batches == recorded.batches && recorded.final_weights &&
        *recorded.final_weights != parts_->weights_checksum())
      throw Error(
          "the replay of '", config().schedule.recording,
          "' ends with other weights than the recorded run, after hand-overs that were equal; are the "
          "training threads and the machine those of that run?");
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
        (void)Parts::algorithm_for(settings_, spec_, groups * settings_.group(), actors);
        good.push_back(rollouts);
      } catch (const ConfigError&) {  // not with so many
      }
    }
    return good;
  }
  /// Between two stretches: looks, and moves what is to be moved.
  void adapt(const Stages& stages) {
    if constexpr (adapts) {
      const auto lost = [this](int rank) { return parts_->lost(rank); };
      if (!adaptation_->look(*job_, stages.times(), next_batch(), settings_.groups(), lost)) return;
      if (job_->alone())
        worker().use_threads(threads().sampling);
      else
        change_roles(stages.sampled_until());
    }
  }
  /// Every rank of the job calls it. Whoever is lost meanwhile ends the run.
  void change_roles(std::int64_t sampled_until) requires adapts {
    auto row = trace_.enter("roles");
    auto span = trace_.span("change roles", next_batch());
    parts_->part(next_batch(), sampled_until, false);
    parts_->end_watch();
    before_ = total({before_, parts_->figures()});
    const std::string number = std::to_string(adaptation_->looked());
    const auto all =
        cluster_.group("carry/" + number, detail::all_ranks(cluster_.topology()), settings_.deadline());
    const CarriedState state = carry(job_->trains() ? &weights() : nullptr, *all, job_->roles().actors,
                                     trainable_count(model_.units()));
    std::array steps{history_.trained().env_steps, history_.trained().chunk_steps};
    all->broadcast(std::as_writable_bytes(std::span(steps)), job_->roles().leader());
    history_.take_over({steps[0], steps[1]});
    requests_.reset();
    parts_.reset();
    environment_.reset();
    auto scope = std::make_unique<ScopedCluster>(cluster_, "roles/" + number);
    const Shares& shares = adaptation_->shares();
    // The old one stays where the new one cannot be made: others ask it who this rank is.
    job_ = std::make_unique<Job>(*scope, detail::separated(shares.actors, cluster_.topology()),
                                 settings_.deadline(), shares.groups);
    scope_ = std::move(scope);
    try {
      make_environment();
      build_parts();
    } catch (const std::exception& why) {
      Job::refuse(*scope_, why);
      throw;
    }
    if (job_->trains()) take(weights(), state);
    parts_->count_from_here();
    job_->begin_together(nullptr);
    connect();
    parts_->hand_out(next_batch());
  }

  // ---- The end of a job
  /// Planes part in peace; the leader puts the job's report together. Where the job's store has gone, as with
  /// the launcher that hosts it, the other ranks' reports are missing; what was trained is not lost.
  void end_together(const Stages& stages, RunReport& report, const TrainCall& call) {
    bool store = true;
    const auto unless_gone = [&](auto ask) {
      try {
        if (store) ask();
      } catch (const Error& error) {
        store = false;
        if (notices_) notices_(std::string("the other ranks' reports are missing: ") + error.what());
      }
    };
    if (job_->leads()) unless_gone([&] { job_->say_end(); });
    bool leaves = stages.leaves();
    parts_->part(next_batch(), stages.sampled_until(), leaves);
    RankReport own = total({before_, parts_->figures(store)});
    own.rank = job_->rank();
    own.trace = trace::snapshot(trace_, job_->name(), std::size_t{1} << 16);
    time_lanes(own);
    parts_->gather();  // by all actors: the leader may evaluate when the others have left
    if (job_->trains() && call.at_end) call.at_end(report.batches);
    parts_->trained();
    if (!job_->leads()) {
      unless_gone([&] {
        hand_in(own, *job_);
        (void)job_->cluster().has(end_of_job);  // a put has no answer: one is asked for
      });
      if (job_->rolls_out() && !leaves && store) leaves = !job_->serve_on(serve(call.stop), call.stop);
      parts_->end_watch(leaves);
      return;
    }
    gather(
        report, std::move(own), *job_, [&](int rank) { return parts_->lost(rank); }, store);
    if (!call.asked_to_stop()) unless_gone([&] { job_->say_gathered(); });  // else they are dismissed soon
    sum_up(report);
    serving_ = true;
  }

  /// Before any thread is made, which inherits it: denormal floats are 0 in all that compute, the caller's
  /// included, so that AdamW's moments do not slow down where gradients stay 0, and bits are the same in every
  /// thread.
  struct Flushed {
    Flushed() { flush_denormals(); }
  } flushed_;
  const RunSettings<P> settings_;
  Recording recorded_;
  std::unique_ptr<LoneCluster> own_cluster_;
  Cluster& cluster_;
  std::unique_ptr<ScopedCluster> scope_;  ///< of the roles that were taken last
  std::unique_ptr<Job> job_;
  std::optional<Adaptation> adaptation_;  ///< where shares of the work move
  Trace trace_;
  Memory memory_;
  detail::TensorPool<Model> tensors_;
  std::unique_ptr<Environment> environment_;  ///< a rollout's
  const EnvironmentSpec spec_;
  const Conventions conventions_;
  const std::vector<Start> evaluation_episodes_;
  const MemoryPlan plan_;
  Model model_;
  Notices notices_, on_hang_;
  std::unique_ptr<Parts> parts_;
  std::optional<Requests<Parts>> requests_;
  History history_;
  bool tested_ = false;   ///< by self_test()
  bool serving_ = false;  ///< a leader that has trained: the rollouts wait for its requests
  RankReport before_{};   ///< of this train(), in roles that this rank had earlier
};

/// What stands in for a run that cannot be built; none of it is defined.
template <class P, class Trace>
class Run<P, Trace, false> {
 public:
  using pipeline = P;
  explicit Run(const Config<P>&);
  Run(const Config<P>&, Cluster&);
  WarmStartResult warm_start(const stop_flag* = nullptr);
  RatioError self_test();
  double evaluate(std::int64_t, Decoding = Decoding::mode, const stop_flag* = nullptr);
  RunReport train(std::function<void(const Iteration&)> = {}, std::function<void(std::int64_t)> = {},
                  const stop_flag* = nullptr);
};

}  // namespace dvla
