// A job whose ranks are threads of one process: a Cluster for tests of whatever is written against channels
// and groups, without torch and clean under ThreadSanitizer. As strict as Gloo: a send waits for its receive.
// Ranks can be killed, frozen and restarted. Not for programs: it copies once more than a plane in one
// process needs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <utility>

#include "dvla/placement/cluster.hpp"

namespace dvla::testing {

namespace detail {

using dvla::detail::deadline_after;
using dvla::detail::seconds_text;

/// One life of a rank.
struct Process {
  explicit Process(int which) : rank(which) {}
  const int rank;
  std::atomic<bool> killed{false}, frozen{false};
};

inline std::string rank_text(int rank) { return "rank " + std::to_string(rank); }

/// What a channel's two ends, or a group's members, share. Its mutex is taken after the hub's.
struct Common {
  Common(std::string name_, std::vector<int> members_)
      : name(std::move(name_)), members(std::move(members_)), processes(members.size()) {}

  const std::string name;
  const std::vector<int> members;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::shared_ptr<Process>> processes;  ///< in the order of members; null: not here yet
  std::string broken;                               ///< why; empty: in order

  void poke() {
    const std::scoped_lock lock(mutex);
    changed.notify_all();
  }
  void end(const std::string& why) {
    const std::scoped_lock lock(mutex);
    end_locked(why);
  }
  void end_locked(const std::string& why) {
    if (broken.empty()) broken = why;
    changed.notify_all();
  }
  bool frozen() const {
    for (const auto& process : processes)
      if (process && process->frozen) return true;
    return false;
  }
  /// The members that are not `ready`, for messages.
  template <class Ready>
  std::string absent(Ready ready) const {
    std::string text;
    for (std::size_t i = 0; i < members.size(); ++i)
      if (!ready(i)) text += (text.empty() ? "" : ", ") + rank_text(members[i]);
    return text;
  }
};

struct Wire : Common {
  using Common::Common;
  struct Offer {
    std::span<const std::byte> bytes;  ///< empty: none
  } offers[2];                         ///< from the lower rank, from the higher one
};

struct Board : Common {
  using Common::Common;
  struct Part {
    std::string what;
    const std::byte* in = nullptr;
    std::byte* out = nullptr;
    std::size_t in_size = 0, out_size = 0;  ///< bytes
    bool here = false;
  };
  std::vector<Part> parts = std::vector<Part>(members.size());
  std::int64_t round = 0;
};

struct Hub {
  explicit Hub(std::vector<int> node) {
    topology.node = std::move(node);
    for (int rank = 0; rank < topology.world(); ++rank) processes.push_back(std::make_shared<Process>(rank));
  }
  Topology topology;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::shared_ptr<Process>> processes;
  std::map<std::string, std::shared_ptr<Common>> commons;  ///< all that were ever made
  std::map<std::string, std::string> texts;
  std::map<std::string, std::int64_t> counters;

  /// For each channel and group of `rank`; with the mutex held.
  template <class Visit>
  void for_each_of(int rank, Visit visit) {
    for (auto& [key, common] : commons)
      if (Roles::place(common->members, rank) >= 0) visit(*common);
    changed.notify_all();
  }
};

class ThreadChannel final : public Channel {
 public:
  ThreadChannel(std::shared_ptr<Wire> wire, int place)
      : wire_(std::move(wire)), place_(place), peer_(rank_text(wire_->members[peer_place()])) {}
  ~ThreadChannel() override { close(); }

  void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) override {
    if (bytes.empty()) return;
    std::unique_lock lock(wire_->mutex);
    throw_if_broken();
    auto& offer = wire_->offers[place_].bytes;
    offer = bytes;
    wire_->changed.notify_all();
    wait(lock, limit, "receive " + std::to_string(bytes.size()) + " bytes", [&] { return offer.empty(); });
  }
  void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) override {
    if (bytes.empty()) return;
    std::unique_lock lock(wire_->mutex);
    throw_if_broken();
    auto& offer = wire_->offers[peer_place()].bytes;
    wait(lock, limit, "send " + std::to_string(bytes.size()) + " bytes",
         [&] { return !offer.empty() && !wire_->frozen(); });
    if (offer.size() != bytes.size()) {
      const std::string text = peer_ + " sent " + std::to_string(offer.size()) + " bytes where " +
                               std::to_string(bytes.size()) + " were to be received";
      wire_->end_locked(text);
      throw Error("channel '" + wire_->name + "': " + text);
    }
    std::memcpy(bytes.data(), offer.data(), bytes.size());
    offer = {};
    wire_->changed.notify_all();
  }
  void close() noexcept override { wire_->end(rank_text(rank()) + " closed it"); }
  const std::string& peer() const override { return peer_; }

 private:
  std::size_t peer_place() const { return static_cast<std::size_t>(1 - place_); }
  int rank() const { return wire_->members[static_cast<std::size_t>(place_)]; }
  void throw_if_broken() const {
    if (!wire_->broken.empty()) throw dvla::detail::channel_broken(wire_->name, rank(), peer_, wire_->broken);
  }
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds limit, const std::string& action,
            Ready ready) {
    const bool done = wire_->changed.wait_until(lock, deadline_after(limit),
                                                [&] { return !wire_->broken.empty() || ready(); });
    if (done && ready()) return;
    wire_->offers[place_].bytes = {};
    throw_if_broken();
    wire_->end_locked(rank_text(rank()) + " gave up after " + seconds_text(limit));
    throw dvla::detail::channel_deadline(wire_->name, rank(), peer_, action, limit);
  }

  std::shared_ptr<Wire> wire_;
  int place_;
  std::string peer_;
};

/// Whoever comes last computes for all, in the order of ranks.
class ThreadGroup final : public Group {
 public:
  ThreadGroup(std::shared_ptr<Board> board, int rank, std::chrono::nanoseconds limit)
      : Group(board->name), board_(std::move(board)), rank_(rank), limit_(limit) {}
  ~ThreadGroup() override {
    board_->end(rank_text(board_->members[static_cast<std::size_t>(rank_)]) + " left it");
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(board_->members.size()); }

  void close() noexcept override {
    board_->end(rank_text(board_->members[static_cast<std::size_t>(rank_)]) + " closed it");
  }

 protected:
  void hand_out(std::span<std::byte> bytes, int root) override {
    run("broadcast from member " + std::to_string(root), bytes, bytes, [root](auto& parts) {
      const auto& from = parts[static_cast<std::size_t>(root)];
      for (auto& to : parts) copy(to.out, from.in, from.in_size);
    });
  }
  void gather(GroupCall call, std::span<const std::byte> part, std::span<std::byte> all) override {
    run(call_name(call), part, all, [](auto& parts) {
      for (auto& to : parts)
        for (std::size_t i = 0; i < parts.size(); ++i)
          copy(to.out + i * parts[i].in_size, parts[i].in, parts[i].in_size);
    });
  }
  void scatter(GroupCall call, std::span<const float> all, std::span<float> part) override {
    run(call_name(call), std::as_bytes(all), std::as_writable_bytes(part), [](auto& parts) {
      std::vector<float> total(parts[0].in_size / sizeof(float));
      copy(reinterpret_cast<std::byte*>(total.data()), parts[0].in, parts[0].in_size);
      for (std::size_t i = 1; i < parts.size(); ++i) {
        const auto* values = reinterpret_cast<const float*>(parts[i].in);
        for (std::size_t j = 0; j < total.size(); ++j) total[j] += values[j];
      }
      for (std::size_t i = 0; i < parts.size(); ++i)
        copy(parts[i].out, total.data() + i * parts[i].out_size / sizeof(float), parts[i].out_size);
    });
  }

 private:
  static void copy(std::byte* to, const void* from, std::size_t size) {
    if (size > 0 && to != from) std::memmove(to, from, size);
  }
  std::string who() const {
    return rank_text(board_->members[static_cast<std::size_t>(rank_)]) + " in " +
           board_->parts[static_cast<std::size_t>(rank_)].what + " of group '" + board_->name + "'";
  }
  void check_alike() {
    for (std::size_t i = 1; i < board_->parts.size(); ++i) {
      const auto &a = board_->parts[0], &b = board_->parts[i];
      if (a.what == b.what && a.in_size == b.in_size && a.out_size == b.out_size) continue;
      const auto one = [&](std::size_t place, const Board::Part& part) {
        return rank_text(board_->members[place]) + " calls " + part.what + " of " +
               std::to_string(part.in_size) + " bytes";
      };
      board_->end_locked(one(0, a) + ", and " + one(i, b));
    }
  }
  template <class Compute>
  void run(std::string what, std::span<const std::byte> in, std::span<std::byte> out, Compute compute) {
    std::unique_lock lock(board_->mutex);
    auto& parts = board_->parts;
    auto& mine = parts[static_cast<std::size_t>(rank_)];
    mine = {std::move(what), in.data(), out.data(), in.size(), out.size(), true};
    const std::int64_t round = board_->round;
    board_->changed.notify_all();
    const auto all_here = [&] {
      return !board_->frozen() && std::all_of(parts.begin(), parts.end(), [](auto& p) { return p.here; });
    };
    const bool done = board_->changed.wait_until(lock, deadline_after(limit_), [&] {
      return board_->round != round || !board_->broken.empty() || all_here();
    });
    if (board_->round != round) return;
    mine.here = false;
    if (!board_->broken.empty()) throw PeerError(who() + ": " + board_->broken);
    if (!done) {
      const std::string text =
          who() + " waited " + seconds_text(limit_) + " for " + board_->absent([&](auto i) {
            return (i == static_cast<std::size_t>(rank_) || parts[i].here) && !board_->processes[i]->frozen;
          });
      board_->end_locked(text);
      throw DeadlineError(text);
    }
    mine.here = true;
    check_alike();
    if (!board_->broken.empty()) throw Error("group '" + board_->name + "': " + board_->broken);
    compute(parts);
    for (auto& part : parts) part.here = false;
    ++board_->round;
    board_->changed.notify_all();
  }

  std::shared_ptr<Board> board_;
  int rank_;
  std::chrono::nanoseconds limit_;
};

}  // namespace detail

/// One rank's cluster. Threads of different ranks use different ones; kill, freeze, thaw and restart may be
/// called on any of them, from any thread.
class ThreadCluster final : public Cluster {
 public:
  /// `node`: each rank's machine; empty: all on one. `joined`: as Topology::joined.
  static std::vector<std::unique_ptr<ThreadCluster>> make(int world, std::vector<int> node = {},
                                                          std::vector<int> joined = {}) {
    if (node.empty()) node.assign(static_cast<std::size_t>(std::max(world, 0)), 0);
    if (world < 1 || node.size() != static_cast<std::size_t>(world))
      throw ConfigError("ThreadCluster: world is " + std::to_string(world) + " and node names " +
                        std::to_string(node.size()) + " ranks; both must be the same number, at least 1");
    auto hub = std::make_shared<detail::Hub>(std::move(node));
    hub->topology.joined = std::move(joined);
    std::vector<std::unique_ptr<ThreadCluster>> ranks;
    for (const auto& process : hub->processes) ranks.emplace_back(new ThreadCluster(hub, process));
    return ranks;
  }

  /// As SIGKILL: all calls of the rank, and those of others that wait for it, throw PeerError.
  void kill(int rank) {
    const std::scoped_lock lock(hub_->mutex);
    process(rank)->killed = true;
    hub_->for_each_of(rank, [&](auto& common) { common.end(detail::rank_text(rank) + " was killed"); });
  }
  /// As SIGSTOP: what the rank sends and receives waits, until thaw() or the limit.
  void freeze(int rank) { set_frozen(rank, true); }
  void thaw(int rank) { set_frozen(rank, false); }
  /// The rank's next life; what the last one had stays broken. The store keeps its texts.
  std::unique_ptr<ThreadCluster> restart(int rank) {
    kill(rank);
    const std::scoped_lock lock(hub_->mutex);
    auto fresh = hub_->processes[static_cast<std::size_t>(rank)] = std::make_shared<detail::Process>(rank);
    return std::unique_ptr<ThreadCluster>(new ThreadCluster(hub_, fresh));
  }

  /// One more process that takes itself for this rank, which lives on; kill and freeze leave it alone.
  std::unique_ptr<ThreadCluster> twin(int rank) {
    const std::scoped_lock lock(hub_->mutex);
    return std::unique_ptr<ThreadCluster>(
        new ThreadCluster(hub_, std::make_shared<detail::Process>(process(rank)->rank)));
  }

  int rank() const override { return process_->rank; }
  const Topology& topology() const override { return hub_->topology; }

  std::unique_ptr<Channel> channel(const std::string& name, int peer,
                                   std::chrono::nanoseconds limit) override {
    check_peer(name, peer);
    const std::vector<int> members{std::min(rank(), peer), std::max(rank(), peer)};
    return std::make_unique<detail::ThreadChannel>(meet<detail::Wire>("channel", name, members, limit),
                                                   rank() < peer ? 0 : 1);
  }
  std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds limit) override {
    check_members(name, members);
    return std::make_unique<detail::ThreadGroup>(meet<detail::Board>("group", name, members, limit),
                                                 Roles::place(members, rank()), limit);
  }

  void put(const std::string& key, const std::string& value) override {
    const std::scoped_lock lock(hub_->mutex);
    throw_if_killed();
    hub_->texts[key] = value;
    hub_->changed.notify_all();
  }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    std::unique_lock lock(hub_->mutex);
    const bool done = hub_->changed.wait_until(lock, dvla::detail::deadline_after(limit),
                                               [&] { return process_->killed || hub_->texts.contains(key); });
    throw_if_killed();
    if (!done) throw dvla::detail::store_deadline(key, rank(), limit);
    return hub_->texts[key];
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds) override {
    const std::scoped_lock lock(hub_->mutex);
    throw_if_killed();
    return hub_->texts.contains(key);
  }
  /// Of the store's calls the one that waits while this rank is frozen: what it has to say comes too late.
  std::string put_once(const std::string& key, const std::string& value,
                       std::chrono::nanoseconds limit) override {
    std::unique_lock lock(hub_->mutex);
    const bool done = hub_->changed.wait_until(lock, dvla::detail::deadline_after(limit),
                                               [&] { return process_->killed || !process_->frozen; });
    throw_if_killed();
    if (!done) throw dvla::detail::store_deadline(key, rank(), limit);
    hub_->texts.try_emplace(key, value);
    hub_->changed.notify_all();
    return hub_->texts[key];
  }
  std::int64_t count(const std::string& key) override {
    const std::scoped_lock lock(hub_->mutex);
    throw_if_killed();
    return ++hub_->counters[key];
  }

 private:
  ThreadCluster(std::shared_ptr<detail::Hub> hub, std::shared_ptr<detail::Process> process)
      : hub_(std::move(hub)), process_(std::move(process)) {}

  std::shared_ptr<detail::Process>& process(int rank) const {
    if (rank < 0 || rank >= world()) throw Error("ThreadCluster has no rank " + std::to_string(rank));
    return hub_->processes[static_cast<std::size_t>(rank)];
  }
  void set_frozen(int rank, bool frozen) {
    const std::scoped_lock lock(hub_->mutex);
    process(rank)->frozen = frozen;
    hub_->for_each_of(rank, [](auto& common) { common.poke(); });
  }
  void throw_if_killed() const {
    if (process_->killed) throw PeerError(detail::rank_text(rank()) + " was killed");
  }

  /// Waits until every member has asked for the same thing.
  template <class Type>
  std::shared_ptr<Type> meet(const std::string& kind, const std::string& name,
                             const std::vector<int>& members, std::chrono::nanoseconds limit) {
    std::unique_lock lock(hub_->mutex);
    throw_if_killed();
    std::string key = kind + " '" + name + "'";
    for (const int member : members) key += " " + std::to_string(member);
    auto& entry = hub_->commons[key];
    if (!entry) entry = std::make_shared<Type>(name, members);
    const auto shared = std::static_pointer_cast<Type>(entry);
    const auto place = static_cast<std::size_t>(Roles::place(members, rank()));
    const auto here = [&](std::size_t i) { return shared->processes[i] != nullptr; };
    {
      const std::scoped_lock inner(shared->mutex);
      if (here(place))
        throw Error(detail::rank_text(rank()) + " has made " + key + " before; names must be new");
      shared->processes[place] = process_;
    }
    hub_->changed.notify_all();
    const auto count_missing = [&] {
      std::size_t missing = 0;
      for (std::size_t i = 0; i < members.size(); ++i) missing += here(i) ? 0U : 1U;
      return missing;
    };
    const auto gone = [&] {  // a member that will never come
      for (std::size_t i = 0; i < members.size(); ++i)
        if (!here(i) && process(members[i])->killed) return members[i];
      return -1;
    };
    const bool done = hub_->changed.wait_until(lock, dvla::detail::deadline_after(limit), [&] {
      return process_->killed || count_missing() == 0 || gone() >= 0;
    });
    throw_if_killed();
    if (done && count_missing() == 0) return shared;
    const std::string who = detail::rank_text(rank());
    if (const int dead = gone(); dead >= 0) {
      shared->end(detail::rank_text(dead) + " was killed");
      throw PeerError(who + " cannot make " + key + ": " + detail::rank_text(dead) + " was killed");
    }
    const std::string text = who + " waited " + dvla::detail::seconds_text(limit) + " for " +
                             shared->absent(here) + " to make " + key;
    shared->end(text);
    throw DeadlineError(text);
  }

  std::shared_ptr<detail::Hub> hub_;
  std::shared_ptr<detail::Process> process_;
};

}  // namespace dvla::testing
