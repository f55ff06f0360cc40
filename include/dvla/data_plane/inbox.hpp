// The actor's side of the data plane between processes: the bounded resource queue in host memory. Paper:
// "the actor's host-memory queue takes what arrives while training runs; full means back-pressure". One
// receiver thread for each rollout; a part is admitted only when its batch has a buffer (batch n lies in
// buffer n % buffers), proved chunk by chunk in a staging block and then put into its columns.
// Knows blocks and strips of memory, not what the fields mean: routed.hpp does.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/wire.hpp"
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
  std::string why;            ///< it is not present
};

namespace detail {

/// Of the wait for a peer's next message. A peer may rightly be busy for long, and one that is gone is found
/// by the heartbeat, which closes the channel; the lanes' own calls have the run's deadline.
inline constexpr std::chrono::nanoseconds between_messages = std::chrono::hours(24);

/// Blocks of one size from a pool, given back at the end.
class Blocks {
 public:
  Blocks(std::size_t count, std::size_t bytes, std::pmr::memory_resource& pool) : pool_(pool), bytes_(bytes) {
    if (bytes == 0) return;
    try {
      for (; blocks_.size() < count;) blocks_.push_back(static_cast<std::byte*>(pool_.allocate(bytes_, 64)));
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
  std::size_t bytes() const { return bytes_; }

 private:
  void free() {
    for (std::byte* block : blocks_) pool_.deallocate(block, bytes_, 64);
  }
  std::pmr::memory_resource& pool_;
  std::size_t bytes_;
  std::vector<std::byte*> blocks_;
};

/// Of the largest part, in one chunk at most.
inline std::size_t staging_bytes(const std::vector<Strips>& parts) {
  std::size_t largest = 0;
  for (const Strips& strips : parts) largest = std::max(largest, std::min(strips_bytes(strips), chunk_bytes));
  return largest == 0 ? 0 : largest + seal_bytes;
}

inline std::string batch_text(std::int64_t batch) { return "batch " + std::to_string(batch); }

class Inbox {
 public:
  struct Options {
    int actor = 0;
    int buffers = 1;
    std::int64_t first_batch = 0;
    std::uint64_t fingerprint = 0;
    std::int64_t group_episodes = 1;
    std::chrono::nanoseconds deadline{};
    bool only_actor = true;
    std::string name;                        ///< "rank 3 (actor 0)"
    std::vector<std::string> rollout_names;  ///< of all rollouts
  };
  struct Totals {
    std::int64_t received = 0, trained = 0, dropped = 0, lost = 0, in_flight = 0;
    std::int64_t bytes_received = 0, bytes_local = 0;
    std::array<std::int64_t, static_cast<std::size_t>(Refusal::count_)> refused{};
    std::vector<SenderReport> senders;
  };

  /// `routes`: those of this actor; strips[i]: where routes[i] lies in a block. `blocks`: as many as buffers.
  Inbox(Options options, std::vector<Route> routes, std::vector<Strips> strips, const Blocks& blocks,
        std::pmr::memory_resource& pool)
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
      if (!senders_.empty() && senders_.back()->rollout == route.rollout) continue;
      auto sender = std::make_unique<Sender>();
      sender->rollout = route.rollout;
      sender->local = route.local;
      sender->expected_from = options_.first_batch;
      senders_.push_back(std::move(sender));
    }
    const std::size_t remote = static_cast<std::size_t>(
        std::count_if(senders_.begin(), senders_.end(), [](const auto& sender) { return !sender->local; }));
    staging_.emplace(remote, staging_bytes(strips_), pool);
    std::size_t next = 0;
    for (auto& sender : senders_)
      if (!sender->local) sender->staging = (*staging_)[next++];
  }
  ~Inbox() {
    close();
    for (auto& sender : senders_)
      if (sender->thread.joinable()) sender->thread.join();
  }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  /// Gives rollout `rollout` its channel, the first or a new one. A rollout whose channel has broken is
  /// expected again from the batch that the two ends agree on; until then its columns are lost.
  void join(int rollout, std::shared_ptr<Channel> channel, std::int64_t incarnation) {
    const std::scoped_lock one(joining_);
    Sender& sender = find(rollout);
    {
      const std::scoped_lock lock(mutex_);
      if (closed_) throw Error("data plane: " + options_.name + " is closed");
      if (sender.channel && incarnation <= sender.incarnation)
        throw Error("data plane: " + name_of(sender) + " comes with incarnation " +
                    std::to_string(incarnation) + ", but incarnation " + std::to_string(sender.incarnation) +
                    " was here already; a restarted rollout takes the next number");
    }
    if (sender.thread.joinable()) {
      lose(rollout, "incarnation " + std::to_string(incarnation) + " takes its place");
      sender.thread.join();
    }
    const std::scoped_lock lock(mutex_);
    if (closed_) throw Error("data plane: " + options_.name + " is closed");
    sender.why_closed.clear();
    sender.parted = false;
    sender.channel = std::move(channel);
    sender.incarnation = incarnation;
    sender.thread = std::thread([this, &sender] { serve(sender); });
  }

  /// Whether anything comes from it over a channel.
  bool expects(int rollout) const {
    return std::any_of(senders_.begin(), senders_.end(),
                       [&](const auto& sender) { return sender->rollout == rollout && !sender->local; });
  }
  /// Ends a rollout's channel: its thread then counts it as lost.
  void lose(int rollout, const std::string& why) {
    Sender& sender = find(rollout);
    const std::scoped_lock lock(mutex_);
    if (sender.why_closed.empty()) sender.why_closed = why;
    if (sender.channel) sender.channel->close();
    changed_.notify_all();
  }

  /// Waits until every part of `batch` is there, or will never be. False: all senders have said goodbye
  /// before this batch. Throws DeadlineError, which says whose parts are missing.
  bool await(std::int64_t batch) {
    std::unique_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return true;
    if (batch != next_)
      throw Error("data plane: " + options_.name + " asks for " + batch_text(batch) + ", but " +
                  batch_text(next_) + " is the next one: batches are trained in order, each once");
    if (slot.state == State::reading)
      throw Error("data plane: " + options_.name + " cannot read " + batch_text(batch) + ": " +
                  batch_text(slot.batch) + " is still being trained on in its buffer; release it first");
    const bool done = changed_.wait_until(lock, deadline_after(options_.deadline), [&] {
      return closed_ || ended_ || finished(batch) || complete(batch);
    });
    throw_if_closed();
    if (ended_ || finished(batch)) return false;
    if (!done)
      throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                          " for " + batch_text(batch) + ": missing is " + missing(batch));
    if (slot.state == State::free) open(slot, batch);
    slot.state = State::reading;
    ++next_;
    slot.arrival.lost = 0;
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (slot.parts[i] != Part::arrived) slot.arrival.lost += episodes(routes_[i]);
    totals_.lost += slot.arrival.lost;
    changed_.notify_all();
    return true;
  }

  /// Of a batch that is being trained on: between await and release this is the trainer's alone.
  struct Reading {
    std::byte* block;
    const BatchArrival& arrival;
    const std::vector<Strips>& strips;
    std::vector<std::size_t> absent;  ///< which routes' columns hold nothing
  };
  Reading reading(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = expect_reading(batch, "is not being trained on");
    Reading result{slot.block, slot.arrival, strips_, {}};
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (slot.parts[i] != Part::arrived) result.absent.push_back(i);
    return result;
  }
  const std::vector<Route>& routes() const { return routes_; }

  void release(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = expect_reading(batch, "cannot be released: it is not being trained on");
    totals_.trained += slot.arrival.episodes;
    free(slot);
  }

  /// Gives up a batch: the one that is being trained on, or the next one, of which nothing more is taken.
  void drop(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (batch == next_ && slot.state != State::reading) {
      ++next_;
      if (slot.state == State::open && slot.arriving > 0)
        slot.doomed = true;  // freed by whoever puts the last part in
      else if (slot.state == State::open)
        drop(slot);
      changed_.notify_all();
      return;
    }
    drop(expect_reading(batch, "cannot be dropped: it is neither being trained on nor the next one"));
  }

  /// A part of this very rank: copied, or, where `whole` says that it is all of both blocks, exchanged for
  /// the buffer's block, which comes back in `block`. Waits for the buffer. False: dropped, its batch was
  /// given up.
  bool take_local(std::size_t route, std::int64_t batch, std::byte*& block, const Strips& from, bool whole,
                  std::int64_t oldest, const SenderCounts& counts) {
    std::unique_lock lock(mutex_);
    if (admit(lock, nullptr, route, batch) != Refusal::none) return false;
    Slot& slot = slot_of(batch);
    if (whole) {
      std::swap(slot.block, block);
    } else {
      lock.unlock();
      copy_strips(block, from, slot.block, strips_[route]);
      lock.lock();
      totals_.bytes_local += routes_[route].bytes;
    }
    arrive(slot, route, oldest, counts);
    return true;
  }
  /// Position of a plan's route among this actor's.
  std::optional<std::size_t> find_route(int rollout, std::int64_t first_group, std::int64_t groups) const {
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (routes_[i].rollout == rollout && routes_[i].first_group == first_group &&
          routes_[i].groups == groups)
        return i;
    return {};
  }

  /// No more batches: what is here and not being trained on is dropped, and what comes is refused.
  void end() {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    for (Slot& slot : slots_) {
      if (slot.state != State::open) continue;
      slot.doomed = true;
      if (slot.arriving == 0) drop(slot);
    }
    changed_.notify_all();
  }
  /// After end: waits until every rollout has said goodbye, or is lost.
  void part() {
    std::unique_lock lock(mutex_);
    auto parted = [](const auto& sender) { return sender->parted || !sender->channel; };
    if (changed_.wait_until(lock, deadline_after(options_.deadline),
                            [&] { return closed_ || std::all_of(senders_.begin(), senders_.end(), parted); }))
      return;
    std::string whom;
    for (const auto& sender : senders_)
      if (!parted(sender)) whom += (whom.empty() ? "" : ", ") + name_of(*sender);
    throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                        " for the goodbye of " + whom);
  }

  Totals totals() const {
    const std::scoped_lock lock(mutex_);
    Totals totals = totals_;
    for (const Slot& slot : slots_)
      if (slot.state != State::free) totals.in_flight += slot.arrival.episodes;
    for (const auto& sender : senders_)
      totals.senders.push_back(
          {sender->rollout, sender->incarnation, sender->present(), sender->received, sender->why});
    return totals;
  }

  /// Ends every wait, here and at the rollouts. What is here and was not trained stays counted as in flight.
  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    for (auto& sender : senders_)
      if (sender->channel) sender->channel->close();
    changed_.notify_all();
  }

 private:
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  enum class State : std::uint8_t { free, open, reading };
  enum class Part : std::uint8_t { absent, arriving, arrived, refused };
  struct Slot {
    State state = State::free;
    bool doomed = false;
    std::int64_t batch = -1;
    int arriving = 0;
    std::byte* block = nullptr;
    std::vector<Part> parts;
    BatchArrival arrival;
  };
  struct Sender {
    int rollout = 0;
    bool local = false;
    std::int64_t incarnation = 0;
    std::int64_t buffers = 0;        ///< of its own
    std::int64_t expected_from = 0;  ///< first batch to wait for; `never`: lost
    std::int64_t last = never;       ///< its goodbye
    std::int64_t received = 0;       ///< episodes
    std::string why, why_closed;
    bool parted = false;  ///< its thread is at its end
    std::shared_ptr<Channel> channel;
    std::thread thread;
    std::byte* staging = nullptr;
    bool present() const { return expected_from != never && last == never; }
    bool owes(std::int64_t batch) const { return batch >= expected_from && batch <= last; }
  };

  std::int64_t episodes(const Route& route) const { return route.groups * options_.group_episodes; }
  const std::string& name_of(const Sender& sender) const {
    return options_.rollout_names[static_cast<std::size_t>(sender.rollout)];
  }
  Sender& find(int rollout) {
    for (auto& sender : senders_)
      if (sender->rollout == rollout && !sender->local) return *sender;
    throw Error("data plane: " + options_.name + " gets nothing from rollout " + std::to_string(rollout) +
                " over a channel; see the routing plan");
  }
  Slot& slot_of(std::int64_t batch) {
    return slots_[static_cast<std::size_t>(batch < 0 ? 0 : batch % options_.buffers)];
  }
  Slot& expect_reading(std::int64_t batch, const char* what) {
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return slot;
    throw Error("data plane: " + options_.name + ": " + batch_text(batch) + " " + what +
                "; a batch goes consume, release");
  }
  void throw_if_closed() const {
    if (closed_) throw Error("data plane: " + options_.name + " was closed while it was waited for");
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
  const Sender& sender_of(const Route& route) const {
    for (const auto& sender : senders_)
      if (sender->rollout == route.rollout) return *sender;
    throw Error("data plane: a route without a sender");
  }
  Part part_of(std::size_t route, std::int64_t batch) {
    const Slot& slot = slot_of(batch);
    return slot.state == State::open && slot.batch == batch ? slot.parts[route] : Part::absent;
  }
  bool waits_for(std::size_t route, std::int64_t batch) {
    const Part part = part_of(route, batch);
    if (part == Part::arriving) return true;
    return part == Part::absent && sender_of(routes_[route]).owes(batch);
  }
  bool complete(std::int64_t batch) {
    const Slot& slot = slot_of(batch);
    if (slot.state != State::free && slot.batch != batch) return false;  // given up, and a part still arrives
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (waits_for(i, batch)) return false;
    // With nobody left there may be one that comes back; the other actors' rollouts are no matter of ours.
    return !options_.only_actor || slot.state == State::open ||
           std::any_of(senders_.begin(), senders_.end(),
                       [](const auto& sender) { return sender->present(); });
  }
  /// Nobody is left, and somebody has said goodbye.
  bool finished(std::int64_t batch) const {
    bool goodbye = false;
    for (const auto& sender : senders_) {
      if (sender->expected_from != never && sender->last >= batch) return false;
      goodbye = goodbye || sender->last < batch;
    }
    return goodbye && nothing_of(batch);
  }
  bool nothing_of(std::int64_t batch) const {
    const Slot& slot = slots_[static_cast<std::size_t>(batch % options_.buffers)];
    return slot.state == State::free || slot.batch != batch;
  }
  std::string missing(std::int64_t batch) {
    std::string text;
    for (std::size_t i = 0; i < routes_.size(); ++i) {
      if (!waits_for(i, batch)) continue;
      const Route& route = routes_[i];
      text += (text.empty() ? "" : "; ") + name_of(sender_of(route)) + ", groups " +
              std::to_string(route.first_group) + "-" + std::to_string(route.first_group + route.groups - 1) +
              (part_of(i, batch) == Part::arriving ? " (arriving)" : "");
    }
    if (!text.empty()) return text;
    for (const auto& sender : senders_)
      text += (text.empty() ? "every rollout; " : "; ") + name_of(*sender) + ": " + sender->why;
    return text;
  }

  /// Waits until `batch` has a buffer, and marks the part as arriving; or says why it may not come.
  Refusal admit(std::unique_lock<std::mutex>& lock, const Sender* sender, std::size_t route,
                std::int64_t batch) {
    if (sender != nullptr) {
      if (batch < sender->expected_from) return Refusal::old_batch;
      // Other actors may be ahead, so the batch that was agreed on may be.
      if (batch - std::max(next_, sender->expected_from) >= options_.buffers + sender->buffers)
        return Refusal::early;
    }
    newest_ = std::max(newest_, batch);
    auto lost = [&] { return sender != nullptr && !sender->why_closed.empty(); };
    auto ready = [&] {
      const Slot& slot = slot_of(batch);
      return closed_ || ended_ || lost() || batch < next_ ||
             (batch - next_ < options_.buffers &&
              (slot.state == State::free || (slot.state == State::open && slot.batch == batch)));
    };
    if (!changed_.wait_for(lock, between_messages, ready))
      throw DeadlineError("data plane: " + options_.name + " had no room for " + batch_text(batch) + " for " +
                          seconds_text(between_messages));
    throw_if_closed();
    if (lost()) throw PeerError(sender->why_closed);
    if (ended_) return Refusal::ended;
    if (batch < next_) return Refusal::old_batch;
    Slot& slot = slot_of(batch);
    if (slot.state == State::free) open(slot, batch);
    if (slot.parts[route] != Part::absent) return Refusal::duplicate;
    slot.parts[route] = Part::arriving;
    ++slot.arriving;
    return Refusal::none;
  }
  /// The part is in its columns.
  void arrive(Slot& slot, std::size_t route, std::int64_t oldest, const SenderCounts& counts) {
    const std::int64_t count = episodes(routes_[route]);
    totals_.received += count;
    for (auto& sender : senders_)
      if (sender->rollout == routes_[route].rollout) sender->received += count;
    BatchArrival& arrival = slot.arrival;
    arrival.oldest_version = arrival.episodes == 0 ? oldest : std::min(arrival.oldest_version, oldest);
    arrival.episodes += count;
    arrival.counts.env_steps += counts.env_steps;
    arrival.counts.chunk_steps += counts.chunk_steps;
    settle(slot, route, Part::arrived);
  }
  void settle(Slot& slot, std::size_t route, Part part) {
    slot.parts[route] = part;
    if (--slot.arriving == 0 && slot.doomed) drop(slot);
    changed_.notify_all();
  }

  // ---- One receiver thread

  void serve(Sender& sender) {
    std::string why;
    try {
      greet(sender);
      while (take_message(sender)) {
      }
    } catch (const std::exception& error) {
      why = error.what();
    }
    const std::scoped_lock lock(mutex_);
    sender.parted = true;
    changed_.notify_all();
    if (why.empty()) return;  // it said goodbye
    sender.channel->close();
    sender.why = sender.why_closed.empty() ? why : sender.why_closed;
    sender.why_closed.clear();
    if (sender.last == never) sender.expected_from = never;
  }

  DataMessage receive(Sender& sender, std::chrono::nanoseconds limit, bool& is_message) {
    MessageBytes bytes;
    sender.channel->receive(bytes, limit);
    DataMessage message;
    is_message = read_message(bytes, message);
    return message;
  }
  void reply(Sender& sender, MessageKind kind, const DataMessage& to, Refusal refusal = Refusal::none) {
    DataMessage message = to;
    message.kind = kind;
    message.refusal = refusal;
    sender.channel->send(write_message(message), options_.deadline);
  }
  void refuse(Sender& sender, const DataMessage& to, Refusal refusal) {
    {
      const std::scoped_lock lock(mutex_);
      ++totals_.refused[static_cast<std::size_t>(refusal)];
    }
    reply(sender, MessageKind::refused, to, refusal);
  }
  Refusal check_sender(const Sender& sender, const DataMessage& message) const {
    if (message.rollout != sender.rollout || message.actor != options_.actor) return Refusal::foreign;
    return message.incarnation == sender.incarnation ? Refusal::none : Refusal::incarnation;
  }

  void expect(Sender& sender, std::int64_t batch) {
    sender.expected_from = batch;
    sender.last = never;
    sender.why.clear();
    changed_.notify_all();
  }
  /// hello -> offer, start -> accepted.
  void greet(Sender& sender) {
    auto hear = [&](MessageKind kind) {
      bool is_message = false;
      DataMessage message = receive(sender, options_.deadline, is_message);
      Refusal refusal =
          !is_message || message.kind != kind ? Refusal::malformed : check_sender(sender, message);
      if (!is_message) message = {};
      if (refusal == Refusal::none && message.fingerprint != options_.fingerprint) refusal = Refusal::layout;
      if (refusal == Refusal::none && message.batch < 0) refusal = Refusal::malformed;
      if (refusal != Refusal::none) {
        refuse(sender, message, refusal);
        throw Error(name_of(sender) + " was refused: " + std::string(refusal_name(refusal)));
      }
      return message;
    };
    DataMessage hello = hear(MessageKind::hello);
    {
      const std::scoped_lock lock(mutex_);
      sender.buffers = std::min<std::int64_t>(hello.bytes, 1 << 20);
      // One that comes back joins behind the batch that the others are at: nobody waits for its start.
      hello.batch = std::max(hello.batch, sender.present() ? sender.expected_from : newest_ + 1);
      hello.batch = std::max(hello.batch, next_);
      expect(sender, hello.batch);  // from now on: what is offered is waited for
    }
    reply(sender, MessageKind::offer, hello);
    const DataMessage start = hear(MessageKind::start);
    {
      const std::scoped_lock lock(mutex_);
      expect(sender, std::max(start.batch, sender.expected_from));
    }
    reply(sender, MessageKind::accepted, start);
  }

  /// False: goodbye.
  bool take_message(Sender& sender) {
    bool is_message = false;
    const DataMessage message = receive(sender, between_messages, is_message);
    if (!is_message) {
      refuse(sender, {}, Refusal::malformed);
      return true;
    }
    Refusal refusal = check_sender(sender, message);
    if (refusal == Refusal::none && message.kind == MessageKind::goodbye) {
      {
        const std::scoped_lock lock(mutex_);
        sender.last = message.batch;
        sender.why = "it said goodbye after " + batch_text(message.batch);
        changed_.notify_all();
      }
      reply(sender, MessageKind::accepted, message);
      return false;
    }
    if (refusal == Refusal::none && message.kind != MessageKind::part) refusal = Refusal::malformed;
    const auto route = find_route(sender.rollout, message.first_group, message.groups);
    if (refusal == Refusal::none && !route) refusal = Refusal::foreign;
    if (refusal == Refusal::none && message.bytes != static_cast<std::int64_t>(strips_bytes(strips_[*route])))
      refusal = Refusal::layout;
    if (refusal == Refusal::none) {
      std::unique_lock lock(mutex_);
      refusal = admit(lock, &sender, *route, message.batch);
    }
    if (refusal != Refusal::none) {
      refuse(sender, message, refusal);
      return true;
    }
    Slot& slot = slot_of(message.batch);  // stays this batch's while a part of it arrives
    bool whole = false;
    try {
      reply(sender, MessageKind::go, message);
      whole = receive_chunks(sender, *route, slot.block);
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      if (sender.last == never) sender.expected_from = never;  // before the part is missed
      settle(slot, *route, Part::absent);
      throw;
    }
    {
      const std::scoped_lock lock(mutex_);
      totals_.bytes_received += message.bytes;
      if (whole)
        arrive(slot, *route, message.oldest_version, {message.env_steps, message.chunk_steps});
      else
        settle(slot, *route, Part::refused);
    }
    whole ? reply(sender, MessageKind::accepted, message) : refuse(sender, message, Refusal::damaged);
    return true;
  }
  /// False: a chunk was damaged; the rest is still received, so that the channel stays in step.
  bool receive_chunks(Sender& sender, std::size_t route, std::byte* block) {
    const Strips& strips = strips_[route];
    StripCursor to(strips);
    bool whole = true;
    for (std::size_t left = strips_bytes(strips); left > 0;) {
      const std::size_t payload = std::min(left, chunk_bytes);
      const std::span<std::byte> chunk(sender.staging, payload + seal_bytes);
      sender.channel->receive(chunk, options_.deadline);
      whole = whole && chunk_is_whole(chunk);
      if (whole) scatter(chunk.first(payload), block, to);
      left -= payload;
    }
    return whole;
  }

  const Options options_;
  const std::vector<Route> routes_;
  const std::vector<Strips> strips_;
  std::optional<Blocks> staging_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::mutex joining_;  // one join at a time
  bool closed_ = false, ended_ = false;
  std::int64_t next_;    // first batch that was not yet consumed or dropped
  std::int64_t newest_;  // of which a part was announced
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Sender>> senders_;
  Totals totals_;
};

}  // namespace detail
}  // namespace dvla
