// An actor's end of the data plane between processes: its bounded resource queue in host memory, and for each
// rollout a thread that receives parts of batches into it. Paper: "the actor's host-memory queue takes what
// arrives while training runs; full means back-pressure".
//
// Batch n lies in buffer n % buffers, which goes
//   free -> open (parts arrive) -> reading (the trainer's alone) -> free,
// or from open, where the trainer gives the batch up, to given_up until the last arriving part has ended. A
// part is admitted only when its batch's buffer is free or open, so a slow trainer holds its rollouts back,
// and nothing grows or is lost meanwhile. A part comes piece by piece through a staging block; one that does
// not match its checksum is damaged, and its columns are cleared before the trainer sees them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/data_plane/endpoint.hpp"
#include "dvla/handoff/stop.hpp"

namespace dvla {

/// What has come of a batch, at one actor.
struct BatchArrival {
  std::int64_t episodes = 0;         ///< that are there
  std::int64_t lost = 0;             ///< columns of rollouts that are gone: their group is -1
  std::int64_t oldest_version = -1;  ///< that decided in any episode that is there; -1: none is
  SenderCounts counts;               ///< add over the actors for the batch's total
};

namespace detail {

/// A rollout, as its actor sees it: which batches it owes.
struct SendingRollout : RoutedPeer {
  using RoutedPeer::RoutedPeer;
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  std::int64_t buffers = 0;        ///< of its own
  std::int64_t expected_from = 0;  ///< first batch to wait for; `never`: it is lost
  std::int64_t last = never;       ///< batch, by its goodbye
  std::int64_t received = 0;       ///< episodes
  std::int64_t earlier = 0;        ///< of them: from lives before the present one
  bool present() const { return expected_from != never && last == never; }
  bool owes(std::int64_t batch) const { return batch >= expected_from && batch <= last; }
  void expect(std::int64_t batch) { expected_from = batch, last = never; }
  /// Nothing more of it is waited for.
  void stop_expecting() {
    if (last == never) expected_from = never;
  }
};

/// One trainer thread: await, reading, release, drop. All else from any thread.
class ResourceQueue : public Endpoint<SendingRollout> {
 public:
  /// `may_return`: so do rollouts that have said goodbye; else those end the batches.
  template <Record Layout>
  ResourceQueue(const Layout& layout, const RoutedJob& job, bool may_return)
      : Endpoint(layout, job, false),
        only_actor_(job.plan.actors == 1),
        may_return_(may_return),
        next_(options_.first_batch),
        newest_(next_ - 1),
        slots_(static_cast<std::size_t>(options_.buffers)) {
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].block = memory_of(i);
    for (SendingRollout& rollout : peers_) rollout.expected_from = next_;
  }
  ~ResourceQueue() { stop(); }

  enum class State : std::uint8_t { free, open, given_up, reading };
  enum class Part : std::uint8_t { absent, arriving, arrived, damaged };
  /// A buffer, and what is in it.
  struct Slot {
    State state = State::free;
    std::int64_t batch = -1;
    std::byte* block = nullptr;
    std::vector<Part> parts;  ///< by route
    BatchArrival arrival;
  };

  // ---- The trainer

  /// Waits until every part of `batch` is there, or will never be. False: there is no such batch, because all
  /// rollouts have said goodbye before it, or all are gone and `stop`, which may be null, asks. Throws
  /// DeadlineError, which says whose parts are missing.
  bool await(std::int64_t batch, const stop_flag* stop = nullptr) {
    std::unique_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return true;
    if (batch != next_)
      refuse("asks for batch ", batch, ", but batch ", next_,
             " is the next one: batches are trained in order, each once");
    if (slot.state == State::reading)
      refuse("cannot read batch ", batch, ": batch ", slot.batch,
             " is still being trained on in its buffer; release it first");
    const auto until = deadline_after(options_.deadline);
    const auto decided = [&] { return ended_ || finished(batch) || complete(batch); };
    while (!wait_until(lock, std::min(until, deadline_after(std::chrono::milliseconds(50))), decided)) {
      if (stop && stop->stop_requested() && nobody()) return false;
      if (std::chrono::steady_clock::now() >= until)
        ran_out(options_.deadline, "for batch ", batch, ": missing is ", missing(batch));
    }
    throw_if_closed();
    if (ended_ || finished(batch)) return false;
    if (slot.state == State::free) open(slot, batch);
    slot.state = State::reading;
    ++next_;
    for (std::size_t i = 0; i < slot.parts.size(); ++i)
      if (slot.parts[i] != Part::arrived) slot.arrival.lost += episodes(i);
    changed_.notify_all();
    return true;
  }

  /// The buffer of a batch that is being trained on: between await and release it is the trainer's alone.
  /// Where a part has not arrived, the columns of its route hold nothing.
  const Slot& reading(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    return expect_reading(batch, "is not being trained on");
  }
  const std::vector<Route>& routes() const { return routes_; }
  const Strips& strips(std::size_t route) const { return strips_[route]; }

  void release(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = expect_reading(batch, "cannot be released: it is not being trained on");
    report_.trained += slot.arrival.episodes;
    report_.lost += slot.arrival.lost;
    free(slot);
  }

  /// Gives up a batch: the one that is being trained on, or the next one, of which nothing more is taken.
  void drop(std::int64_t batch) {
    const std::scoped_lock lock(mutex_);
    Slot& slot = slot_of(batch);
    if (batch == next_ && slot.state != State::reading) {
      ++next_;
      if (slot.state == State::open) give_up(slot);
      changed_.notify_all();
    } else {
      give_up(expect_reading(batch, "cannot be dropped: it is neither being trained on nor the next one"));
    }
  }

  /// No more batches: what is here and not being trained on is dropped, and what comes is refused.
  void end() {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    for (Slot& slot : slots_)
      if (slot.state == State::open) give_up(slot);
    changed_.notify_all();
  }
  /// Waits until every rollout has said goodbye, or is lost.
  void await_goodbyes() {
    std::unique_lock lock(mutex_);
    const auto parted = [](const SendingRollout& rollout) { return rollout.ended || !rollout.channel; };
    if (wait_until(lock, deadline_after(options_.deadline),
                   [&] { return std::all_of(peers_.begin(), peers_.end(), parted); }))
      return;
    std::string whom;
    for (const SendingRollout& rollout : peers_)
      if (!parted(rollout)) append(whom, rollout.name);
    ran_out(options_.deadline, "for the goodbye of ", whom);
  }

  // ---- Who sends

  /// Lets a rollout's first incarnation in, or its next one, whose channel `connect` makes. The two then agree
  /// in the background on the batch from which on it is expected. One at a time.
  void join(int index, std::int64_t incarnation, const std::function<std::unique_ptr<Channel>()>& connect) {
    SendingRollout& rollout = reached(index);
    connect_peer(rollout, incarnation, connect, [&] {
      start(
          rollout, [this, &rollout] { serve(rollout); },
          [&rollout](const std::string& why) {
            if (why.empty()) return;
            if (rollout.why_gone.empty()) rollout.why_gone = why;
            rollout.stop_expecting();
          });
    });
  }
  /// Ends a rollout's channel: its thread then counts it as lost.
  void lose(int index, const std::string& why) {
    const std::scoped_lock lock(mutex_);
    Endpoint::lose(reached(index), why);
  }
  /// Whether any rollout that sends here is there.
  bool anybody() const {
    const std::scoped_lock lock(mutex_);
    return !nobody();
  }

  /// A part from this rank's own rollout, which lies in `strips` of `block`; waits until it is admitted.
  /// Where it is `whole`, the rollout's whole share, and a whole batch here, nothing is copied: the buffer's
  /// block is exchanged for `block`. False: it was refused.
  bool take_local(const PlaneMessage& part, std::byte*& block, const Strips& strips, bool whole) {
    const std::size_t route = route_of(part);
    std::byte* target = nullptr;
    if (admit(route, part.batch, target) != Refusal::none) return false;
    whole = whole && routes_.size() == 1;
    if (!whole) copy_strips(block, strips, target, strips_[route]);
    const std::scoped_lock lock(mutex_);
    if (whole) std::swap(slot_of(part.batch).block, block);
    report_.payload_bytes_copied += whole ? 0 : part.bytes;
    arrive(route, part);
    return true;
  }

  RoutedReport report() const {
    const std::scoped_lock lock(mutex_);
    RoutedReport report = report_;
    for (const Slot& slot : slots_)
      if (slot.state != State::free) report.in_flight += slot.arrival.episodes;
    for (const SendingRollout& rollout : peers_)
      report.senders.push_back(
          {rollout.index, rollout.incarnation, rollout.present(), rollout.received,
           rollout.present() || rollout.last != SendingRollout::never ? rollout.earlier : rollout.received,
           rollout.why_gone});
    return report;
  }

 private:
  // ---- Buffers; all with the mutex held

  const Slot& slot_of(std::int64_t batch) const {
    return slots_[static_cast<std::size_t>(batch < 0 ? 0 : batch % options_.buffers)];
  }
  Slot& slot_of(std::int64_t batch) { return const_cast<Slot&>(std::as_const(*this).slot_of(batch)); }
  Slot& expect_reading(std::int64_t batch, const char* what) {
    Slot& slot = slot_of(batch);
    if (slot.state == State::reading && slot.batch == batch) return slot;
    throw Error("data plane: ", name_, ": batch ", batch, " ", what, "; a batch goes consume, release");
  }
  void open(Slot& slot, std::int64_t batch) {
    slot.state = State::open;
    slot.batch = batch;
    slot.arrival = {};
    slot.parts.assign(routes_.size(), Part::absent);
  }
  void free(Slot& slot) {
    slot.state = State::free;
    changed_.notify_all();
  }
  /// Frees it without training, once nothing arrives there any more.
  void give_up(Slot& slot) {
    slot.state = State::given_up;
    if (std::find(slot.parts.begin(), slot.parts.end(), Part::arriving) != slot.parts.end()) return;
    report_.dropped += slot.arrival.episodes;
    free(slot);
  }

  Part part_of(std::size_t route, std::int64_t batch) const {
    const Slot& slot = slot_of(batch);
    return slot.state == State::open && slot.batch == batch ? slot.parts[route] : Part::absent;
  }
  bool waits_for(std::size_t route, std::int64_t batch) const {
    const Part part = part_of(route, batch);
    return part == Part::arriving || (part == Part::absent && peer_of_[route]->owes(batch));
  }
  bool complete(std::int64_t batch) const {
    const Slot& slot = slot_of(batch);
    if (slot.state != State::free && slot.batch != batch) return false;  // given up, and a part still arrives
    for (std::size_t i = 0; i < routes_.size(); ++i)
      if (waits_for(i, batch)) return false;
    // With nobody left there may be one that comes back; the other actors' rollouts are no matter of ours.
    return !only_actor_ || slot.state == State::open || !nobody();
  }
  bool nobody() const {
    return std::none_of(peers_.begin(), peers_.end(), [](const auto& rollout) { return rollout.present(); });
  }
  /// Nobody is left, somebody has said goodbye, and nothing of the batch is here.
  bool finished(std::int64_t batch) const {
    bool goodbye = false;
    for (const SendingRollout& rollout : peers_) {
      if (rollout.expected_from != SendingRollout::never && rollout.last >= batch) return false;
      goodbye = goodbye || rollout.last < batch;
    }
    const Slot& slot = slot_of(batch);
    return goodbye && !may_return_ && (slot.state == State::free || slot.batch != batch);
  }
  std::string missing(std::int64_t batch) const {
    std::string text;
    for (std::size_t i = 0; i < routes_.size(); ++i) {
      if (!waits_for(i, batch)) continue;
      const std::int64_t first = routes_[i].first_group;
      append(text,
             concat(peer_of_[i]->name, ", groups ", first, "-", first + routes_[i].groups - 1,
                    part_of(i, batch) == Part::arriving ? " (arriving)" : ""),
             "; ");
    }
    if (!text.empty()) return text;
    text = "every rollout";
    for (const SendingRollout& rollout : peers_)
      append(text, rollout.name + ": " + (rollout.why_gone.empty() ? "it is joining" : rollout.why_gone),
             "; ");
    return text;
  }

  // ---- Parts

  /// Position among this actor's routes; their number: no such part comes here.
  std::size_t route_of(const PlaneMessage& part) const {
    const auto found = std::find_if(routes_.begin(), routes_.end(), [&](const Route& route) {
      return route.rollout == part.rollout && route.first_group == part.first_group &&
             route.groups == part.groups;
    });
    return static_cast<std::size_t>(found - routes_.begin());
  }
  /// Waits until `batch` has a buffer, and marks the part as arriving; or says why it may not come. The part
  /// is then to be ended, by arrive or settle; until then `block` is this batch's.
  Refusal admit(std::size_t route, std::int64_t batch, std::byte*& block) {
    std::unique_lock lock(mutex_);
    const SendingRollout& rollout = *peer_of_[route];
    const std::int64_t buffers = options_.buffers;
    if (batch < rollout.expected_from) return Refusal::outdated;
    // Other actors may be ahead, so the batch that was agreed on may be.
    if (!rollout.local && batch - std::max(next_, rollout.expected_from) >= buffers + rollout.buffers)
      return Refusal::early;
    newest_ = std::max(newest_, batch);
    Slot& slot = slot_of(batch);
    const auto ready = [&] {
      return ended_ || !rollout.why_gone.empty() || batch < next_ ||
             (batch - next_ < buffers &&
              (slot.state == State::free || (slot.state == State::open && slot.batch == batch)));
    };
    if (!wait_until(lock, deadline_after(between_messages), ready))
      ran_out(between_messages, "for room for batch ", batch);
    throw_if_closed();
    if (!rollout.why_gone.empty()) throw PeerError("data plane: ", rollout.name, " is being lost");
    if (ended_) return Refusal::ended;
    if (batch < next_) return Refusal::outdated;
    if (slot.state == State::free) open(slot, batch);
    if (slot.parts[route] != Part::absent) return Refusal::duplicate;
    slot.parts[route] = Part::arriving;
    block = slot.block;
    return Refusal::none;
  }
  /// With the mutex held. The part is there.
  void arrive(std::size_t route, const PlaneMessage& part) {
    report_.received += episodes(route);
    peer_of_[route]->received += episodes(route);
    BatchArrival& arrival = slot_of(part.batch).arrival;
    arrival.oldest_version =
        arrival.episodes == 0 ? part.oldest_version : std::min(arrival.oldest_version, part.oldest_version);
    arrival.episodes += episodes(route);
    arrival.counts.env_steps += part.env_steps;
    arrival.counts.chunk_steps += part.chunk_steps;
    settle(route, part.batch, Part::arrived);
  }
  /// With the mutex held. What became of an arriving part.
  void settle(std::size_t route, std::int64_t batch, Part part) {
    Slot& slot = slot_of(batch);
    slot.parts[route] = part;
    if (slot.state == State::given_up) give_up(slot);
    changed_.notify_all();
  }

  // ---- The conversation with a rollout, in its thread (see wire.hpp)

  void serve(SendingRollout& rollout) {
    greet(rollout);
    while (take_message(rollout)) {
    }
  }

  /// hello -> offer, start -> accepted. One that comes back joins behind the batch that the others are at:
  /// nobody waits for its start.
  void greet(SendingRollout& rollout) {
    using enum MessageKind;
    for (const auto& [question, answer] : {std::pair{hello, offer}, std::pair{start, accepted}}) {
      PlaneMessage message = greeting(rollout, question);
      {
        const std::scoped_lock lock(mutex_);
        rollout.buffers = std::min<std::int64_t>(message.bytes, 1 << 20);
        rollout.earlier = rollout.received;
        rollout.expect(
            std::max({message.batch, next_, rollout.present() ? rollout.expected_from : newest_ + 1}));
        message.batch = rollout.expected_from;
        changed_.notify_all();
      }
      reply(rollout, answer, message);
    }
  }
  PlaneMessage greeting(SendingRollout& rollout, MessageKind kind) {
    PlaneMessage message;
    Refusal refusal = Refusal::malformed;
    if (receive_message(*rollout.channel, options_.deadline, message) && message.kind == kind &&
        message.batch >= 0)
      refusal = check_sender(rollout, message);
    if (refusal == Refusal::none && message.fingerprint != fingerprint_) refusal = Refusal::layout;
    if (refusal == Refusal::none) return message;
    answer_no(rollout, message, refusal);
    throw Error(rollout.name, " was refused: ", refusal_name(refusal));
  }

  /// False: goodbye.
  bool take_message(SendingRollout& rollout) {
    PlaneMessage message;
    const bool is_message = receive_message(*rollout.channel, between_messages, message);
    Refusal refusal = is_message ? check_sender(rollout, message) : Refusal::malformed;
    if (refusal == Refusal::none && message.kind == MessageKind::goodbye) {
      {
        const std::scoped_lock lock(mutex_);
        rollout.last = message.batch;
        rollout.why_gone = concat("it said goodbye after batch ", message.batch);
        changed_.notify_all();
      }
      reply(rollout, MessageKind::accepted, message);
      return false;
    }
    if (refusal == Refusal::none) refusal = take_part(rollout, message);
    if (refusal == Refusal::none)
      reply(rollout, MessageKind::accepted, message);
    else
      answer_no(rollout, message, refusal);
    return true;
  }
  Refusal take_part(SendingRollout& rollout, const PlaneMessage& part) {
    if (part.kind != MessageKind::part) return Refusal::malformed;
    const std::size_t route = route_of(part);
    if (route == routes_.size()) return Refusal::foreign;
    if (part.bytes != bytes(route)) return Refusal::layout;
    std::byte* block = nullptr;
    if (const Refusal refusal = admit(route, part.batch, block); refusal != Refusal::none) return refusal;
    bool whole = false;
    try {
      reply(rollout, MessageKind::go, part);
      whole = receive_part(rollout, strips_[route], block);
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      rollout.stop_expecting();  // before the part is missed
      settle(route, part.batch, Part::absent);
      throw;
    }
    const std::scoped_lock lock(mutex_);
    report_.bytes_received += part.bytes;
    report_.payload_bytes_copied += part.bytes;
    if (whole)
      arrive(route, part);
    else  // its columns are lost
      settle(route, part.batch, Part::damaged);
    return whole ? Refusal::none : Refusal::damaged;
  }
  /// False: what came does not match its checksum.
  bool receive_part(SendingRollout& rollout, const Strips& strips, std::byte* block) {
    StripCursor to(strips);
    Checksum sum;
    in_pieces(
        bytes_in(strips), rollout.staging.data(),
        [&](std::span<std::byte> piece) { rollout.channel->receive(piece, options_.deadline); },
        [&](std::span<std::byte> piece) {
          sum.update(piece);
          scatter(piece, block, to);
        });
    std::uint64_t seal = 0;
    rollout.channel->receive(std::as_writable_bytes(std::span(&seal, 1)), options_.deadline);
    return seal == sum.value();
  }

  void reply(SendingRollout& rollout, MessageKind kind, PlaneMessage message, Refusal why = Refusal::none) {
    message.kind = kind;
    message.refusal = why;
    rollout.channel->send(write_message(message), options_.deadline);
  }
  void answer_no(SendingRollout& rollout, const PlaneMessage& message, Refusal why) {
    {
      const std::scoped_lock lock(mutex_);
      ++report_.refused[static_cast<std::size_t>(why)];
    }
    reply(rollout, MessageKind::refused, message, why);
  }
  Refusal check_sender(const SendingRollout& rollout, const PlaneMessage& message) const {
    return check_pair(message, rollout.index, index_, rollout.incarnation);
  }

  const bool only_actor_, may_return_;
  bool ended_ = false;
  std::int64_t next_;    // first batch that was neither consumed nor dropped
  std::int64_t newest_;  // of which a part was announced
  std::vector<Slot> slots_;
};

}  // namespace detail
}  // namespace dvla
