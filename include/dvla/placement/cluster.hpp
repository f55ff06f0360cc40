// A cluster: this process's view of the job: who it is, and how it reaches the others. Made once at the start
// of a run; channels and groups are made from it by name. Implementations: C10dCluster (placement/c10d.hpp:
// TCPStore and Gloo), LoneCluster below (one process), threads of one process (testing/thread_cluster.hpp).
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

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
  virtual bool has(const std::string& key) = 0;
  /// Adds 1 to a counter that starts at 0, and returns it.
  virtual std::int64_t count(const std::string& key) = 0;
};

/// One process, which is every role.
class LoneCluster final : public Cluster {
 public:
  int rank() const override { return 0; }
  const Topology& topology() const override { return topology_; }
  std::unique_ptr<Channel> channel(const std::string& name, int, std::chrono::nanoseconds) override {
    throw Error("channel '" + name + "': this job has one process; there is nobody to talk to");
  }
  std::unique_ptr<Group> group(const std::string&, const std::vector<int>&,
                               std::chrono::nanoseconds) override {
    return std::make_unique<LoneGroup>();
  }
  void put(const std::string& key, const std::string& value) override {
    const std::scoped_lock lock(mutex_);
    store_[key] = value;
  }
  std::string get(const std::string& key, std::chrono::nanoseconds) override {
    const std::scoped_lock lock(mutex_);
    if (const auto found = store_.find(key); found != store_.end()) return found->second;
    throw DeadlineError("store: '" + key + "' was never put, and this job has one process");
  }
  bool has(const std::string& key) override {
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
  std::map<std::string, std::string> store_;
  std::map<std::string, std::int64_t> counters_;
};

}  // namespace dvla
