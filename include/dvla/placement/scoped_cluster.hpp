// A cluster under a name of its own: every channel, group and key of the store that is made through it has
// that name in front. So what one part of a run has made does not meet what a later part makes under the same
// names (Adaptive, which changes roles in the midst of a run).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dvla/placement/cluster.hpp"

namespace dvla {

/// Thread-safe as the cluster it is a view of, which must outlive it.
class ScopedCluster final : public Cluster {
 public:
  ScopedCluster(Cluster& whole, const std::string& scope) : whole_(whole), prefix_(scope + "/") {}

  int rank() const override { return whole_.rank(); }
  const Topology& topology() const override { return whole_.topology(); }
  std::unique_ptr<Channel> channel(const std::string& name, int peer,
                                   std::chrono::nanoseconds limit) override {
    return whole_.channel(prefix_ + name, peer, limit);
  }
  std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds limit) override {
    return whole_.group(prefix_ + name, members, limit);
  }
  void put(const std::string& key, const std::string& value) override { whole_.put(prefix_ + key, value); }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    return whole_.get(prefix_ + key, limit);
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds limit) override {
    return whole_.has_within(prefix_ + key, limit);
  }
  std::string put_once(const std::string& key, const std::string& value,
                       std::chrono::nanoseconds limit) override {
    return whole_.put_once(prefix_ + key, value, limit);
  }
  std::int64_t count(const std::string& key) override { return whole_.count(prefix_ + key); }

 private:
  Cluster& whole_;
  const std::string prefix_;
};

}  // namespace dvla
