// Who is still there: heartbeats between each actor and all others from the roll calls to the end, and, on an
// actor, an ear for rollouts that come again. Once training has begun a rollout may die, stop or leave, and
// its next incarnation is let in. An actor may not, and before training begins nobody may: that loss ends the
// run on every rank. Issue: "a peer that stops is noticed within two heartbeats". Moves no trajectories and
// no weights: what a loss means to the planes is the callbacks' business.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/placement/heartbeat.hpp"

namespace dvla {

/// Callbacks come from threads of this class, one at a time for each peer, and not after end(). They must not
/// throw, `let_in` excepted: then the newcomer is lost again.
struct WatchCallbacks {
  std::function<void(int rank, const std::string& why)> lost_rollout;
  /// The run cannot go on. `begun`: whether begin() has been called. Returns why it ends, `why` or that of
  /// which it is the consequence.
  std::function<std::string(const std::string& why, bool begun)> end_run;
  /// On an actor: nobody can come again, for the job's store does not answer.
  std::function<void(const std::string& why)> lost_store;
  /// On an actor: meet rollout `rollout` in its incarnation; waits for it.
  std::function<void(int rollout, std::int64_t incarnation)> let_in;
};

class Watch {
 public:
  /// Every rank of the job makes its own at the same time; a rollout that comes again, when the actors let it
  /// in. `period`: of the heartbeats. The job heeds it.
  Watch(Job& job, std::chrono::nanoseconds period, std::chrono::nanoseconds limit, WatchCallbacks callbacks)
      : job_(job),
        period_(period),
        limit_(limit),
        callbacks_(std::move(callbacks)),
        beats_(period, [this](int rank, const std::string& why) { lose(rank, why); }) {
    const Roles& roles = job_.roles();
    for (int rank = 0; rank < job_.cluster().world(); ++rank)  // all in one order: nobody waits in a circle
      for (int other = rank + 1; other < job_.cluster().world(); ++other)
        if ((rank == job_.rank() || other == job_.rank()) &&
            (roles.actor(rank) >= 0 || roles.actor(other) >= 0)) {
          const int peer = rank == job_.rank() ? other : rank;
          beats_.watch(peer, channel_of_beats(peer, job_.incarnation(), limit_));
        }
    job_.heed([this] { return fatal(); });
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() {
    job_.heed({});
    stop_listening();
  }

  /// The planes are there. Throws PeerError where somebody is lost already.
  void begin() {
    {
      std::unique_lock lock(mutex_);
      settle(lock);
      if (!fatal_.empty()) throw PeerError(fatal_);
      begun_ = true;
    }
    if (job_.trains() && job_.rollouts() > 0) newcomers_ = std::thread([this] { listen(); });
  }

  /// The end in peace, on every rank at about the same time; or of this rank `alone`, a rollout.
  void end(bool alone = false) {
    stop_listening();
    beats_.leave(alone);
  }

  /// How long an actor and a rollout that is let in wait for each other's channels: one that dies meanwhile
  /// holds up neither other newcomers nor the end for longer.
  static std::chrono::nanoseconds meeting(std::chrono::nanoseconds period, std::chrono::nanoseconds limit) {
    return std::min<std::chrono::nanoseconds>(4 * period + std::chrono::seconds(2), limit);
  }

  /// Whether this rank has been lost since it last came.
  bool lost(int rank) const {
    const std::scoped_lock lock(mutex_);
    return lost_.contains(rank);
  }
  /// Why the run cannot go on. Empty: it can, as far as is known, or will be in a `moment`.
  std::string fatal(std::chrono::milliseconds moment = {}) const {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, moment, [&] { return ends_; });
    settle(lock);
    return fatal_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::unique_ptr<Channel> channel_of_beats(int rank, std::int64_t incarnation,
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
    if (begun && job_.roles().actor(rank) < 0) {
      lock.unlock();
      callbacks_.lost_rollout(rank, why);
      lock.lock();
    } else if (!ends_) {
      ends_ = true;
      changed_.notify_all();
      lock.unlock();
      std::string cause = callbacks_.end_run(job_.name() + " lost " + rank_name(job_.roles(), rank) +
                                                 (begun ? ": " : " before training began: ") + why,
                                             begun);
      lock.lock();
      fatal_ = std::move(cause);
      changed_.notify_all();
    }
    parted_.insert(rank);
  }
  /// Until it is known why the run ends, if it does.
  void settle(std::unique_lock<std::mutex>& lock) const {
    changed_.wait(lock, [&] { return !ends_ || !fatal_.empty(); });
  }

  /// The newest life of a rollout that was heard of.
  struct Newcomer {
    std::int64_t incarnation = 0;
    enum class At { home, door, inside } at = At::home;
    Clock::time_point until;  ///< at the door: then refused; inside: then asked for less often
  };

  /// On an actor: asks the job's store for rollouts' next incarnations, once a period.
  void listen() {
    const Roles& roles = job_.roles();
    std::vector<Newcomer> newcomers(roles.rollouts.size());
    int silent = 0;  // times in a row that the store gave no answer
    for (;;) {
      const bool soon = std::any_of(newcomers.begin(), newcomers.end(), [](const Newcomer& each) {
        return each.at != Newcomer::At::home && Clock::now() <= each.until;
      });
      {
        std::unique_lock lock(mutex_);
        const auto pause =
            soon ? std::min<std::chrono::nanoseconds>(period_, std::chrono::milliseconds(20)) : period_;
        if (changed_.wait_for(lock, pause, [&] { return ended_; })) return;
      }
      try {
        if (!job_.leads()) follow(newcomers);
        for (std::size_t i = 0; i < newcomers.size(); ++i)
          if (roles.actor(roles.rollouts[i]) < 0) hear(static_cast<int>(i), roles.rollouts[i], newcomers[i]);
        silent = 0;
      } catch (const DeadlineError& error) {  // the store is slow, or its process stopped: it is asked again
        if (++silent == 20) callbacks_.lost_store(error.what());
      } catch (const std::exception& error) {
        return callbacks_.lost_store(error.what());
      }
    }
  }
  /// Not the leader: lets in whom the leader does, in its order.
  void follow(std::vector<Newcomer>& newcomers) {
    while (asks(Job::turn(turns_))) {
      std::istringstream turn(job_.cluster().get(Job::turn(turns_++), limit_));
      std::size_t rollout = 0;
      std::int64_t incarnation = 0;
      if (!(turn >> rollout >> incarnation) || rollout >= newcomers.size()) continue;
      Newcomer& newcomer = newcomers[rollout];
      if (newcomer.incarnation <= incarnation) newcomer = {incarnation, Newcomer::At::home, {}};
      let_in(static_cast<int>(rollout), job_.roles().rollouts[rollout], incarnation);
    }
  }
  /// A newcomer is let in once its rank's earlier life is known to be lost, which the heartbeats know within
  /// two periods; else it is one too many, and refused. It then says that it comes: only for one that has
  /// said so does this rank wait, and one that was about to, and whose next life is here, will see that too.
  void hear(int rollout, int rank, Newcomer& newcomer) {
    using At = Newcomer::At;
    const bool later = asks(Job::life(rank, newcomer.incarnation + 1));
    if (newcomer.at == At::inside && job_.leads() && asks(Job::coming(rank, newcomer.incarnation))) {
      newcomer.at = At::home;
      job_.cluster().put(Job::turn(turns_++),
                         std::to_string(rollout) + " " + std::to_string(newcomer.incarnation));
      let_in(rollout, rank, newcomer.incarnation);
      return;
    }
    if (later) {
      ++newcomer.incarnation;
      newcomer.at = At::door;
      newcomer.until = Clock::now() + 5 * period_ / 2 + std::chrono::milliseconds(500);
    }
    if (newcomer.at != At::door) return;
    const bool free = [&] {
      const std::scoped_lock lock(mutex_);
      return parted_.contains(rank);
    }();
    if (!free && Clock::now() <= newcomer.until) return;
    job_.cluster().put(
        Job::door(rank, newcomer.incarnation, job_.actor()),
        free ? ""
             : rank_name(job_.roles(), rank) + " is there already: " + job_.name() +
                   " has its heartbeats; it can come again once that process has ended, and another job "
                   "needs another MASTER_PORT");
    newcomer.at = free ? At::inside : At::home;
    newcomer.until = Clock::now() + meeting(period_, limit_);
  }
  /// Not for long: who ends waits for this thread.
  bool asks(const std::string& key) const {
    return job_.cluster().has_within(
        key, std::min<std::chrono::nanoseconds>(period_, std::chrono::milliseconds(500)));
  }
  void let_in(int rollout, int rank, std::int64_t incarnation) {
    try {
      callbacks_.let_in(rollout, incarnation);
      auto channel = channel_of_beats(rank, incarnation, meeting(period_, limit_));
      {
        const std::scoped_lock lock(mutex_);  // before it can be lost again
        lost_.erase(rank);
        parted_.erase(rank);
      }
      beats_.watch(rank, std::move(channel));
    } catch (const std::exception& error) {
      lose(rank, error.what());
    }
  }
  void stop_listening() {
    {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    if (newcomers_.joinable()) newcomers_.join();
  }

  Job& job_;
  const std::chrono::nanoseconds period_, limit_;
  const WatchCallbacks callbacks_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool begun_ = false, ends_ = false;  ///< ends_: end_run is called
  bool ended_ = false;                 ///< of the ear
  std::set<int> lost_, parted_;        ///< parted: of the lost, those whose callback has returned
  std::string fatal_;
  std::int64_t turns_ = 0;  ///< the ear's
  Heartbeat beats_;
  std::thread newcomers_;
};

}  // namespace dvla
