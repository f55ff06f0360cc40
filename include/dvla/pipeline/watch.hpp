// Which ranks of a job are alive: heartbeats between each actor and all others from the roll calls to the
// end; and, on an actor, a thread that lets rollouts rejoin. Once training has begun a rollout may die, stop
// or leave, and its next incarnation may rejoin. An actor may not, and before training begins nobody may:
// that loss ends the run on every rank. "A peer that stops is noticed within two heartbeats". Moves no
// trajectories and no weights: what a loss means to the planes is the callbacks' business.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/placement/heartbeat.hpp"

namespace dvla {

/// Called from threads of this class, one at a time for each peer, and not after end(). They must not throw,
/// `let_in` excepted: then the rollout that rejoins is lost again.
struct WatchCallbacks {
  /// Or an actor other than the leader, once trained().
  std::function<void(int rank, const std::string& why)> lost_rollout;
  /// The run cannot go on. `begun`: whether begin() has been called. Returns why it ends, `why` or that of
  /// which it is the consequence.
  std::function<std::string(const std::string& why, bool begun)> end_run;
  /// On an actor: nobody can rejoin, for the job's store does not answer.
  std::function<void(const std::string& why)> lost_store;
  /// On an actor: connect to rollout `rollout` in its incarnation; waits for it.
  std::function<void(int rollout, std::int64_t incarnation)> let_in;
};

class Watch {
 public:
  /// Every rank of the job makes its own at the same time; a rollout that rejoins, when the actors let it in.
  /// `period`: of the heartbeats. From now on the job's waits end with the run.
  Watch(Job& job, std::chrono::nanoseconds period, std::chrono::nanoseconds limit, WatchCallbacks callbacks)
      : job_(job),
        period_(period),
        limit_(limit),
        callbacks_(std::move(callbacks)),
        heartbeat_(period, [this](int rank, const std::string& why) { lose(rank, why); }) {
    // In ascending order on all ranks, so that no cycle of waits arises.
    for (int peer = 0; peer < job_.cluster().world(); ++peer)
      if (peer != job_.rank() && (job_.trains() || job_.roles().actor(peer) >= 0))
        heartbeat_.watch(peer, heartbeat_channel(peer, job_.incarnation(), limit_));
    job_.end_waits_when([this] { return fatal(); });
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() {
    job_.end_waits_when({});
    admit_no_more();
  }

  /// The planes are connected. Throws PeerError where a rank is lost already.
  void begin() {
    {
      std::unique_lock lock(mutex_);
      wait_for_cause(lock);
      if (!fatal_.empty()) throw PeerError(fatal_);
      begun_ = true;
    }
    if (job_.trains() && job_.rollouts() > 0) admitting_ = std::thread([this] { admit_rollouts(); });
  }

  /// Training has ended: of the others only the leader is needed still.
  void trained() {
    const std::scoped_lock lock(mutex_);
    trained_ = true;
  }

  /// Nobody rejoins from now on.
  void admit_no_more() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (admitting_.joinable()) admitting_.join();
  }

  /// The end in peace, on every rank at about the same time; or of this rank `alone`, a rollout.
  void end(bool alone = false) {
    admit_no_more();
    heartbeat_.leave(alone);
  }

  /// How long an actor and a rollout that rejoins wait for each other's channels: one that dies meanwhile
  /// delays neither other rollouts nor the end of the run for longer.
  static std::chrono::nanoseconds meeting(std::chrono::nanoseconds period, std::chrono::nanoseconds limit) {
    return std::min<std::chrono::nanoseconds>(4 * period + std::chrono::seconds(2), limit);
  }

  /// Whether this rank has been lost since it last joined.
  bool lost(int rank) const {
    const std::scoped_lock lock(mutex_);
    return lost_.contains(rank);
  }
  /// Why the run cannot go on. Empty: nothing is known that ends it, and nothing became known within `wait`.
  std::string fatal(std::chrono::milliseconds wait = {}) const {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, wait, [&] { return ending_; });
    wait_for_cause(lock);
    return fatal_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::unique_ptr<Channel> heartbeat_channel(int rank, std::int64_t incarnation,
                                             std::chrono::nanoseconds limit) const {
    const int low = std::min(rank, job_.rank()), high = std::max(rank, job_.rank());
    return job_.cluster().channel(
        "beats/" + std::to_string(low) + "/" + std::to_string(high) + "/" + std::to_string(incarnation), rank,
        limit);
  }

  void lose(int rank, const std::string& why) {
    std::unique_lock lock(mutex_);
    lost_.insert(rank);
    const bool begun = begun_;
    const bool needed = trained_ ? rank == job_.roles().leader() : job_.roles().actor(rank) >= 0;
    if (begun && !needed) {
      lock.unlock();
      callbacks_.lost_rollout(rank, why);
      lock.lock();
    } else if (!ending_) {
      ending_ = true;
      changed_.notify_all();
      lock.unlock();
      std::string cause = callbacks_.end_run(
          job_.name() + " lost " + job_.name(rank) + (begun ? ": " : " before training began: ") + why,
          begun);
      lock.lock();
      fatal_ = std::move(cause);
      changed_.notify_all();
    }
    released_.insert(rank);
    changed_.notify_all();
  }
  /// Where the run is ending: until end_run has said why.
  void wait_for_cause(std::unique_lock<std::mutex>& lock) const {
    changed_.wait(lock, [&] { return !ending_ || !fatal_.empty(); });
  }

  /// On an actor: looks in the job's store for rollouts to let in.
  void admit_rollouts() {
    std::vector<std::int64_t> newest(job_.roles().rollouts.size());  // incarnation that asked
    int unanswered = 0;                                              // times in a row
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, between_looks(), [&] { return stopping_; })) return;
      }
      try {
        if (!job_.leads()) follow_leader();
        for (std::size_t i = 0; job_.leads() && i < newest.size(); ++i)
          answer_request(static_cast<int>(i), newest[i]);
        unanswered = 0;
      } catch (const DeadlineError& error) {  // the store is slow, or its process stopped: it is asked again
        if (++unanswered == 20) callbacks_.lost_store(error.what());
      } catch (const std::exception& error) {
        return callbacks_.lost_store(error.what());
      }
    }
  }
  /// Not the leader: lets in the rollouts that the leader does, in its order.
  void follow_leader() {
    while (store_has(Job::admission_key(admissions_))) {
      const std::string text = job_.cluster().get(Job::admission_key(admissions_++), limit_);
      const auto [rollout, incarnation] = parse_json<std::array<std::int64_t, 2>>(text, "rollout to let in");
      if (rollout >= 0 && rollout < job_.rollouts()) let_in(static_cast<int>(rollout), incarnation);
    }
  }
  /// The leader: permits a request once the rank's earlier incarnation is known to be lost, which the
  /// heartbeats know within two periods; else that process is still there, and the new one is refused. Of
  /// several requests the latest counts.
  void answer_request(int rollout, std::int64_t& newest) {
    const int rank = rank_of(rollout);
    const auto asks = [&](std::int64_t incarnation) {
      return store_has(Job::request_key(rank, incarnation));
    };
    if (job_.roles().actor(rank) >= 0 || !asks(newest + 1)) return;
    const std::optional<bool> is_free = released(rank, 5 * period_ / 2 + std::chrono::milliseconds(500));
    if (!is_free) return;
    std::int64_t latest = newest + 1;
    while (asks(latest + 1)) ++latest;
    newest = latest;
    if (*is_free)
      job_.cluster().put(Job::admission_key(admissions_++),
                         json_text(std::array<std::int64_t, 2>{rollout, newest}));
    job_.cluster().put(
        Job::permit_key(rank, newest),
        *is_free ? ""
                 : job_.name(rank) + " is there already: " + job_.name() +
                       " has its heartbeats; it can come again once that process has ended, and another job "
                       "needs another MASTER_PORT");
    if (*is_free) let_in(rollout, newest);
  }
  /// Not for long, and not by the heartbeats' period, which says how patient the job is: a rollout that is back
  /// samples soon, and end() waits for this thread.
  std::chrono::nanoseconds between_looks() const {
    return std::min<std::chrono::nanoseconds>(period_, std::chrono::milliseconds(500));
  }
  bool store_has(const std::string& key) const { return job_.cluster().has_within(key, between_looks()); }
  int rank_of(int rollout) const { return job_.roles().rollouts[static_cast<std::size_t>(rollout)]; }
  /// Whether that rank's earlier incarnation is known to be lost, now or within `limit`; nothing where nobody is
  /// let in any more.
  std::optional<bool> released(int rank, std::chrono::nanoseconds limit) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [&] { return stopping_ || released_.contains(rank); });
    if (stopping_) return std::nullopt;
    return released_.contains(rank);
  }
  void let_in(int rollout, std::int64_t incarnation) {
    const int rank = rank_of(rollout);
    const std::chrono::nanoseconds patience = meeting(period_, limit_);
    try {
      // The leader may have noticed the loss before this rank.
      if (!released(rank, patience).value_or(false))
        throw PeerError("it came again, but its earlier process was still there");
      callbacks_.let_in(rollout, incarnation);
      auto channel = heartbeat_channel(rank, incarnation, patience);
      {
        const std::scoped_lock lock(mutex_);  // before it can be lost again
        lost_.erase(rank);
        released_.erase(rank);
      }
      heartbeat_.watch(rank, std::move(channel));
    } catch (const std::exception& error) {
      lose(rank, error.what());
    }
  }

  Job& job_;
  const std::chrono::nanoseconds period_, limit_;
  const WatchCallbacks callbacks_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool begun_ = false, trained_ = false;
  bool ending_ = false;            ///< end_run is called
  bool stopping_ = false;          ///< no more rollouts are let in
  std::set<int> lost_, released_;  ///< released: of the lost, those whose callback has returned
  std::string fatal_;
  std::int64_t admissions_ = 0;  ///< so far; of the thread that lets in
  Heartbeat heartbeat_;
  std::thread admitting_;
};

}  // namespace dvla
