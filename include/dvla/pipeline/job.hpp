// A run's place in its job of processes: which rank this is, what it does, which share of the environments is
// its own; and how the ranks begin together, or refuse together. Paper: rollouts and actors; "local topology
// replication". One process is a job of one. Torch-free; moves no trajectories and no weights.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/schedule/runner.hpp"

namespace dvla {

/// A process that is one too many: another has its rank in the job, which it must not disturb.
class PlaceTaken : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

/// A rollout that comes again when training has ended.
class TooLate : public Error {
 public:
  using Error::Error;
};

/// One thread at a time. `cluster` must outlive this; a cluster serves one job.
class Job {
 public:
  /// `groups`: of environments, by rollout; empty: nearly equal shares.
  Job(Cluster& cluster, Roles roles, std::chrono::nanoseconds limit, std::vector<std::int64_t> groups = {})
      : cluster_(cluster),
        roles_(std::move(roles)),
        groups_(std::move(groups)),
        limit_(limit),
        rollout_(roles_.rollout(cluster.rank())),
        actor_(roles_.actor(cluster.rank())) {
    if (alone()) return;
    const bool first = cluster_.count("run/here/" + std::to_string(rank())) == 1;
    if (!cluster_.has(start_key(0))) {
      if (!first)
        throw PlaceTaken(name(),
                         " is there already: another process has its place in this job, which has not begun "
                         "to train; another job needs another MASTER_PORT, and a job that lost a rank before "
                         "it began is to be started again as a whole");
      return;
    }
    if (trains())
      throw PlaceTaken(name(),
                       " comes when training has begun; only rollouts can join then: start the "
                       "whole job again from its newest checkpoint, or another job with another MASTER_PORT");
    incarnation_ = cluster_.count("run/incarnations/" + std::to_string(rank()));
  }

  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  Cluster& cluster() const { return cluster_; }
  const Roles& roles() const { return roles_; }
  int rank() const { return cluster_.rank(); }
  bool alone() const { return cluster_.world() == 1; }
  /// The leader evaluates, prints and writes files; it is an actor.
  bool leads() const { return rank() == roles_.leader(); }
  bool rolls_out() const { return rollout_ >= 0; }
  bool trains() const { return actor_ >= 0; }
  int rollout() const { return rollout_; }
  int actor() const { return actor_; }
  int rollouts() const { return static_cast<int>(roles_.rollouts.size()); }
  int actors() const { return static_cast<int>(roles_.actors.size()); }
  /// "rank 3 (rollout 2)".
  std::string name() const { return name(rank()); }
  std::string name(int rank) const { return rank_name(roles_, rank); }
  lane_share share() const {
    if (!trains()) return lane_share::rollout;
    return rolls_out() ? lane_share::all : lane_share::actor;
  }

  /// 0, or how many times a rollout has come again since training began.
  std::int64_t incarnation() const { return incarnation_; }
  // Keys in the job's store by which a rollout rejoins: it asks, and the leader permits it, or says why not. All
  // actors connect to those whom the leader has admitted, in that order: two actors that connected to different
  // rollouts first would wait for each other.
  static std::string request_key(int rank, std::int64_t incarnation) {
    return "run/rejoin/" + std::to_string(rank) + "/" + std::to_string(incarnation);
  }
  static std::string permit_key(int rank, std::int64_t incarnation) {
    return request_key(rank, incarnation) + "/permit";
  }
  /// Where the leader says whom it has admitted as number `number`.
  static std::string admission_key(std::int64_t number) { return "run/admission/" + std::to_string(number); }
  /// A rollout that comes again asks the leader, and waits until the actors are about to connect to it. Throws
  /// Error where the job has ended instead, where the leader refuses it, and where a later incarnation comes.
  void announce() const {
    for (std::int64_t each = 1; each <= incarnation_; ++each)  // earlier ones may have ended before they did
      if (!cluster_.has(request_key(rank(), each))) cluster_.put(request_key(rank(), each), "");
    const auto why =
        wait_for(permit_key(rank(), incarnation_), name(roles_.leader()) + " to let it come again", [&] {
          if (cluster_.has(end_of_job)) throw TooLate(name(), " comes again too late: training has ended");
          if (cluster_.has(request_key(rank(), incarnation_ + 1)))
            throw PlaceTaken(name(), " comes again, and so does another process in its place, later");
          return false;
        });
    if (!why->empty()) throw PlaceTaken(*why);
  }
  /// The newest incarnation of `rank` that the leader permitted.
  std::int64_t newest_incarnation(int rank) const {
    std::int64_t newest = 0;
    for (std::int64_t each = 1; cluster_.has(request_key(rank, each)); ++each)
      if (const std::string permit = permit_key(rank, each);
          cluster_.has(permit) && cluster_.get(permit, limit_).empty())
        newest = each;
    return newest;
  }
  /// Whether training has begun, so that who comes to this job now comes again.
  static bool has_begun(Cluster& cluster) { return cluster.world() > 1 && cluster.has(start_key(0)); }
  /// The leader: nobody need come any more. Throws Error where the job's store does not answer.
  void say_end() const { cluster_.put_once(end_of_job, "training has ended", std::chrono::seconds(1)); }

  /// Which of `groups` groups of environments belong to that rollout; without one, none do. Throws ConfigError
  /// where one would have none.
  Share share_of_groups(std::int64_t groups, int rollout) const {
    if (groups < rollouts())
      throw ConfigError("the job has ", rollouts(), " rollouts and ", groups,
                        " groups of environments; each rollout needs one: raise environment.environments or "
                        "start fewer ranks");
    if (rollout < 0) return {};
    if (groups_.empty()) return share_of(groups, rollouts(), rollout);
    const auto own = groups_.begin() + rollout;
    return {std::accumulate(groups_.begin(), own, std::int64_t{0}), *own};
  }

  /// From now on a wait for another rank ends in PeerError once `fatal()` is not empty: why the run ends.
  void end_waits_when(std::function<std::string()> fatal) { fatal_ = std::move(fatal); }
  /// The text that another rank puts under `key` of the job's store; nothing where `over()`, asked from time to
  /// time, says that nobody need wait any more. Throws DeadlineError, in which this rank waited for `whom_and_what`,
  /// after the job's limit.
  template <class Over>
  std::optional<std::string> wait_for(const std::string& key, const std::string& whom_and_what,
                                      Over over) const {
    return wait_within(limit_, std::chrono::milliseconds(5), key, whom_and_what, over);
  }

  /// Every rank calls it with the same `stage`: returns when all have, and throws the lowest rank's refusal
  /// as ConfigError if one refused instead (see refuse), so that nobody waits for it.
  void roll_call(const std::string& stage) const {
    if (alone()) return;
    cluster_.put(key(stage, rank()), "");
    for (int other = 0; other < cluster_.world(); ++other) {
      const auto refusal = wait_for(key(stage, other), name(other) + " at the roll call '" + stage + "'",
                                    [] { return false; });
      if (!refusal->empty()) throw ConfigError(name(other), " refuses: ", *refusal);
    }
  }
  /// What a rank does instead that cannot take part. One that is too many, or late, is not missed.
  static void refuse(Cluster& cluster, const std::exception& why) noexcept {
    if (cluster.world() == 1 || dynamic_cast<const PlaceTaken*>(&why)) return;
    try {
      // A rollout that would come again: the others go on without it.
      if (cluster.has(start_key(0))) return;
      for (const char* stage : {plan_call, first_call, last_call})
        cluster.put(key(stage, cluster.rank()), std::string(why.what()).empty() ? "?" : why.what());
    } catch (const std::exception&) {  // then the others' limits end their waits
    }
  }
  static constexpr const char* plan_call = "planned";  ///< before any has memory for its part
  static constexpr const char* first_call = "built";
  static constexpr const char* last_call = "fits";

  /// What a rollout does with a request of the leader's: its number and its text.
  using Serve = std::function<void(std::int64_t number, const std::string& request)>;
  /// The leader says that it is ready, the others wait for that, as long as its preparations take (warm
  /// start, evaluation), but at most a day, and serve its requests meanwhile. Throws Stopped once `stop`, which
  /// may be null, asks, and PeerError where nobody comes any more (see end_waits_when).
  void begin_together(const stop_flag* stop, const Serve& serve = {}) {
    if (alone()) return;
    if (leads()) {
      if (const std::string why = fatal(); !why.empty()) throw PeerError(why);
      cluster_.put(start_key(starts_), "");
    } else {
      wait_for_leader(start_key(starts_), "to begin training; it still prepares", serve, [&] {
        throw_if_stopped(stop, "the wait for the job to begin");
        if (cluster_.has(end_of_job)) throw PeerError(name(), " waits in vain: the job was started again");
        return false;
      });
    }
    ++starts_;
    requests_ = 0;
  }
  bool begun() const { return starts_ > 0; }
  /// The text that the first rank which has one, not empty, has put under `topic`; others wait for it. Throws
  /// ConfigError where a rollout refuses instead.
  std::string agree(const std::string& topic, const std::string& own) const {
    const std::string place = "run/agreed/" + topic;
    if (!own.empty()) return cluster_.put_once(place, own, limit_);
    return *wait_for(place, "a rollout to be built, which knows the " + topic, [&] {
      for (const int each : roles_.rollouts)
        if (has_told(first_call, each))
          if (const std::string why = told(first_call, each); !why.empty())
            throw ConfigError(name(each), " refuses: ", why);
      return false;
    });
  }
  /// When training has ended, a rollout: serves the leader's requests until it says that there are no more.
  /// False: `stop`, which may be null, asked before. Until the leader has gathered the reports nobody leaves:
  /// others may still take it for a loss that ends the run.
  bool serve_on(const Serve& serve, const stop_flag* stop) {
    const bool dismissed = wait_for_leader(parted, "to have done with the rollouts", serve, [&] {
      return stop && stop->stop_requested() && cluster_.has(gathered);
    });
    if (dismissed) tell(parted, "");
    return dismissed;
  }
  void say_gathered() const { cluster_.put(gathered, ""); }
  /// The leader then; waits until the rollouts have read it, those that are `lost(rank)` excepted: the job's store
  /// may end with it.
  template <class Lost>
  void dismiss(Lost lost) {
    cluster_.put(parted, "");
    for (const int each : roles_.rollouts)
      if (each != rank()) wait_for(key(parted, each), name(each) + " to end", [&] { return lost(each); });
  }

  /// The leader asks the rollouts, which wait for it, for something (pipeline/requests.hpp); returns the
  /// request's number. Who asks, and who is asked, sees to it that an answer is put there, and waited for.
  std::int64_t request(const std::string& text) {
    cluster_.put(asked_key(requests_), text);
    return requests_++;
  }
  /// A rollout: whether the leader has done with the newest request, or the run is over.
  bool leader_moved_on() const {
    return cluster_.has(asked_key(requests_)) || cluster_.has(start_key(starts_)) || cluster_.has(parted) ||
           !fatal().empty();
  }
  /// Where the answer of `rank` lies in the job's store.
  std::string answer_key(std::int64_t number, int rank) const {
    return asked_key(number) + "/" + std::to_string(rank);
  }

  /// A text of this rank for others, once a topic, and what they read.
  void tell(const std::string& topic, const std::string& text) const {
    cluster_.put(key(topic, rank()), text);
  }
  bool has_told(const std::string& topic, int rank) const { return cluster_.has(key(topic, rank)); }
  std::string told(const std::string& topic, int rank) const {
    return cluster_.get(key(topic, rank), limit_);
  }
  /// Where it lies in the job's store.
  static std::string key(const std::string& topic, int rank) {
    return "run/" + topic + "/" + std::to_string(rank);
  }

 private:
  std::string fatal() const { return fatal_ ? fatal_() : std::string(); }
  template <class Over>
  std::optional<std::string> wait_within(std::chrono::nanoseconds limit, std::chrono::milliseconds pause,
                                         const std::string& key, const std::string& whom_and_what,
                                         Over over) const {
    const auto ends = [&] {
      if (over()) return true;
      if (const std::string why = fatal(); !why.empty()) throw PeerError(why);
      return false;
    };
    return wait_for_text(cluster_, key, detail::deadline_after(limit),
                         name() + " waited " + detail::seconds_text(limit) + " for " + whom_and_what, ends,
                         pause);
  }
  /// False: `over()` held before the word came.
  template <class Over>
  bool wait_for_leader(const std::string& word, const std::string& what, const Serve& serve, Over over) {
    const auto serve_requests = [&] {
      if (over()) return true;
      while (serve && cluster_.has(asked_key(requests_))) {
        const std::int64_t number = requests_++;
        serve(number, cluster_.get(asked_key(number), limit_));
      }
      return false;
    };
    return wait_within(std::chrono::hours(24), std::chrono::milliseconds(20), word,
                       name(roles_.leader()) + " " + what, serve_requests)
        .has_value();
  }
  static constexpr const char *parted = "run/parted", *gathered = "run/gathered";
  std::string asked_key(std::int64_t number) const {
    return "run/request/" + std::to_string(starts_) + "/" + std::to_string(number);
  }
  static std::string start_key(std::int64_t number) { return "run/start/" + std::to_string(number); }

  Cluster& cluster_;
  const Roles roles_;
  const std::vector<std::int64_t> groups_;
  const std::chrono::nanoseconds limit_;
  const int rollout_, actor_;
  std::int64_t starts_ = 0, requests_ = 0, incarnation_ = 0;
  std::function<std::string()> fatal_;
};

/// For people: who does what.
inline std::string describe(const Job& job) {
  const auto list = [](const std::vector<int>& ranks) {
    std::string text;
    for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
    return text;
  };
  const std::vector<int>& joined = job.cluster().topology().joined;
  return "job of " + std::to_string(job.cluster().world()) + " ranks: rollouts " +
         list(job.roles().rollouts) + (joined.empty() ? "" : ", of which joined " + list(joined)) +
         "; actors " + list(job.roles().actors) + " (the first leads)";
}

}  // namespace dvla
