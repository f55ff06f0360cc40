// A cluster: this process's view of the job: who it is, and how it reaches the others. Made once at the start
// of a run; channels and groups are made from it by name. Implementations: C10dCluster (placement/c10d.hpp:
// TCPStore and Gloo), LoneCluster below (one process), threads of one process (testing/thread_cluster.hpp).
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// Where a job's store says that nobody need come any more: training has ended, or the job was started again.
inline constexpr const char* end_of_job = "run/end";

/// All members may be called from any thread; those that wait do so at most `limit`, then throw DeadlineError
/// that names whom this rank waited for. Names must be new: one channel or group per name and pair.
class Cluster {
 public:
  Cluster() = default;
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  virtual ~Cluster() = default;

  virtual int rank() const = 0;
  virtual const Topology& topology() const = 0;
  int world() const { return topology().world(); }

  /// Both ends call it with the same name.
  virtual std::unique_ptr<Channel> channel(const std::string& name, int peer,
                                           std::chrono::nanoseconds limit) = 0;
  /// Every member calls it with the same name and the same ascending members. `limit` is also that of each
  /// collective.
  virtual std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                                       std::chrono::nanoseconds limit) = 0;

  /// The job's small store of texts. `get` waits until somebody has put `key`.
  virtual void put(const std::string& key, const std::string& value) = 0;
  virtual std::string get(const std::string& key, std::chrono::nanoseconds limit) = 0;
  bool has(const std::string& key) { return has_within(key, std::chrono::nanoseconds::max()); }
  /// The same for whoever cannot wait for a store that is stopped: DeadlineError after `limit`.
  virtual bool has_within(const std::string& key, std::chrono::nanoseconds limit) = 0;
  /// Puts `value`, which is not empty, unless somebody has put a text there before; returns what is there.
  /// DeadlineError after `limit` where the store does not answer.
  virtual std::string put_once(const std::string& key, const std::string& value,
                               std::chrono::nanoseconds limit) {
    if (count(key) == 1) put(key, value);
    return get(key, limit);
  }
  /// Adds 1 to a counter that starts at 0, and returns it.
  virtual std::int64_t count(const std::string& key) = 0;

 protected:
  /// What every implementation refuses alike.
  void check_peer(const std::string& name, int peer) const {
    if (peer < 0 || peer >= world() || peer == rank())
      throw Error("channel '", name, "': peer is rank ", peer, "; it must be from 0 to ", world() - 1,
                  " and not this rank, ", rank());
  }
  void check_members(const std::string& name, const std::vector<int>& members) const {
    const bool ascending =
        std::adjacent_find(members.begin(), members.end(), std::greater_equal()) == members.end();
    if (members.empty() || !ascending || members.front() < 0 || members.back() >= world())
      throw Error("group '", name, "': members must be ranks from 0 to ", world() - 1,
                  ", ascending and without repeats");
    if (Roles::place(members, rank()) < 0)
      throw Error("group '", name, "': rank ", rank(), " is not one of its members");
  }
};

namespace detail {
inline DeadlineError store_deadline(const std::string& key, int rank, std::chrono::nanoseconds limit) {
  return waited(rank, limit, "for somebody to put '", key, "' into the job's store");
}
}  // namespace detail

/// Waits until somebody has put `key` into the job's store, and returns its text; nothing where `over()`,
/// asked between two looks, says that nobody need wait any more. It may throw instead. Throws DeadlineError
/// with that sentence after `until`. A store that is slow, or stopped, is asked again.
template <class Over>
std::optional<std::string> wait_for_text(Cluster& cluster, const std::string& key,
                                         std::chrono::steady_clock::time_point until,
                                         const std::string& sentence, Over over,
                                         std::chrono::milliseconds pause = std::chrono::milliseconds(20)) {
  constexpr std::chrono::seconds most{1};
  const auto late = [&] { return std::chrono::steady_clock::now() >= until; };
  for (;;) {
    try {
      if (cluster.has_within(key, most)) return cluster.get(key, most);
    } catch (const DeadlineError&) {
      if (late()) throw;
    }
    if (over()) return std::nullopt;
    if (late()) throw DeadlineError(sentence);
    std::this_thread::sleep_for(pause);
  }
}

/// One process, which is every role.
class LoneCluster final : public Cluster {
 public:
  int rank() const override { return 0; }
  const Topology& topology() const override { return topology_; }
  std::unique_ptr<Channel> channel(const std::string& name, int, std::chrono::nanoseconds) override {
    throw Error("channel '", name, "': this job has one process; there is nobody to talk to");
  }
  std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds) override {
    check_members(name, members);
    return std::make_unique<LoneGroup>(name);
  }
  void put(const std::string& key, const std::string& value) override {
    const std::scoped_lock lock(mutex_);
    store_[key] = value;
    changed_.notify_all();
  }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, detail::deadline_after(limit), [&] { return store_.contains(key); }))
      throw detail::store_deadline(key, 0, limit);
    return store_[key];
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds) override {
    const std::scoped_lock lock(mutex_);
    return store_.contains(key);
  }
  std::int64_t count(const std::string& key) override {
    const std::scoped_lock lock(mutex_);
    return ++counters_[key];
  }

 private:
  Topology topology_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> store_;
  std::map<std::string, std::int64_t> counters_;
};

}  // namespace dvla
