// A rollout's end of the data plane between processes: K + 1 buffers of its own share, and for each actor a
// thread that hands them over in the order of their commits, part by part. Buffer: filling (produce) ->
// handed over (commit) -> free once every actor has taken or refused its parts of it: that is the
// back-pressure, and nothing grows or is lost meanwhile.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/data_plane/endpoint.hpp"
#include "dvla/data_plane/resource_queue.hpp"
#include "dvla/handoff/token.hpp"

namespace dvla::detail {

/// An actor, as a rollout sees it.
struct ReceivingActor : RoutedPeer {
  using RoutedPeer::RoutedPeer;
  std::int64_t done = 0;  ///< hand-overs of which it has taken or refused all its parts
};

class BatchSender : public Endpoint<ReceivingActor> {
 public:
  /// `queue`: this rank's own, for the local routes; null if it is no actor.
  template <Record Layout>
  BatchSender(const Layout& layout, const RoutedJob& job, ResourceQueue* queue)
      : Endpoint(layout, job, true),
        queue_(queue),
        first_batch_(options_.first_batch),
        buffers_(static_cast<std::size_t>(options_.buffers)),
        handed_over_(buffers_.size()) {
    for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].block = memory_of(i);
  }
  ~BatchSender() { stop(); }

  void connect(int actor, std::unique_ptr<Channel> channel) { reached(actor).channel = std::move(channel); }
  /// Once every actor has its channel: each says from which batch on it can take parts, the latest holds for
  /// all.
  void start() {
    const auto tell_all = [&](MessageKind question, MessageKind answer) {
      std::int64_t latest = first_batch_;
      for (ReceivingActor& actor : peers_) {
        if (actor.local) continue;
        const PlaneMessage said =
            ask(actor, {.kind = question, .batch = first_batch_, .bytes = options_.buffers}, answer,
                options_.deadline);
        if (said.kind == MessageKind::refused)
          throw ConfigError("data plane: ", actor.name, " refused ", name_, ": ", refusal_name(said.refusal),
                            "; start all ranks with the same program and the same settings");
        latest = std::max(latest, said.batch);
      }
      return latest;
    };
    first_batch_ = tell_all(MessageKind::hello, MessageKind::offer);
    tell_all(MessageKind::start, MessageKind::accepted);
    last_ = first_batch_ - 1;
    for (ReceivingActor& actor : peers_)
      Endpoint::start(
          actor, [this, &actor] { serve(actor); },
          [this, &actor](const std::string& why) {
            if (!said_goodbye_) actor.why_gone = why;  // whoever has all may leave before the goodbye
          });
  }
  /// The first batch that the actors expect of this incarnation.
  std::int64_t first_batch() const { return first_batch_; }

  /// Waits until the buffer is free. The same batch again gives the same block.
  std::byte* produce(const Token& token) {
    std::unique_lock lock(mutex_);
    Buffer& buffer = buffer_of(token);
    throw_if_broken();
    if (buffer.filling && buffer.part.batch != token.batch) refuse_as(token, buffer, "cannot be filled with");
    if (in_use(buffer)) {
      const bool free = wait_until(lock, deadline_after(options_.deadline),
                                   [&] { return !in_use(buffer) || !why_broken().empty(); });
      throw_if_broken();
      if (!free)
        ran_out(options_.deadline, "for a buffer for batch ", token.batch, ": batch ", buffer.part.batch,
                " in it is not yet acknowledged by ", owing(buffer));
    }
    buffer.filling = true;
    buffer.part.batch = token.batch;
    return buffer.block;
  }

  /// Hands it over, with token.version as the oldest weights in it.
  void commit(const Token& token, const SenderCounts& counts) {
    const std::scoped_lock lock(mutex_);
    Buffer& buffer = buffer_of(token);
    if (!buffer.filling || buffer.part.batch != token.batch)
      refuse_as(token, buffer, "cannot be handed over as");
    throw_if_broken();
    buffer.filling = false;
    buffer.part = {.kind = MessageKind::part,
                   .batch = token.batch,
                   .oldest_version = token.version,
                   .env_steps = counts.env_steps,
                   .chunk_steps = counts.chunk_steps};
    buffer.number = count_++;
    handed_over_[static_cast<std::size_t>(buffer.number) % handed_over_.size()] = &buffer;
    last_ = token.batch;
    for (std::size_t i = 0; i < routes_.size(); ++i) report_.sent += episodes(i);
    changed_.notify_all();
  }

  /// False: it is not being filled with this batch.
  bool drop(const Token& token) {
    const std::scoped_lock lock(mutex_);
    if (token.buffer < 0 || static_cast<std::size_t>(token.buffer) >= buffers_.size()) return false;
    Buffer& buffer = buffers_[static_cast<std::size_t>(token.buffer)];
    return buffer.part.batch == token.batch && std::exchange(buffer.filling, false);
  }

  /// Waits until all that was committed is acknowledged, then tells every actor the last batch. An actor that
  /// is gone is no matter if it has acknowledged all.
  void goodbye() {
    std::unique_lock lock(mutex_);
    if (said_goodbye_) return;
    const auto until = deadline_after(options_.deadline);
    const auto all_done = [&] { return least_done() == count_; };
    if (!wait_until(lock, until, [&] { return all_done() || !why_broken().empty(); })) {
      std::string whom;
      for (const Buffer& buffer : buffers_)
        if (in_use(buffer)) append(whom, concat("batch ", buffer.part.batch, " by ", owing(buffer)), "; ");
      ran_out(options_.deadline, "to say goodbye; not acknowledged: ", whom);
    }
    if (!all_done()) throw_if_broken();
    said_goodbye_ = true;
    changed_.notify_all();
    if (!wait_until(lock, until, [&] {
          return std::all_of(peers_.begin(), peers_.end(), [](const auto& actor) { return actor.ended; });
        }))
      ran_out(options_.deadline, "for an actor to take its goodbye");
  }

  /// Adds what a rollout counts.
  void add_to(RoutedReport& report) const {
    const std::scoped_lock lock(mutex_);
    report.sent = report_.sent;
    report.acknowledged = report_.acknowledged;
    report.unacknowledged = report_.sent - report_.acknowledged - report_.dropped;
    report.dropped += report_.dropped;
    report.bytes_sent = report_.bytes_sent;
  }

 private:
  struct Buffer {
    bool filling = false;
    std::int64_t number = -1;  ///< of its last hand-over, from 0
    PlaneMessage part;         ///< what is the same in all parts of it
    std::byte* block = nullptr;
  };

  // ---- With the mutex held

  Buffer& buffer_of(const Token& token) {
    if (token.buffer < 0 || static_cast<std::size_t>(token.buffer) >= buffers_.size())
      throw Error("data plane: there is no buffer ", token.buffer, " (batch ", token.batch,
                  "), the last one is ", buffers_.size() - 1, "; use the tokens that the schedule gave");
    if (said_goodbye_) refuse("cannot send batch ", token.batch, ": it has said goodbye");
    if (token.batch <= last_)
      refuse("cannot send batch ", token.batch, ": batch ", last_ + 1,
             " is the first that it still may hand over");
    return buffers_[static_cast<std::size_t>(token.buffer)];
  }
  [[noreturn]] void refuse_as(const Token& token, const Buffer& buffer, const char* cannot) const {
    throw Error("data plane: buffer ", token.buffer, " ", cannot, " batch ", token.batch, ": it ",
                buffer.filling   ? "is being filled with"
                : in_use(buffer) ? "was handed over with"
                                 : "is free after",
                " batch ", buffer.part.batch, "; a buffer goes produce, commit or drop");
  }
  /// How many hand-overs every actor is done with.
  std::int64_t least_done() const {
    std::int64_t least = count_;
    for (const ReceivingActor& actor : peers_) least = std::min(least, actor.done);
    return least;
  }
  bool in_use(const Buffer& buffer) const { return buffer.number >= least_done(); }
  std::string owing(const Buffer& buffer) const {
    std::string text;
    for (const ReceivingActor& actor : peers_)
      if (actor.done <= buffer.number) append(text, actor.name);
    return text;
  }
  /// Why an actor is gone that still was needed; empty: none is.
  std::string why_broken() const {
    for (const ReceivingActor& actor : peers_)
      if (!actor.why_gone.empty()) return actor.why_gone;
    return {};
  }
  void throw_if_broken() const {
    throw_if_closed();
    if (const std::string why = why_broken(); !why.empty())
      refuse<PeerError>("cannot hand over its batches: ", why);
  }

  // ---- The conversation with an actor, in its thread (see wire.hpp)

  void serve(ReceivingActor& actor) {
    while (Buffer* buffer = next_for(actor)) {
      for (std::size_t i = 0; i < routes_.size(); ++i)
        if (peer_of_[i] == &actor) hand_over(actor, *buffer, i);
      const std::scoped_lock lock(mutex_);
      ++actor.done;
      changed_.notify_all();
    }
    if (!actor.local)  // throws at once where this end was closed
      ask(actor, {.kind = MessageKind::goodbye, .batch = last_}, MessageKind::accepted, options_.deadline);
  }
  /// The next buffer for this actor, which does not change until the actor is done with it. Null: there will
  /// be none.
  Buffer* next_for(const ReceivingActor& actor) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || said_goodbye_ || actor.done < count_; });
    if (closed_ || actor.done == count_) return nullptr;
    return handed_over_[static_cast<std::size_t>(actor.done) % handed_over_.size()];
  }
  void hand_over(ReceivingActor& actor, Buffer& buffer, std::size_t route) {
    PlaneMessage part = addressed(buffer.part, actor);
    part.first_group = routes_[route].first_group;
    part.groups = routes_[route].groups;
    part.bytes = bytes(route);
    if (route > 0) part.env_steps = part.chunk_steps = 0;  // they travel once, however many parts
    const bool taken = actor.local
                           ? queue_->take_local(part, buffer.block, strips_[route], routes_.size() == 1)
                           : send_part(actor, part, buffer.block, strips_[route]);
    const std::scoped_lock lock(mutex_);
    (taken ? report_.acknowledged : report_.dropped) += episodes(route);
  }
  /// False: it was refused.
  bool send_part(ReceivingActor& actor, const PlaneMessage& part, const std::byte* block,
                 const Strips& strips) {
    const auto accepts = [&](const PlaneMessage& answer) {
      if ((answer.batch != part.batch || answer.first_group != part.first_group) &&
          !(answer.kind == MessageKind::refused && answer.refusal == Refusal::malformed))
        throw Error("data plane: ", actor.name, " answered for batch ", answer.batch, " where batch ",
                    part.batch, " was offered");
      return answer.kind != MessageKind::refused;
    };
    if (!accepts(ask(actor, part, MessageKind::go, between_messages)))  // waits for a buffer there
      return false;
    StripCursor from(strips);
    Checksum sum;
    in_pieces(
        static_cast<std::size_t>(part.bytes), actor.staging.data(),
        [&](std::span<std::byte> piece) {
          gather(block, from, piece);
          sum.update(piece);
        },
        [&](std::span<std::byte> piece) { actor.channel->send(piece, options_.deadline); });
    const std::uint64_t seal = sum.value();
    actor.channel->send(std::as_bytes(std::span(&seal, 1)), options_.deadline);
    {
      const std::scoped_lock lock(mutex_);
      report_.bytes_sent += part.bytes;
    }
    return accepts(answer(actor, MessageKind::accepted, options_.deadline));
  }

  PlaneMessage addressed(PlaneMessage message, const ReceivingActor& actor) const {
    message.rollout = index_;
    message.actor = actor.index;
    message.incarnation = options_.incarnation;
    message.fingerprint = fingerprint_;
    return message;
  }
  PlaneMessage ask(ReceivingActor& actor, const PlaneMessage& question, MessageKind expected,
                   std::chrono::nanoseconds limit) {
    actor.channel->send(write_message(addressed(question, actor)), limit);
    return answer(actor, expected, limit);
  }
  PlaneMessage answer(ReceivingActor& actor, MessageKind expected, std::chrono::nanoseconds limit) {
    PlaneMessage answer;
    if (!receive_message(*actor.channel, limit, answer) ||
        (answer.kind != expected && answer.kind != MessageKind::refused))
      refuse("got an answer from ", actor.name, " that is none; the ranks' programs differ");
    return answer;
  }

  ResourceQueue* const queue_;
  std::int64_t first_batch_;
  std::int64_t last_ = -1;  // batch that was handed over
  bool said_goodbye_ = false;
  std::vector<Buffer> buffers_;
  std::int64_t count_ = 0;            // of hand-overs
  std::vector<Buffer*> handed_over_;  // number n at n % buffers: no more than that many are under way
};

}  // namespace dvla::detail
