// A group: collectives over host memory among some ranks, in the same order on each. What sharding and the
// start of a run are written against, without torch. Implementations: LoneGroup below, Gloo by LibTorch
// (placement/c10d.hpp), threads of one process (testing/thread_cluster.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/topology.hpp"

namespace dvla {

/// What a group does, by which its messages and its sentences tell calls apart.
enum class GroupCall : std::uint8_t { broadcast, sum, max, all_gather, reduce_scatter, barrier };
inline const char* call_name(GroupCall call) {
  static constexpr std::array names{"broadcast", "sum", "max", "all_gather", "reduce_scatter", "barrier"};
  return names[static_cast<std::size_t>(call)];
}

/// One call at a time per object, the same call with the same sizes on every member. Each exchange has the
/// deadline that the group was made with. Throws PeerError (a member is gone) or DeadlineError, naming the
/// group, the call and this member; the group is then finished.
///
/// An implementation says how members hand out, gather and scatter; sums, largest values and barriers are made
/// of these, so that they give the same bits on every member.
class Group {
 public:
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  virtual ~Group() = default;

  virtual int rank() const = 0;  ///< of this member, in [0, size())
  virtual int size() const = 0;

  void broadcast(std::span<std::byte> bytes, int root) {
    if (root < 0 || root >= size())
      throw Error("group '", name_, "': root is ", root, "; it must be from 0 to ", size() - 1);
    hand_out(bytes, root);
  }
  void sum(std::span<float> values) {
    const auto members = static_cast<std::size_t>(size()), place = static_cast<std::size_t>(rank());
    const std::size_t share = values.size_bytes() < small ? 0 : values.size() / members;
    const std::span<float> whole = values.first(share * members), mine = values.subspan(share * place, share);
    if (share > 0) {
      scatter(GroupCall::sum, whole, mine);
      gather(GroupCall::sum, std::as_bytes(mine), std::as_writable_bytes(whole));
    }
    fold(GroupCall::sum, values.subspan(whole.size()), std::plus<float>());
  }
  void sum(std::span<double> values) { fold(GroupCall::sum, values, std::plus<double>()); }
  void max(std::span<std::int64_t> values) {
    fold(GroupCall::max, values, [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
  }
  /// all: size() parts in the order of ranks. `part` may be its own place in `all`.
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) {
    check_parts(all.size(), part.size());
    gather(GroupCall::all_gather, part, all);
  }
  /// part = part number rank() of the sum of all members' `all`, which has size() parts.
  void reduce_scatter(std::span<const float> all, std::span<float> part) {
    check_parts(all.size(), part.size());
    scatter(GroupCall::reduce_scatter, all, part);
  }
  void barrier() {
    std::byte none{};
    fold(GroupCall::barrier, std::span(&none, 1), std::bit_or<std::byte>());
  }
  /// Ends it from any thread, at once: calls under way here, and all later ones, throw PeerError, here and
  /// where others wait for this member.
  virtual void close() noexcept = 0;

 protected:
  explicit Group(std::string name) : name_(std::move(name)) {}

  virtual void hand_out(std::span<std::byte> bytes, int root) = 0;
  /// As all_gather and reduce_scatter. `part` may be its own place in `all`.
  virtual void gather(GroupCall call, std::span<const std::byte> part, std::span<std::byte> all) = 0;
  virtual void scatter(GroupCall call, std::span<const float> all, std::span<float> part) = 0;

  const std::string name_;

 private:
  /// Sums of fewer bytes are gathered whole: one exchange instead of two.
  static constexpr std::size_t small = 16384;

  void check_parts(std::size_t all, std::size_t part) const {
    if (all != part * static_cast<std::size_t>(size()))
      throw Error("group '", name_, "': the whole has ", all, " values; it must have ", size(), " parts of ",
                  part);
  }
  /// In the order of ranks.
  template <class Type, class Operation>
  void fold(GroupCall call, std::span<Type> values, Operation operation) {
    if (values.empty()) return;
    gathered_.resize(values.size_bytes() * static_cast<std::size_t>(size()));
    gather(call, std::as_bytes(values), gathered_);
    const auto* theirs = reinterpret_cast<const Type*>(gathered_.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      Type total = theirs[i];
      for (std::size_t at = i + values.size(); at < values.size() * static_cast<std::size_t>(size());
           at += values.size())
        total = operation(total, theirs[at]);
      values[i] = total;
    }
  }

  std::vector<std::byte> gathered_;
};

namespace detail {

/// What groups between processes share: who the members are, and their sentences. One that waits says for
/// whom, in which call, and of which group.
class JobGroup : public Group {
 public:
  int rank() const override { return place_; }
  int size() const override { return static_cast<int>(members_.size()); }

 protected:
  JobGroup(std::string name, std::vector<int> members, int rank, std::chrono::nanoseconds limit)
      : Group(std::move(name)),
        members_(std::move(members)),
        place_(Roles::place(members_, rank)),
        limit_(limit) {}

  std::string member(int place) const {
    return "rank " + std::to_string(members_[static_cast<std::size_t>(place)]);
  }
  PeerError lost(const std::string& whom, GroupCall call, const std::string& why) const {
    return PeerError(member(place_), " lost ", whom, " in ", call_name(call), " of group '", name_,
                     "': ", why);
  }
  DeadlineError late(const std::string& whom, GroupCall call) const {
    return waited(members_[static_cast<std::size_t>(place_)], limit_, "for ", whom, " in ", call_name(call),
                  " of group '", name_, "'");
  }

  const std::vector<int> members_;
  const int place_;
  const std::chrono::nanoseconds limit_;
};

}  // namespace detail

/// A group of one: nothing is communicated.
class LoneGroup final : public Group {
 public:
  explicit LoneGroup(std::string name = "lone") : Group(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void close() noexcept override {}  // nobody waits

 protected:
  void hand_out(std::span<std::byte>, int) override {}
  void gather(GroupCall, std::span<const std::byte> part, std::span<std::byte> all) override {
    if (all.data() != part.data()) std::copy(part.begin(), part.end(), all.begin());
  }
  void scatter(GroupCall, std::span<const float> all, std::span<float> part) override {
    gather(GroupCall::reduce_scatter, std::as_bytes(all), std::as_writable_bytes(part));
  }
};

}  // namespace dvla
