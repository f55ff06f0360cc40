// Conformance of a Cluster: what every way to reach the other ranks must do. Every rank of the job calls
// check_cluster at the same time, in its process or thread. Returns this rank's sentences, one per violation,
// none if it conforms; no test framework. Faults that need a rank's death are not in it.
#pragma once

#include <cstring>

#include "dvla/core/random.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/testing/findings.hpp"

namespace dvla::testing {

namespace detail {

inline std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size + 8);
  SplitMix64 random(seed);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  bytes.resize(size);
  return bytes;
}

}  // namespace detail

class ClusterCheck {
 public:
  /// `limit`: of every wait that must not run out. `brief`: of those that must. `late`: of a group that is
  /// made and then fails.
  ClusterCheck(Cluster& cluster, std::chrono::nanoseconds limit, std::chrono::nanoseconds brief,
               std::chrono::nanoseconds late)
      : cluster_(cluster), limit_(limit), brief_(brief), late_(late) {}

  std::vector<std::string> run() {
    section("topology", [&] {
      expect(rank_ >= 0 && rank_ < world_, "rank must be in [0, world)");
      int nodes = 0;
      for (const int node : cluster_.topology().node) {
        expect(node >= 0 && node <= nodes, "nodes must be numbered in the order of their first rank");
        nodes = std::max(nodes, node + 1);
      }
    });
    section("refusals", [&] { refusals(); });
    section("store", [&] { store(); });
    for (int low = 0; low < world_; ++low)
      for (int high = low + 1; high < world_; ++high)
        if (rank_ == low || rank_ == high)
          section("channel of ranks " + std::to_string(low) + " and " + std::to_string(high),
                  [&] { channels(low, high); });
    for (int size = 1; size <= std::min(world_, 4); ++size) {
      std::vector<int> members;
      for (int i = 0; i < size; ++i) members.push_back(world_ - size + i);
      if (Roles::place(members, rank_) >= 0)
        section("group of " + std::to_string(size), [&] { groups(members); });
    }
    if (world_ > 1) section("late member", [&] { late_member(); });
    section("end", [&] { cluster_.group("check/end", everybody(), limit_)->barrier(); });
    return violations_;
  }

 private:
  void expect(bool holds, const std::string& what) {
    if (!holds) violations_.push_back("rank " + std::to_string(rank_) + ": " + section_ + ": " + what);
  }
  /// `how` begins with `kind` and says `names`.
  void expect_outcome(const std::string& how, const std::string& kind, const std::string& names,
                      const std::string& what) {
    expect(how.starts_with(kind) && how.find(names) != std::string::npos,
           what + ": must end as " + kind + (names.empty() ? "" : " that says '" + names + "'") + ", not " +
               how);
  }
  template <class Body>
  void section(const std::string& name, Body&& body) {
    section_ = name;
    const std::string how = detail::outcome(body);
    expect(how == "done", how);
  }
  std::vector<int> everybody() const {
    std::vector<int> all;
    for (int rank = 0; rank < world_; ++rank) all.push_back(rank);
    return all;
  }
  static std::string text_of(int rank) { return std::string("line one\nof rank ") + std::to_string(rank); }

  void refusals() {
    for (const int peer : {-1, rank_, world_})
      expect_outcome(detail::outcome([&] { cluster_.channel("check/none", peer, brief_); }), "Error",
                     "check/none", "a channel to rank " + std::to_string(peer));
    for (const std::vector<int>& members :
         {std::vector<int>{}, {rank_, rank_}, {rank_, world_}, {-1, rank_}, {(rank_ + 1) % (world_ + 1)}})
      expect_outcome(detail::outcome([&] { cluster_.group("check/none", members, brief_); }), "Error",
                     "check/none", "a group of wrong members");
  }

  void store() {
    const std::string mine = "check/text/" + std::to_string(rank_);
    expect(!cluster_.has(mine), "nobody has put this key");
    cluster_.put(mine, "first");
    cluster_.put(mine, text_of(rank_));
    cluster_.put(mine + "/empty", "");
    expect(cluster_.has(mine) && cluster_.has(mine + "/empty"), "what was put is there");
    const std::int64_t count = cluster_.count("check/count");
    expect(count >= 1 && count <= world_, "every rank counts once: " + std::to_string(count));
    const std::string first = cluster_.put_once("check/once", text_of(rank_), limit_);
    cluster_.put("check/first/" + std::to_string(rank_), first);
    expect(cluster_.put_once("check/once", "another", limit_) == first, "a text that is put once stays");
    cluster_.put("check/done/" + std::to_string(rank_), "yes");
    for (int rank = 0; rank < world_; ++rank) {
      const std::string key = std::to_string(rank);
      cluster_.get("check/done/" + key, limit_);
      expect(cluster_.get("check/text/" + key, limit_) == text_of(rank), "the last text put must be read");
      expect(cluster_.get("check/text/" + key + "/empty", limit_).empty(), "a text may be empty");
      expect(cluster_.get("check/first/" + key, limit_) == first, "all find the same text that was put once");
    }
    expect(cluster_.count("check/mine/" + std::to_string(rank_)) == 1, "a counter starts at 0");
    expect_outcome(detail::outcome([&] { cluster_.get("check/never", brief_); }), "DeadlineError",
                   "check/never", "a text that nobody puts");
    // While one thread waits for a text, others use the store.
    const std::string late = "check/late/" + std::to_string(rank_);
    detail::Beside waiter([&] { cluster_.get(late, limit_); });
    expect(cluster_.count("check/mine/" + std::to_string(rank_)) == 2, "a counter goes on");
    cluster_.put(late, "here");
    expect(waiter.how() == "done", "a text put by another thread: " + waiter.how());
  }

  void channels(int low, int high) {
    const bool first = rank_ == low;
    const int peer = first ? high : low;
    const std::string whom = "rank " + std::to_string(peer);
    const auto seed = [&](int from, std::size_t size) {
      return size * 64 + static_cast<std::uint64_t>(from);
    };
    const auto send = [&](Channel& channel, std::size_t size) {
      const auto bytes = detail::pattern(size, seed(rank_, size));
      channel.send(bytes, limit_);
    };
    const auto receive = [&](Channel& channel, std::size_t size) {
      std::vector<std::byte> bytes(size);
      channel.receive(bytes, limit_);
      return bytes == detail::pattern(size, seed(peer, size));
    };
    {
      const auto channel = cluster_.channel("check/order", peer, limit_);
      const auto other = cluster_.channel("check/other", peer, limit_);
      expect(channel->peer().find(whom) != std::string::npos, "peer() must name " + whom);
      for (std::size_t size = 1; size <= 40; ++size) {
        if (first) send(*channel, size);
        if (!first) expect(receive(*channel, size), "bytes must arrive in order");
      }
      for (const std::size_t size : {0u, 1u, 65537u}) {
        if (first) send(*other, size);
        if (!first) expect(receive(*other, size), "channels of one pair must not mix");
        if (!first) send(*channel, size);
        if (first) expect(receive(*channel, size), "bytes must go both ways");
      }
      const std::size_t large = ((high == low + 1 ? std::size_t{16} : 1) << 20) + 7;
      detail::Beside sender([&] { send(*channel, large); });
      expect(receive(*channel, large), "large messages must arrive, both ways at once");
      expect(sender.how() == "done", "sending while receiving: " + sender.how());
      expect_outcome(detail::outcome([&] { cluster_.channel("check/order", peer, limit_); }), "Error",
                     "check/order", "a name that was used before");
    }
    {  // The lower rank waits for what never comes; its error ends the channel for the other.
      const auto channel = cluster_.channel("check/silent", peer, limit_);
      std::byte byte{};
      const std::string how =
          detail::outcome([&] { channel->receive(std::span(&byte, 1), first ? brief_ : limit_); });
      if (first) {
        expect_outcome(how, "DeadlineError", whom, "a receive that runs out");
        expect_outcome(how, "DeadlineError", "check/silent", "a receive that runs out");
      } else {
        expect_outcome(how, "PeerError", whom, "the other end of a channel that ran out");
      }
      expect_outcome(detail::outcome([&] { channel->send(std::span(&byte, 1), limit_); }), "PeerError", whom,
                     "a channel that ran out is finished");
    }
    for (const bool sending : {false, true}) {  // Calls under way at both ends; the higher rank closes.
      const auto channel =
          cluster_.channel(sending ? "check/close_send" : "check/close_receive", peer, limit_);
      const auto ready = cluster_.channel(sending ? "check/ready_send" : "check/ready_receive", peer, limit_);
      detail::Beside caller([&] {
        std::vector<std::byte> bytes(sending ? std::size_t{1} << 20 : 1);
        sending ? channel->send(bytes, limit_) : channel->receive(bytes, limit_);
      });
      if (first) {
        send(*ready, 1);
      } else {
        receive(*ready, 1);
        channel->close();
      }
      expect_outcome(caller.how(), "PeerError", whom, "a call under way when the channel is closed");
      channel->close();
      std::byte byte{};
      expect_outcome(detail::outcome([&] { channel->receive(std::span(&byte, 1), limit_); }), "PeerError",
                     whom, "a call after the close");
      if (!first) send(*ready, 2);  // part in peace
      if (first) receive(*ready, 2);
    }
  }

  template <class Type>
  static std::vector<Type> values(int rank, std::size_t size) {
    std::vector<Type> list(size);
    SplitMix64 random(1000 + static_cast<std::uint64_t>(rank));
    for (Type& value : list) value = static_cast<Type>(static_cast<double>(random() >> 11) * 0x1p-53 - 0.5);
    return list;
  }
  template <class Type>
  void sums(Group& group, const std::vector<int>& members, std::size_t size) {
    auto mine = values<Type>(rank_, size);
    group.sum(std::span(mine));
    std::vector<double> plain(size);
    for (const int member : members) {
      const auto theirs = values<Type>(member, size);
      for (std::size_t i = 0; i < size; ++i) plain[i] += static_cast<double>(theirs[i]);
    }
    double worst = 0;
    for (std::size_t i = 0; i < size; ++i)
      worst = std::max(worst, std::abs(static_cast<double>(mine[i]) - plain[i]));
    expect(worst < (sizeof(Type) == 4 ? 1e-6 : 1e-14),
           "sum must be the plain sum, and is off by " + std::to_string(worst));
    const auto part = std::as_bytes(std::span(mine));
    std::vector<std::byte> all(part.size() * members.size());
    group.all_gather(part, all);
    for (std::size_t i = 0; i < members.size(); ++i)
      expect(std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(i * part.size())),
             "sum must give the same bits on every member");
  }

  void groups(const std::vector<int>& members) {
    const std::string name = "check/group/" + std::to_string(members.size());
    const auto group = cluster_.group(name, members, limit_);
    const int me = Roles::place(members, rank_);
    const std::size_t size = members.size();
    expect(group->rank() == me && group->size() == static_cast<int>(size), "rank and size are the members'");
    for (const std::size_t length : {0u, 1u, 3u, 1000u, 20011u}) {
      sums<float>(*group, members, length);
      sums<double>(*group, members, length);
      std::vector<std::int64_t> largest(length, rank_ - 7);
      group->max(largest);
      expect(std::all_of(largest.begin(), largest.end(), [&](auto x) { return x == members.back() - 7; }),
             "max must be the largest");
      for (std::size_t root = 0; root < size; ++root) {
        auto bytes = detail::pattern(length, static_cast<std::uint64_t>(rank_));
        group->broadcast(bytes, static_cast<int>(root));
        expect(bytes == detail::pattern(length, static_cast<std::uint64_t>(members[root])),
               "broadcast must give the root's bytes");
      }
      std::vector<std::byte> all(length * size), gathered(length * size);
      for (std::size_t i = 0; i < size; ++i) {
        const auto part = detail::pattern(length, static_cast<std::uint64_t>(members[i]));
        std::copy(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(i * length));
      }
      const auto place = static_cast<std::size_t>(me) * length;
      group->all_gather(std::span(all).subspan(place, length), gathered);
      expect(gathered == all, "all_gather must order the parts by rank");
      std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(place), length,
                  gathered.begin() + static_cast<std::ptrdiff_t>(place));
      group->all_gather(std::span(gathered).subspan(place, length), gathered);
      expect(gathered == all, "all_gather in place must not change it");
      const auto whole = values<float>(rank_, length * size);
      std::vector<float> part(length);
      group->reduce_scatter(whole, part);
      std::vector<double> plain(length);
      for (const int member : members) {
        const auto theirs = values<float>(member, length * size);
        for (std::size_t i = 0; i < length; ++i) plain[i] += static_cast<double>(theirs[place + i]);
      }
      bool close = true;
      for (std::size_t i = 0; i < length; ++i)
        close = close && std::abs(static_cast<double>(part[i]) - plain[i]) < 1e-6;
      expect(close, "reduce_scatter must give this member's part of the plain sum");
      expect(whole == values<float>(rank_, length * size), "reduce_scatter must leave its input alone");
    }
    group->barrier();
    std::vector<float> three(3), two(2);
    expect_outcome(detail::outcome([&] { group->reduce_scatter(three, std::span(two).first(0)); }), "Error",
                   name, "parts that do not make up the whole");
    expect_outcome(detail::outcome([&] { group->broadcast({}, static_cast<int>(size)); }), "Error", name,
                   "a root that is no member");
    group->barrier();
  }

  void late_member() {
    const std::string name = "check/late";
    cluster_.group("check/before_late", everybody(), limit_)->barrier();
    const auto group = cluster_.group(name, everybody(), late_);
    if (rank_ == world_ - 1) {
      cluster_.get("check/late_seen", limit_);
      return;
    }
    const std::string how = detail::outcome([&] { group->barrier(); });
    expect(how.starts_with("DeadlineError") || how.starts_with("PeerError"),
           "a collective that a member stays away from must fail: " + how);
    expect_outcome(how, "", name, "a collective that a member stays away from");
    expect(!detail::outcome([&] { group->barrier(); }).starts_with("done"), "the group is then finished");
    if (rank_ == 0) cluster_.put("check/late_seen", "yes");
  }

  Cluster& cluster_;
  const int rank_ = cluster_.rank(), world_ = cluster_.world();
  const std::chrono::nanoseconds limit_, brief_, late_;
  std::string section_;
  std::vector<std::string> violations_;
};

inline std::vector<std::string> check_cluster(Cluster& cluster,
                                              std::chrono::nanoseconds limit = std::chrono::seconds(20),
                                              std::chrono::nanoseconds brief = std::chrono::milliseconds(60),
                                              std::chrono::nanoseconds late = std::chrono::seconds(6)) {
  return ClusterCheck(cluster, limit, brief, late).run();
}

}  // namespace dvla::testing
