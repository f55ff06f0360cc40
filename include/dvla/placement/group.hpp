// A group: collectives over host memory among some ranks, in the same order on each. What sharding and the
// start of a run are written against, without torch. Implementations: LoneGroup below, Gloo by LibTorch
// (placement/c10d.hpp), threads of one process (testing/thread_cluster.hpp).
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// One call at a time per object, the same call with the same sizes on every member. Each call has the
/// deadline that the group was made with. Throws PeerError (a member is gone) or DeadlineError, naming the
/// group, the call and this member; the group is then finished.
class Group {
 public:
  Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  virtual ~Group() = default;

  virtual int rank() const = 0;  ///< of this member, in [0, size())
  virtual int size() const = 0;

  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void sum(std::span<float> values) = 0;  ///< the same bits on every member
  virtual void sum(std::span<double> values) = 0;
  virtual void max(std::span<std::int64_t> values) = 0;
  /// all: size() parts in the order of ranks. `part` may be its own place in `all`.
  virtual void all_gather(std::span<const std::byte> part, std::span<std::byte> all) = 0;
  /// part = part number rank() of the sum of all members' `all`, which has size() parts.
  virtual void reduce_scatter(std::span<const float> all, std::span<float> part) = 0;
  virtual void barrier() = 0;
  /// Ends it from any thread, at once: calls under way here, and all later ones, throw PeerError, here and
  /// where others wait for this member.
  virtual void close() noexcept = 0;
};

namespace detail {

/// What every implementation refuses alike.
inline void check_parts(std::size_t all, std::size_t part, int size, const std::string& name) {
  if (all != part * static_cast<std::size_t>(size))
    throw Error("group '" + name + "': the whole has " + std::to_string(all) + " values; it must have " +
                std::to_string(size) + " parts of " + std::to_string(part));
}
inline void check_root(int root, int size, const std::string& name) {
  if (root < 0 || root >= size)
    throw Error("group '" + name + "': root is " + std::to_string(root) + "; it must be from 0 to " +
                std::to_string(size - 1));
}

/// What groups between processes share: who the members are, and their sentences. One that waits says for
/// whom, in which call, and of which group.
class JobGroup : public Group {
 public:
  int rank() const override { return place_; }
  int size() const override { return static_cast<int>(members_.size()); }

 protected:
  JobGroup(std::string name, std::vector<int> members, int rank, std::chrono::nanoseconds limit)
      : name_(std::move(name)),
        members_(std::move(members)),
        place_(Roles::place(members_, rank)),
        limit_(limit) {}

  std::string member(int place) const {
    return "rank " + std::to_string(members_[static_cast<std::size_t>(place)]);
  }
  PeerError lost(const std::string& whom, const std::string& call, const std::string& why) const {
    return PeerError(member(place_) + " lost " + whom + " in " + call + " of group '" + name_ + "': " + why);
  }
  DeadlineError late(const std::string& whom, const std::string& call) const {
    return DeadlineError(member(place_) + " waited " + seconds_text(limit_) + " for " + whom + " in " + call +
                         " of group '" + name_ + "'");
  }
  void check_parts(std::size_t all, std::size_t part) const { detail::check_parts(all, part, size(), name_); }
  void check_root(int root) const { detail::check_root(root, size(), name_); }

  const std::string name_;
  const std::vector<int> members_;
  const int place_;
  const std::chrono::nanoseconds limit_;
};

}  // namespace detail

/// A group of one: nothing is communicated.
class LoneGroup final : public Group {
 public:
  explicit LoneGroup(std::string name = "lone") : name_(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void broadcast(std::span<std::byte>, int root) override { detail::check_root(root, 1, name_); }
  void sum(std::span<float>) override {}
  void sum(std::span<double>) override {}
  void max(std::span<std::int64_t>) override {}
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override { copy(part, all); }
  void reduce_scatter(std::span<const float> all, std::span<float> part) override { copy(all, part); }
  void barrier() override {}
  void close() noexcept override {}  // nobody waits

 private:
  template <class From, class To>
  void copy(From from, To to) const {
    detail::check_parts(to.size(), from.size(), 1, name_);
    if (from.data() != to.data()) std::copy(from.begin(), from.end(), to.begin());
  }

  std::string name_;
};

}  // namespace dvla
