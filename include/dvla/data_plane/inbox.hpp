// The actor's ears: one receiver thread for each rollout's channel, which brings parts into the batch queue,
// chunk by chunk through a staging block, each proved before any byte of it is put into a batch; the next one
// is received meanwhile.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/data_plane/batch_queue.hpp"

namespace dvla::detail {

/// Of the largest part: room for it, or for two chunks.
inline std::size_t staging_bytes(const std::vector<Strips>& parts) {
  std::size_t largest = 0;
  for (const Strips& strips : parts) largest = std::max(largest, strips_bytes(strips));
  if (largest == 0) return 0;
  return largest <= chunk_bytes ? largest + seal_bytes : 2 * (chunk_bytes + seal_bytes);
}

/// A part of `bytes` in chunks, in order: `make` fills one, seal included, while `use` is at the one before
/// it, so that memory is read or written while the channel carries. Both run in one thread at a time.
template <class Make, class Use>
void in_chunks(std::size_t bytes, std::byte* staging, Make make, Use use) {
  const std::size_t count = (bytes + chunk_bytes - 1) / chunk_bytes;
  const auto chunk = [&](std::size_t i) {
    return std::span(staging + i % 2 * (chunk_bytes + seal_bytes),
                     std::min(chunk_bytes, bytes - i * chunk_bytes) + seal_bytes);
  };
  if (count > 0) make(chunk(0));
  for (std::size_t i = 0; i < count; ++i) {
    std::future<void> next;
    if (i + 1 < count) next = std::async(std::launch::async, [&] { make(chunk(i + 1)); });
    use(chunk(i));
    if (next.valid()) next.get();
  }
}

class Inbox {
 public:
  using Refused = std::array<std::int64_t, static_cast<std::size_t>(Refusal::count_)>;

  Inbox(int actor, std::uint64_t fingerprint, BatchQueue& queue, std::pmr::memory_resource& pool)
      : actor_(actor), fingerprint_(fingerprint), deadline_(queue.options().deadline), queue_(queue) {
    for (const Route& route : queue.routes()) {
      if (route.local || (!peers_.empty() && peers_.back()->rollout == route.rollout)) continue;
      peers_.push_back(std::make_unique<Peer>());
      peers_.back()->rollout = route.rollout;
    }
    staging_.emplace(peers_.size(), staging_bytes(queue.strips()), pool);
    for (std::size_t i = 0; i < peers_.size(); ++i) peers_[i]->staging = (*staging_)[i];
  }
  ~Inbox() {
    close();
    for (auto& peer : peers_)
      if (peer->thread.joinable()) peer->thread.join();
  }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  /// Whether anything comes from it over a channel.
  bool hears(int rollout) const {
    return std::any_of(peers_.begin(), peers_.end(),
                       [&](const auto& peer) { return peer->rollout == rollout; });
  }

  /// Gives a rollout its channel, the first or that of its next incarnation.
  void join(int rollout, std::shared_ptr<Channel> channel, std::int64_t incarnation) {
    const std::scoped_lock one(joining_);
    Peer& peer = find(rollout);
    {
      const std::scoped_lock lock(mutex_);
      if (peer.channel && incarnation <= peer.incarnation)
        throw Error("data plane: " + queue_.name_of(rollout) + " comes with incarnation " +
                    std::to_string(incarnation) + ", but incarnation " + std::to_string(peer.incarnation) +
                    " was here already; a restarted rollout takes the next number");
    }
    if (peer.thread.joinable()) {
      lose(rollout, "incarnation " + std::to_string(incarnation) + " takes its place");
      peer.thread.join();
    }
    queue_.leaving(rollout, false);
    const std::scoped_lock lock(mutex_);
    if (closed_) throw Error("data plane: " + queue_.options().name + " was closed");
    peer.why_closed.clear();
    peer.parted = false;
    peer.channel = std::move(channel);
    peer.incarnation = incarnation;
    peer.thread = std::thread([this, &peer] { serve(peer); });
  }

  /// Ends a rollout's channel: its thread then counts it as lost.
  void lose(int rollout, const std::string& why) {
    Peer& peer = find(rollout);
    {
      const std::scoped_lock lock(mutex_);
      if (peer.why_closed.empty()) peer.why_closed = why;
      if (peer.channel) peer.channel->close();
      if (peer.parted) return;
    }
    queue_.leaving(rollout, true);
  }

  /// Waits until every rollout has said goodbye, or is lost.
  void part() {
    std::unique_lock lock(mutex_);
    auto parted = [](const auto& peer) { return peer->parted || !peer->channel; };
    if (changed_.wait_until(lock, deadline_after(deadline_),
                            [&] { return closed_ || std::all_of(peers_.begin(), peers_.end(), parted); }))
      return;
    std::string whom;
    for (const auto& peer : peers_)
      if (!parted(peer)) whom += (whom.empty() ? "" : ", ") + queue_.name_of(peer->rollout);
    throw DeadlineError("data plane: " + queue_.options().name + " waited " + seconds_text(deadline_) +
                        " for the goodbye of " + whom);
  }

  Refused refused() const {
    const std::scoped_lock lock(mutex_);
    return refused_;
  }
  std::int64_t incarnation(int rollout) const {
    const std::scoped_lock lock(mutex_);
    for (const auto& peer : peers_)
      if (peer->rollout == rollout) return peer->incarnation;
    return 0;
  }

  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    for (auto& peer : peers_)
      if (peer->channel) peer->channel->close();
    changed_.notify_all();
  }

 private:
  struct Peer {
    int rollout = 0;
    std::int64_t incarnation = 0;
    std::shared_ptr<Channel> channel;
    std::string why_closed;  ///< by us
    bool parted = false;     ///< its thread is at its end
    std::byte* staging = nullptr;
    std::thread thread;
  };

  Peer& find(int rollout) {
    for (auto& peer : peers_)
      if (peer->rollout == rollout) return *peer;
    throw Error("data plane: " + queue_.options().name + " gets nothing from rollout " +
                std::to_string(rollout) + " over a channel; see the routing plan");
  }

  /// The life of a receiver thread.
  void serve(Peer& peer) {
    std::string why;
    try {
      greet(peer);
      while (take_message(peer)) {
      }
    } catch (const std::exception& error) {
      why = error.what();
    }
    if (!why.empty()) {
      {
        const std::scoped_lock lock(mutex_);
        if (!peer.why_closed.empty()) why = peer.why_closed;
        peer.channel->close();
      }
      queue_.lost(peer.rollout, why);
    }
    const std::scoped_lock lock(mutex_);
    peer.parted = true;
    changed_.notify_all();
  }

  /// False: these bytes were no message; `message` is then empty.
  bool receive(Peer& peer, std::chrono::nanoseconds limit, DataMessage& message) {
    MessageBytes bytes;
    peer.channel->receive(bytes, limit);
    if (read_message(bytes, message)) return true;
    message = {};
    return false;
  }
  void reply(Peer& peer, MessageKind kind, DataMessage message, Refusal refusal = Refusal::none) {
    message.kind = kind;
    message.refusal = refusal;
    peer.channel->send(write_message(message), deadline_);
  }
  void refuse(Peer& peer, const DataMessage& message, Refusal refusal) {
    {
      const std::scoped_lock lock(mutex_);
      ++refused_[static_cast<std::size_t>(refusal)];
    }
    reply(peer, MessageKind::refused, message, refusal);
  }
  Refusal check_sender(const Peer& peer, const DataMessage& message) const {
    if (message.rollout != peer.rollout || message.actor != actor_) return Refusal::foreign;
    return message.incarnation == peer.incarnation ? Refusal::none : Refusal::incarnation;
  }

  /// hello -> offer, start -> accepted.
  void greet(Peer& peer) {
    DataMessage message;
    auto hear = [&](MessageKind kind) {
      Refusal refusal = Refusal::malformed;
      if (receive(peer, deadline_, message) && message.kind == kind && message.batch >= 0)
        refusal = check_sender(peer, message);
      if (refusal == Refusal::none && message.fingerprint != fingerprint_) refusal = Refusal::layout;
      if (refusal == Refusal::none) return;
      refuse(peer, message, refusal);
      throw Error(queue_.name_of(peer.rollout) + " was refused: " + std::string(refusal_name(refusal)));
    };
    hear(MessageKind::hello);
    message.batch = queue_.offer(peer.rollout, message.batch, message.bytes);
    reply(peer, MessageKind::offer, message);
    hear(MessageKind::start);
    queue_.start(peer.rollout, message.batch);
    reply(peer, MessageKind::accepted, message);
  }

  /// False: goodbye.
  bool take_message(Peer& peer) {
    DataMessage message;
    const bool is_message = receive(peer, between_messages, message);
    Refusal refusal = is_message ? check_sender(peer, message) : Refusal::malformed;
    if (refusal == Refusal::none && message.kind == MessageKind::goodbye) {
      queue_.farewell(peer.rollout, message.batch);
      reply(peer, MessageKind::accepted, message);
      return false;
    }
    if (refusal == Refusal::none && message.kind != MessageKind::part) refusal = Refusal::malformed;
    const auto route = queue_.find_route(peer.rollout, message.first_group, message.groups);
    if (refusal == Refusal::none && !route) refusal = Refusal::foreign;
    if (refusal == Refusal::none &&
        message.bytes != static_cast<std::int64_t>(strips_bytes(queue_.strips()[*route])))
      refusal = Refusal::layout;
    if (refusal == Refusal::none) refusal = queue_.admit(*route, message.batch);
    if (refusal != Refusal::none) {
      refuse(peer, message, refusal);
      return true;
    }
    bool whole = false;
    try {
      reply(peer, MessageKind::go, message);
      whole = receive_chunks(peer, queue_.strips()[*route], queue_.block(message.batch));
    } catch (...) {
      queue_.abandon(*route, message.batch);
      throw;
    }
    if (!whole) {
      queue_.damage(*route, message.batch);
      refuse(peer, message, Refusal::damaged);
      return true;
    }
    queue_.arrive(*route, message.batch, message.oldest_version, {message.env_steps, message.chunk_steps});
    reply(peer, MessageKind::accepted, message);
    return true;
  }
  /// False: a chunk was damaged; the rest is still received, so that the channel stays in step.
  bool receive_chunks(Peer& peer, const Strips& strips, std::byte* block) {
    StripCursor to(strips);
    bool whole = true;
    in_chunks(
        strips_bytes(strips), peer.staging,
        [&](std::span<std::byte> chunk) { peer.channel->receive(chunk, deadline_); },
        [&](std::span<std::byte> chunk) {
          whole = whole && chunk_is_whole(chunk);
          if (whole) scatter(chunk.first(chunk.size() - seal_bytes), block, to);
        });
    return whole;
  }

  const int actor_;
  const std::uint64_t fingerprint_;
  const std::chrono::nanoseconds deadline_;
  BatchQueue& queue_;
  std::optional<Blocks> staging_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::mutex joining_;  // one join at a time
  bool closed_ = false;
  Refused refused_{};
  std::vector<std::unique_ptr<Peer>> peers_;
};

}  // namespace dvla::detail
