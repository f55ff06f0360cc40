// The actor's bounded resource queue in host memory: which batch lies in which buffer, what of it has come,
// and what still will. Paper: "the actor's host-memory queue takes what arrives while training runs; full
// means back-pressure". Batch n lies in buffer n % buffers; a part of it is admitted only when that buffer is
// free. Knows blocks and strips of memory and no channel: inbox.hpp has those.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/wire.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla {

/// What has come of a batch, at one actor.
struct BatchArrival {
  std::int64_t episodes = 0;         ///< that are there
  std::int64_t lost = 0;             ///< columns of rollouts that are gone: their group is -1
  std::int64_t oldest_version = -1;  ///< that decided in any episode that is there; -1: none is
  SenderCounts counts;               ///< add over the actors for the batch's total
};

/// How an actor sees a rollout that sends to it.
struct SenderReport {
  int rollout = 0;
  std::int64_t incarnation = 0;
  bool present = true;        ///< false: lost, or it has said goodbye
  std::int64_t received = 0;  ///< episodes, over all incarnations
  /// Of received: from lives that ended without a goodbye, or before the present one. What those have sent,
  /// nobody else can say.
  std::int64_t unreported = 0;
  std::string why;  ///< it is not present
};

namespace detail {

/// Of the wait for a peer's next message, or for room for it. A peer may rightly be busy for long, and one
/// that is gone is found by the heartbeat, which closes the channel; the lanes' own calls have the run's
/// deadline.
inline constexpr std::chrono::nanoseconds between_messages = std::chrono::hours(24);

/// Blocks of one size from a pool, given back at the end.
class Blocks {
 public:
  Blocks(std::size_t count, std::size_t bytes, std::pmr::memory_resource& pool) : pool_(pool), bytes_(bytes) {
    if (bytes == 0) return;
    try {
      while (blocks_.size() < count)
        blocks_.push_back(static_cast<std::byte*>(pool_.allocate(bytes_, record_alignment)));
    } catch (...) {
      free();
      throw;
    }
  }
  ~Blocks() { free(); }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;
  std::byte* operator[](std::size_t i) const { return blocks_[i]; }
  std::size_t size() const { return blocks_.size(); }

 private:
  void free() {
    for (std::byte* block : blocks_) pool_.deallocate(block, bytes_, record_alignment);
  }
  std::pmr::memory_resource& pool_;
  std::size_t bytes_;
  std::vector<std::byte*> blocks_;
};

inline std::string batch_text(std::int64_t batch) { return "batch " + std::to_string(batch); }

/// One trainer thread: await, reading, release, drop, end. Receivers, one a sender: all others.
class BatchQueue {
 public:
  struct Options {
    int buffers = 1;
    std::int64_t first_batch = 0;
    std::int64_t group_episodes = 1;
    std::chrono::nanoseconds deadline{};
    bool only_actor = true;
    bool may_return = false;                 ///< rollouts that have said goodbye; else those end the batches
    std::string name;                        ///< "rank 3 (actor 0)"
    std::vector<std::string> rollout_names;  ///< of all rollouts
  };
  struct Totals {
    std::int64_t received = 0, trained = 0, dropped = 0, lost = 0, in_flight = 0;
    std::int64_t bytes_received = 0, bytes_local = 0;
    std::vector<SenderReport> senders;
  };

  /// `routes`: those of this actor; strips[i]: where routes[i] lies in a block. `blocks`: as many as buffers.
  BatchQueue(Options options, std::vector<Route> routes, std::vector<Strips> strips, const Blocks& blocks)
      : options_(std::move(options)),
        routes_(std::move(routes)),
        strips_(std::move(strips)),
        next_(options_.first_batch),
        newest_(options_.first_batch - 1),
        slots_(static_cast<std::size_t>(options_.buffers)) {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].block = blocks[i];
      slots_[i].parts.assign(routes_.size(), Part::absent);
    }
    for (const Route& route : routes_) {
      if (senders_.empty() || senders_.back().rollout != route.rollout) {
        senders_.emplace_back();
        senders_.back().rollout = route.rollout;
        senders_.back().expected_from = options_.first_batch;
      }
      sender_of_.push_back(senders_.size() - 1);
    }
  }
  BatchQueue(const BatchQueue&) = delete;
  BatchQueue& operator=(const BatchQueue&) = delete;

  const Options& options() const { return options_; }
  const std::vector<Route>& routes() const { return routes_; }
  const std::vector<Strips>& strips() const { return strips_; }
  const std::string& name_of(int rollout) const {
    return options_.rollout_names[static_cast<std::size_t>(rollout)];
  }
  /// Position of a plan's route among this actor's.
  std::optional<std::size_t> find_route(int rollout, std::int64_t first_group, std::int64_t groups) const {
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (routes_[i].rollout == rollout && routes_[i].first_group == first_group &&
          routes_[i].groups == groups)
        return i;
    return {};
  }

  // ---- The trainer

  /// Waits until every part of `batch` is there, or will never be. False: there is no such batch, because all
  /// senders have said goodbye before it, or all are gone and `stop`, which may be null, asks. Throws
  /// DeadlineError, which says whose parts are missing.
  bool await(std::int64_t batch, const stop_flag* stop = nullptr) {
    std::unique_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return true;
    if (batch != next_)
      throw Error("data plane: " + options_.name + " asks for " + batch_text(batch) + ", but " +
                  batch_text(next_) + " is the next one: batches are trained in order, each once");
    if (slot.state == State::reading)
      throw Error("data plane: " + options_.name + " cannot read " + batch_text(batch) + ": " +
                  batch_text(slot.batch) + " is still being trained on in its buffer; release it first");
    const auto until = deadline_after(options_.deadline);
    bool done = false, stopped = false;
    while (!done && !stopped && std::chrono::steady_clock::now() < until) {
      done = changed_.wait_until(lock, std::min(until, deadline_after(std::chrono::milliseconds(50))),
                                 [&] { return closed_ || ended_ || finished(batch) || complete(batch); });
      stopped = !done && stop && stop->stop_requested() && nobody();
    }
    throw_if_closed();
    if (ended_ || finished(batch) || stopped) return false;
    if (!done)
      throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                          " for " + batch_text(batch) + ": missing is " + missing(batch));
    if (slot.state == State::free) open(slot, batch);
    slot.state = State::reading;
    ++next_;
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (slot.parts[i] != Part::arrived) slot.arrival.lost += episodes(routes_[i]);
    changed_.notify_all();
    return true;
  }

  /// Of a batch that is being trained on: between await and release it is the trainer's alone.
  struct Reading {
    std::byte* block;
    BatchArrival arrival;
    std::vector<std::size_t> absent;  ///< the routes whose columns hold nothing
  };
  Reading reading(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    const Slot& slot = expect_reading(batch, "is not being trained on");
    Reading result{slot.block, slot.arrival, {}};
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (slot.parts[i] != Part::arrived) result.absent.push_back(i);
    return result;
  }

  void release(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = expect_reading(batch, "cannot be released: it is not being trained on");
    totals_.trained += slot.arrival.episodes;
    totals_.lost += slot.arrival.lost;
    free(slot);
  }

  /// Gives up a batch: the one that is being trained on, or the next one, of which nothing more is taken.
  void drop(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (batch != next_ || slot.state == State::reading)
      return drop(
          expect_reading(batch, "cannot be dropped: it is neither being trained on nor the next one"));
    ++next_;
    if (slot.state == State::open) doom(slot);
    changed_.notify_all();
  }

  /// No more batches: what is here and not being trained on is dropped, and what comes is refused.
  void end() {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    for (Slot& slot : slots_)
      if (slot.state == State::open) doom(slot);
    changed_.notify_all();
  }

  // ---- Who sends

  /// A rollout with `buffers` of its own asks from which batch on it may send. What is answered is waited
  /// for.
  std::int64_t offer(int rollout, std::int64_t wished, std::int64_t buffers) {
    const std::scoped_lock lock(mutex_);
    Sender& sender = find(rollout);
    sender.buffers = std::min<std::int64_t>(buffers, 1 << 20);
    sender.earlier = sender.received;
    // One that comes back joins behind the batch that the others are at: nobody waits for its start.
    const std::int64_t first =
        std::max({wished, next_, sender.present() ? sender.expected_from : newest_ + 1});
    expect(sender, first);
    return first;
  }
  /// What was agreed on with all actors; not before the offer.
  void start(int rollout, std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Sender& sender = find(rollout);
    expect(sender, std::max(batch, sender.expected_from));
  }
  void farewell(int rollout, std::int64_t last) {
    const std::scoped_lock lock(mutex_);
    Sender& sender = find(rollout);
    sender.last = last;
    sender.why = "it said goodbye after " + batch_text(last);
    changed_.notify_all();
  }
  /// Nothing more of it is waited for.
  void lost(int rollout, const std::string& why) {
    const std::scoped_lock lock(mutex_);
    Sender& sender = find(rollout);
    sender.why = why;
    sender.leaving = false;
    if (sender.last == never) sender.expected_from = never;
    changed_.notify_all();
  }
  /// Ends its admissions: it will be lost soon, or (`false`) has begun anew.
  void leaving(int rollout, bool value) {
    const std::scoped_lock lock(mutex_);
    find(rollout).leaving = value;
    changed_.notify_all();
  }

  // ---- Parts

  /// Waits until `batch` has a buffer, and marks the part as arriving; or says why it may not come. The part
  /// is then to be ended by arrive, damage or abandon; until then block(batch) is this batch's.
  Refusal admit(std::size_t route, std::int64_t batch) {
    std::unique_lock lock(mutex_);
    const Sender& sender = senders_[sender_of_[route]];
    if (batch < sender.expected_from) return Refusal::old_batch;
    // Other actors may be ahead, so the batch that was agreed on may be.
    if (!routes_[route].local &&
        batch - std::max(next_, sender.expected_from) >= options_.buffers + sender.buffers)
      return Refusal::early;
    newest_ = std::max(newest_, batch);
    auto ready = [&] {
      const Slot& slot = slot_of(batch);
      return closed_ || ended_ || sender.leaving || batch < next_ ||
             (batch - next_ < options_.buffers &&
              (slot.state == State::free || (slot.state == State::open && slot.batch == batch)));
    };
    if (!changed_.wait_for(lock, between_messages, ready))
      throw DeadlineError("data plane: " + options_.name + " had no room for " + batch_text(batch) + " for " +
                          seconds_text(between_messages));
    throw_if_closed();
    if (sender.leaving) throw PeerError("data plane: " + name_of(sender.rollout) + " is being lost");
    if (ended_) return Refusal::ended;
    if (batch < next_) return Refusal::old_batch;
    Slot& slot = slot_of(batch);
    if (slot.state == State::free) open(slot, batch);
    if (slot.parts[route] != Part::absent) return Refusal::duplicate;
    slot.parts[route] = Part::arriving;
    ++slot.arriving;
    return Refusal::none;
  }
  std::byte* block(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    return slot_of(batch).block;
  }
  void arrive(std::size_t route, std::int64_t batch, std::int64_t oldest, const SenderCounts& counts,
              bool copied = true) {
    const std::scoped_lock lock(mutex_);
    const std::int64_t count = episodes(routes_[route]);
    if (copied) (routes_[route].local ? totals_.bytes_local : totals_.bytes_received) += bytes(route);
    totals_.received += count;
    senders_[sender_of_[route]].received += count;
    BatchArrival& arrival = slot_of(batch).arrival;
    arrival.oldest_version = arrival.episodes == 0 ? oldest : std::min(arrival.oldest_version, oldest);
    arrival.episodes += count;
    arrival.counts.env_steps += counts.env_steps;
    arrival.counts.chunk_steps += counts.chunk_steps;
    settle(route, batch, Part::arrived);
  }
  /// It came, and was not whole: its columns are lost.
  void damage(std::size_t route, std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    totals_.bytes_received += bytes(route);
    settle(route, batch, Part::damaged);
  }
  /// Its sender was lost half-way.
  void abandon(std::size_t route, std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Sender& sender = senders_[sender_of_[route]];
    if (sender.last == never) sender.expected_from = never;  // before the part is missed
    settle(route, batch, Part::absent);
  }
  /// Instead of copying: exchanges the buffer's block for `block`, which is all of the batch.
  void exchange(std::int64_t batch, std::byte*& block) {
    const std::scoped_lock lock(mutex_);
    std::swap(slot_of(batch).block, block);
  }

  Totals totals() const {
    const std::scoped_lock lock(mutex_);
    Totals totals = totals_;
    for (const Slot& slot : slots_)
      if (slot.state != State::free) totals.in_flight += slot.arrival.episodes;
    for (const Sender& sender : senders_)
      totals.senders.push_back({sender.rollout, 0, sender.present(), sender.received,
                                sender.present() || sender.last != never ? sender.earlier : sender.received,
                                sender.why});
    return totals;
  }

  /// Ends every wait. What is here and was not trained stays counted as in flight.
  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  /// What crosses for a route: the plan counts the padding of a record of its own besides.
  std::int64_t bytes(std::size_t route) const {
    return static_cast<std::int64_t>(strips_bytes(strips_[route]));
  }

  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  enum class State : std::uint8_t { free, open, reading };
  enum class Part : std::uint8_t { absent, arriving, arrived, damaged };
  struct Slot {
    State state = State::free;
    bool doomed = false;  ///< given up while parts are arriving; freed by the last of them
    std::int64_t batch = -1;
    int arriving = 0;
    std::byte* block = nullptr;
    std::vector<Part> parts;  ///< by route
    BatchArrival arrival;
  };
  struct Sender {
    int rollout = 0;
    bool leaving = false;
    std::int64_t buffers = 0;        ///< of its own
    std::int64_t expected_from = 0;  ///< first batch to wait for; `never`: lost
    std::int64_t last = never;       ///< its goodbye
    std::int64_t received = 0;       ///< episodes
    std::int64_t earlier = 0;        ///< of them: from lives before the present one
    std::string why;
    bool present() const { return expected_from != never && last == never; }
    bool owes(std::int64_t batch) const { return batch >= expected_from && batch <= last; }
  };

  std::int64_t episodes(const Route& route) const { return route.groups * options_.group_episodes; }
  Sender& find(int rollout) {
    for (Sender& sender : senders_)
      if (sender.rollout == rollout) return sender;
    throw Error("data plane: " + options_.name + " gets nothing from rollout " + std::to_string(rollout));
  }
  const Slot& slot_of(std::int64_t batch) const {
    return slots_[static_cast<std::size_t>(batch < 0 ? 0 : batch % options_.buffers)];
  }
  Slot& slot_of(std::int64_t batch) { return const_cast<Slot&>(std::as_const(*this).slot_of(batch)); }
  Slot& expect_reading(std::int64_t batch, const char* what) {
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return slot;
    throw Error("data plane: " + options_.name + ": " + batch_text(batch) + " " + what +
                "; a batch goes consume, release");
  }
  void throw_if_closed() const {
    if (closed_) throw Error("data plane: " + options_.name + " was closed");
  }
  void expect(Sender& sender, std::int64_t batch) {
    sender.expected_from = batch;
    sender.last = never;
    sender.why.clear();
    changed_.notify_all();
  }

  void open(Slot& slot, std::int64_t batch) {
    slot.state = State::open;
    slot.doomed = false;
    slot.batch = batch;
    slot.arriving = 0;
    slot.arrival = {};
    std::fill(slot.parts.begin(), slot.parts.end(), Part::absent);
  }
  void free(Slot& slot) {
    slot.state = State::free;
    changed_.notify_all();
  }
  void drop(Slot& slot) {
    totals_.dropped += slot.arrival.episodes;
    free(slot);
  }
  void doom(Slot& slot) {
    slot.doomed = true;
    if (slot.arriving == 0) drop(slot);
  }
  void settle(std::size_t route, std::int64_t batch, Part part) {
    Slot& slot = slot_of(batch);
    slot.parts[route] = part;
    if (--slot.arriving == 0 && slot.doomed) drop(slot);
    changed_.notify_all();
  }

  Part part_of(std::size_t route, std::int64_t batch) const {
    const Slot& slot = slot_of(batch);
    return slot.state == State::open && slot.batch == batch ? slot.parts[route] : Part::absent;
  }
  bool waits_for(std::size_t route, std::int64_t batch) const {
    const Part part = part_of(route, batch);
    return part == Part::arriving || (part == Part::absent && senders_[sender_of_[route]].owes(batch));
  }
  bool complete(std::int64_t batch) const {
    const Slot& slot = slot_of(batch);
    if (slot.state != State::free && slot.batch != batch) return false;  // given up, and a part still arrives
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (waits_for(i, batch)) return false;
    // With nobody left there may be one that comes back; the other actors' rollouts are no matter of ours.
    return !options_.only_actor || slot.state == State::open || !nobody();
  }
  bool nobody() const {
    return std::none_of(senders_.begin(), senders_.end(),
                        [](const Sender& sender) { return sender.present(); });
  }
  /// Nobody is left, somebody has said goodbye, and nothing of the batch is here.
  bool finished(std::int64_t batch) const {
    bool goodbye = false;
    for (const Sender& sender : senders_) {
      if (sender.expected_from != never && sender.last >= batch) return false;
      goodbye = goodbye || sender.last < batch;
    }
    const Slot& slot = slot_of(batch);
    return goodbye && !options_.may_return && (slot.state == State::free || slot.batch != batch);
  }
  std::string missing(std::int64_t batch) const {
    std::string text;
    for (std::size_t i = 0; i < routes_.size(); ++i) {
      if (!waits_for(i, batch)) continue;
      const Route& route = routes_[i];
      text += (text.empty() ? "" : "; ") + name_of(route.rollout) + ", groups " +
              std::to_string(route.first_group) + "-" + std::to_string(route.first_group + route.groups - 1) +
              (part_of(i, batch) == Part::arriving ? " (arriving)" : "");
    }
    if (!text.empty()) return text;
    for (const Sender& sender : senders_)
      text += (text.empty() ? "every rollout; " : "; ") + name_of(sender.rollout) + ": " + sender.why;
    return text;
  }

  const Options options_;
  const std::vector<Route> routes_;
  const std::vector<Strips> strips_;
  std::vector<std::size_t> sender_of_;  // by route
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false, ended_ = false;
  std::int64_t next_;    // first batch that was neither consumed nor dropped
  std::int64_t newest_;  // of which a part was announced
  std::vector<Slot> slots_;
  std::vector<Sender> senders_;
  Totals totals_;
};

}  // namespace detail
}  // namespace dvla
