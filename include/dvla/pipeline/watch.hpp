// Who is still there: heartbeats between each actor and all others while a job trains, and, on an actor, an
// ear for rollouts that come again. A rollout may die, stop or leave, and its next incarnation is let in; an
// actor may not: its loss ends the run on every rank. Issue: "a peer that stops is noticed within two
// heartbeats". Moves no trajectories and no weights: what a loss means to the planes is the callbacks'
// business.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
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
  std::function<void(const std::string& why)> lost_actor;
  /// On an actor: meet rollout `rollout` in its incarnation; waits for it.
  std::function<void(int rollout, std::int64_t incarnation)> let_in;
};

class Watch {
 public:
  /// Every rank of the job makes its own at the same time; a rollout that comes again, when the actors let it
  /// in. `period`: of the heartbeats.
  Watch(const Job& job, std::chrono::nanoseconds period, std::chrono::nanoseconds limit,
        WatchCallbacks callbacks)
      : job_(job),
        period_(period),
        limit_(limit),
        callbacks_(std::move(callbacks)),
        beats_(period, [this](int rank, const std::string& why) { lose(rank, why); }) {
    const Roles& roles = job_.roles();
    for (int rank = 0; rank < job_.cluster().world(); ++rank)  // all in one order: nobody waits in a circle
      for (int other = rank + 1; other < job_.cluster().world(); ++other)
        if ((rank == job_.rank() || other == job_.rank()) &&
            (roles.actor(rank) >= 0 || roles.actor(other) >= 0))
          meet(rank == job_.rank() ? other : rank, job_.incarnation());
    if (job_.trains() && job_.rollouts() > 0) newcomers_ = std::thread([this] { listen(); });
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() { stop_listening(); }

  /// The end in peace, on every rank at about the same time.
  void end() {
    stop_listening();
    beats_.leave();
  }

  /// Whether this rank has been lost since it last came.
  bool lost(int rank) const {
    const std::scoped_lock lock(mutex_);
    return lost_.contains(rank);
  }
  /// Why the run cannot go on: an actor is gone. Empty: it can.
  std::string fatal() const {
    const std::scoped_lock lock(mutex_);
    return fatal_;
  }

 private:
  void meet(int rank, std::int64_t incarnation) {
    const int low = std::min(rank, job_.rank()), high = std::max(rank, job_.rank());
    beats_.watch(rank, job_.cluster().channel("beats/" + std::to_string(low) + "/" + std::to_string(high) +
                                                  "/" + std::to_string(incarnation),
                                              rank, limit_));
  }

  void lose(int rank, const std::string& why) {
    const bool actor = job_.roles().actor(rank) >= 0;
    {
      const std::scoped_lock lock(mutex_);
      lost_.insert(rank);
      if (actor && fatal_.empty())
        fatal_ = job_.name() + " lost " + rank_name(job_.roles(), rank) + ": " + why;
    }
    if (actor)
      callbacks_.lost_actor(fatal());
    else
      callbacks_.lost_rollout(rank, why);
  }

  /// On an actor: asks the job's store for rollouts' next incarnations, once a period.
  void listen() {
    const Roles& roles = job_.roles();
    std::vector<std::int64_t> incarnation(roles.rollouts.size(), 0);
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, period_, [&] { return ended_; })) return;
      }
      try {
        for (std::size_t i = 0; i < roles.rollouts.size(); ++i) {
          const int rank = roles.rollouts[i];
          if (roles.actor(rank) >= 0) continue;
          while (job_.cluster().has(Job::life(rank, incarnation[i] + 1))) ++incarnation[i];
          if (incarnation[i] > known_[rank]) let_in(static_cast<int>(i), rank, incarnation[i]);
        }
      } catch (const std::exception&) {
        return;  // the store is gone, and so is the job: heartbeats and planes say so
      }
    }
  }
  void let_in(int rollout, int rank, std::int64_t incarnation) {
    known_[rank] = incarnation;
    try {
      job_.cluster().put(Job::door(rank, incarnation, job_.actor()), "");
      callbacks_.let_in(rollout, incarnation);
      meet(rank, incarnation);
      const std::scoped_lock lock(mutex_);
      lost_.erase(rank);
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

  const Job& job_;
  const std::chrono::nanoseconds period_, limit_;
  const WatchCallbacks callbacks_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::set<int> lost_;
  std::string fatal_;
  std::map<int, std::int64_t> known_;  ///< the newcomers' thread's
  Heartbeat beats_;
  std::thread newcomers_;
};

}  // namespace dvla
