// A channel and a group on Links. Collectives are made of Gloo's sends and receives, not of c10d's own
// collectives (torch 2.15, two ranks, 64 MiB): all_gather there copies through a fresh tensor and takes six
// times as long, reduce_scatter there sends the bytes of an all-reduce, twice as many; and one that waits in
// the middle of a message does not learn that its peer died. Sums are in the order of ranks, so they have the
// same bits on every member, in every run, and in threads (testing/thread_cluster.hpp).
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "dvla/placement/c10d_links.hpp"
#include "dvla/placement/group.hpp"

namespace dvla::detail {

class C10dChannel final : public Channel {
 public:
  C10dChannel(std::unique_ptr<Links> links, std::string name, int rank, int peer)
      : links_(std::move(links)),
        name_(std::move(name)),
        rank_(rank),
        peer_("rank " + std::to_string(peer)) {}

  void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) override {
    transfer("receive", bytes.size(), limit,
             [&](Links::Transfers& transfers) { links_->send(transfers, other(), bytes, 0); });
  }
  void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) override {
    transfer("send", bytes.size(), limit,
             [&](Links::Transfers& transfers) { links_->receive(transfers, other(), bytes, 0); });
  }
  void close() noexcept override { links_->close("this rank closed it"); }
  const std::string& peer() const override { return peer_; }

 private:
  int other() const { return 1 - links_->place(); }
  template <class Start>
  void transfer(const char* peers_part, std::size_t size, std::chrono::nanoseconds limit, Start start) {
    const auto until = deadline_after(limit);
    try {
      Links::Transfers transfers;
      start(transfers);
      links_->finish(transfers, until);
    } catch (const LinkBroken& broken) {
      if (!broken.late) throw channel_broken(name_, rank_, peer_, broken.why);
      throw channel_deadline(name_, rank_, peer_, peers_part + (" " + std::to_string(size)) + " bytes",
                             limit);
    }
  }

  std::unique_ptr<Links> links_;
  std::string name_;
  int rank_;
  std::string peer_;
};

/// Every member talks to every other one directly: all_gather and reduce_scatter move (n-1) parts in and out
/// of each rank, a sum twice that. Scratch: as many bytes as the others' parts, kept.
class C10dGroup final : public JobGroup {
 public:
  C10dGroup(std::unique_ptr<Links> links, std::string name, std::vector<int> members,
            std::chrono::nanoseconds limit)
      : JobGroup(std::move(name), members, members[static_cast<std::size_t>(links->place())], limit),
        links_(std::move(links)) {}

  void broadcast(std::span<std::byte> bytes, int root) override {
    check_root(root);
    call("broadcast", [&](Links::Transfers& transfers) {
      if (rank() != root) return links_->receive(transfers, root, bytes, 1);
      for_each_other([&](int peer) { links_->send(transfers, peer, bytes, 1); });
    });
  }
  void sum(std::span<float> values) override { fold("sum", 2, values, std::plus<float>()); }
  void sum(std::span<double> values) override { fold("sum", 4, values, std::plus<double>()); }
  void max(std::span<std::int64_t> values) override {
    fold("max", 6, values, [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
  }
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override {
    check_parts(all.size(), part.size());
    const std::span<std::byte> mine = part_of(all, rank());
    if (!part.empty() && mine.data() != part.data()) std::memmove(mine.data(), part.data(), part.size());
    exchange(
        "all_gather", 8, [&](int peer) { return part_of(all, peer); }, [&](int) { return mine; });
  }
  void reduce_scatter(std::span<const float> all, std::span<float> part) override {
    check_parts(all.size(), part.size());
    const std::span<float> theirs = scratch<float>(all.size());
    exchange(
        "reduce_scatter", 9, [&](int peer) { return part_of(theirs, peer); },
        [&](int peer) { return part_of(all, peer); });
    combine(part_of(all, rank()), theirs, part, std::plus<float>());
  }
  void barrier() override {
    std::int64_t none = 0;
    fold("barrier", 10, std::span(&none, 1), std::plus<std::int64_t>());
  }
  void close() noexcept override { links_->close("this rank closed it"); }

 private:
  /// Sums of fewer bytes are sent whole to everybody: one exchange instead of two.
  static constexpr std::size_t small = 16384;

  template <class Type>
  std::span<Type> part_of(std::span<Type> all, int place) const {
    const std::size_t part = all.size() / static_cast<std::size_t>(size());
    return all.subspan(static_cast<std::size_t>(place) * part, part);
  }
  template <class Type>
  std::span<Type> scratch(std::size_t count) {
    if (scratch_.size() < count * sizeof(Type)) scratch_.resize(count * sizeof(Type));
    return {reinterpret_cast<Type*>(scratch_.data()), count};
  }
  /// Beginning after this member, so that not all talk to the first one first.
  template <class Visit>
  void for_each_other(Visit visit) const {
    for (int step = 1; step < size(); ++step) visit((rank() + step) % size());
  }
  template <class Start>
  void call(const char* what, Start start) {
    const auto until = deadline_after(limit_);
    try {
      Links::Transfers transfers;
      start(transfers);
      links_->finish(transfers, until);
    } catch (const LinkBroken& broken) {
      if (broken.late) throw late(member(broken.peer), what);
      throw lost(member(broken.peer), what, broken.why);
    }
  }

  /// `into(peer)` from each other member, `from(peer)` to it.
  template <class Into, class From>
  void exchange(const char* what, int kind, Into into, From from) {
    call(what, [&](Links::Transfers& transfers) {
      for_each_other(
          [&](int peer) { links_->receive(transfers, peer, std::as_writable_bytes(into(peer)), kind); });
      for_each_other([&](int peer) { links_->send(transfers, peer, std::as_bytes(from(peer)), kind); });
    });
  }

  /// out = mine and the others' in the order of ranks; `theirs` has a part per member, this one's unused.
  /// `out` may be `mine`.
  template <class Type, class Operation>
  void combine(std::span<const Type> mine, std::span<const std::type_identity_t<Type>> theirs,
               std::span<std::type_identity_t<Type>> out, Operation operation) const {
    constexpr std::size_t block = 2048;
    Type total[block];
    for (std::size_t first = 0; first < out.size(); first += block) {
      const std::size_t count = std::min(block, out.size() - first);
      for (int member = 0; member < size(); ++member) {
        const Type* values = (member == rank() ? mine : part_of(theirs, member)).data() + first;
        if (member == 0) std::copy_n(values, count, total);
        if (member > 0)
          for (std::size_t i = 0; i < count; ++i) total[i] = operation(total[i], values[i]);
      }
      std::copy_n(total, count, out.data() + first);
    }
  }
  template <class Type, class Operation>
  void fold(const char* what, int kind, std::span<Type> values, Operation operation) {
    const auto members = static_cast<std::size_t>(size());
    if (values.size_bytes() < small) {
      const std::span<Type> theirs = scratch<Type>(values.size() * members);
      exchange(
          what, kind, [&](int peer) { return part_of(theirs, peer); }, [&](int) { return values; });
      return combine(std::span<const Type>(values), theirs, values, operation);
    }
    const auto share = [&](int member) {
      const Share piece = share_of(static_cast<std::int64_t>(values.size()), size(), member);
      return values.subspan(static_cast<std::size_t>(piece.first), static_cast<std::size_t>(piece.count));
    };
    const std::span<Type> mine = share(rank());
    const std::span<Type> theirs = scratch<Type>(mine.size() * members);
    exchange(
        what, kind, [&](int peer) { return part_of(theirs, peer); }, share);
    combine(std::span<const Type>(mine), theirs, mine, operation);
    exchange(what, kind + 1, share, [&](int) { return mine; });
  }

  std::unique_ptr<Links> links_;
  std::vector<std::byte> scratch_;
};

}  // namespace dvla::detail
