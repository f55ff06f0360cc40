// A channel and a group on Links. Collectives are made of Gloo's sends and receives, not of c10d's own
// collectives (torch 2.15, two ranks, 64 MiB): all_gather there copies through a fresh tensor and takes six
// times as long, reduce_scatter there sends the bytes of an all-reduce, twice as many; and one that waits in
// the middle of a message does not learn that its peer died. Sums are in the order of ranks, so they have the
// same bits on every member, in every run, and in threads (testing/thread_cluster.hpp).
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

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
    try {
      links_->run(limit, start);
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

  void close() noexcept override { links_->close("this rank closed it"); }

 protected:
  void hand_out(std::span<std::byte> bytes, int root) override {
    exchange(GroupCall::broadcast, [&](Links::Transfers& transfers, int kind) {
      if (rank() != root) return links_->receive(transfers, root, bytes, kind);
      for_each_other([&](int peer) { links_->send(transfers, peer, bytes, kind); });
    });
  }
  void gather(GroupCall call, std::span<const std::byte> part, std::span<std::byte> all) override {
    const std::span<std::byte> mine = part_of(all, rank());
    if (!part.empty() && mine.data() != part.data()) std::memmove(mine.data(), part.data(), part.size());
    exchange(call, [&](Links::Transfers& transfers, int kind) {
      for_each_other([&](int peer) { links_->receive(transfers, peer, part_of(all, peer), kind); });
      for_each_other([&](int peer) { links_->send(transfers, peer, mine, kind); });
    });
  }
  void scatter(GroupCall call, std::span<const float> all, std::span<float> part) override {
    scratch_.resize(std::max(scratch_.size(), all.size()));
    const std::span<float> theirs = std::span(scratch_).first(all.size());
    exchange(call, [&](Links::Transfers& transfers, int kind) {
      for_each_other([&](int peer) {
        links_->receive(transfers, peer, std::as_writable_bytes(part_of(theirs, peer)), kind);
      });
      for_each_other(
          [&](int peer) { links_->send(transfers, peer, std::as_bytes(part_of(all, peer)), kind); });
    });
    constexpr std::size_t block = 2048;
    float total[block];
    for (std::size_t first = 0; first < part.size(); first += block) {
      const std::size_t count = std::min(block, part.size() - first);
      for (int member = 0; member < size(); ++member) {
        const float* values =
            (member == rank() ? part_of(all, member) : part_of(theirs, member)).data() + first;
        if (member == 0) std::copy_n(values, count, total);
        if (member > 0)
          for (std::size_t i = 0; i < count; ++i) total[i] += values[i];
      }
      std::copy_n(total, count, part.data() + first);
    }
  }

 private:
  template <class Type>
  std::span<Type> part_of(std::span<Type> all, int place) const {
    const std::size_t part = all.size() / static_cast<std::size_t>(size());
    return all.subspan(static_cast<std::size_t>(place) * part, part);
  }
  /// Beginning after this member, so that not all talk to the first one first.
  template <class Visit>
  void for_each_other(Visit visit) const {
    for (int step = 1; step < size(); ++step) visit((rank() + step) % size());
  }
  /// `start(transfers, kind)` puts this call's sends and receives under way.
  template <class Start>
  void exchange(GroupCall call, Start start) {
    try {
      links_->run(limit_, [&](Links::Transfers& transfers) { start(transfers, 1 + static_cast<int>(call)); });
    } catch (const LinkBroken& broken) {
      if (broken.late) throw late(member(broken.peer), call);
      throw lost(member(broken.peer), call, broken.why);
    }
  }

  std::unique_ptr<Links> links_;
  std::vector<float> scratch_;
};

}  // namespace dvla::detail
