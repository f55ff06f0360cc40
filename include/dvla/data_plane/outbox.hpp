// The rollout's side of the data plane between processes: K + 1 buffers of its own share, and for each actor
// one thread that hands the committed buffers over, part by part. A buffer is in use until every actor has
// acknowledged its part of it: that is the back-pressure, and nothing grows or is lost meanwhile.
// Knows blocks and strips of memory, not what the fields mean: routed.hpp does.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/data_plane/batch_queue.hpp"
#include "dvla/data_plane/inbox.hpp"

namespace dvla::detail {

class Outbox {
 public:
  struct Options {
    int rollout = 0;
    std::int64_t incarnation = 0;
    std::int64_t first_batch = 0;
    std::uint64_t fingerprint = 0;
    std::int64_t group_episodes = 1;
    std::chrono::nanoseconds deadline{};
    std::string name;                      ///< "rank 1 (rollout 1)"
    std::vector<std::string> actor_names;  ///< of all actors
  };
  struct Totals {
    std::int64_t sent = 0, acknowledged = 0, refused = 0;  ///< episodes; sent: committed
    std::int64_t bytes_sent = 0, parts_sent = 0;
    std::chrono::nanoseconds back_pressure{0};
  };

  /// `routes`: those of this rollout; strips[i]: where routes[i] lies in a block. `queue`: this rank's own,
  /// for the local routes; null if there are none. channels[i]: to actor i; null: no route leads there, or a
  /// local one.
  Outbox(Options options, std::vector<Route> routes, std::vector<Strips> strips, const Blocks& blocks,
         std::vector<std::shared_ptr<Channel>> channels, BatchQueue* queue, std::pmr::memory_resource& pool)
      : options_(std::move(options)),
        routes_(std::move(routes)),
        strips_(std::move(strips)),
        queue_(queue),
        buffers_(blocks.size()) {
    for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].block = blocks[i];
    std::size_t remote = 0;
    for (std::size_t i = 0; i < routes_.size(); ++i) {
      const Route& route = routes_[i];
      auto same = std::find_if(targets_.begin(), targets_.end(),
                               [&](const auto& target) { return target->actor == route.actor; });
      if (same == targets_.end()) {
        auto target = std::make_unique<Target>();
        target->actor = route.actor;
        if (!route.local) target->channel = channels.at(static_cast<std::size_t>(route.actor)), ++remote;
        same = targets_.insert(targets_.end(), std::move(target));
      }
      (*same)->routes.push_back(i);
      if (!route.local) continue;
      (*same)->queue_routes.push_back(
          queue_->find_route(route.rollout, route.first_group, route.groups).value());
    }
    whole_is_local_ = targets_.size() == 1 && !targets_[0]->channel && queue_->routes().size() == 1;
    staging_.emplace(remote, staging_bytes(strips_), pool);
    first_batch_ = options_.first_batch;
    greet();
    std::size_t next = 0;
    try {
      for (auto& target : targets_) {
        if (target->channel) target->staging = (*staging_)[next++];
        target->thread = std::thread([this, &target = *target] { serve(target); });
      }
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Outbox() { stop(); }
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  /// The first batch that the actors expect of this incarnation.
  std::int64_t first_batch() const { return first_batch_; }

  /// Waits until the buffer is free. The same batch again gives the same block.
  std::byte* produce(std::int64_t batch, std::int32_t index) {
    std::unique_lock lock(mutex_);
    Buffer& buffer = at(index, batch, "produce");
    throw_if_broken();
    if (buffer.state == State::filling && buffer.batch == batch) return buffer.block;
    if (buffer.state == State::filling)
      throw Error("data plane: buffer " + std::to_string(index) + " cannot be filled with " +
                  batch_text(batch) + ": it is being filled with " + batch_text(buffer.batch) +
                  "; commit or drop that first");
    if (buffer.state == State::sent) {
      const auto start = std::chrono::steady_clock::now();
      const bool free = changed_.wait_until(lock, deadline_after(options_.deadline), [&] {
        return closed_ || buffer.state == State::free || !broken().empty();
      });
      totals_.back_pressure += std::chrono::steady_clock::now() - start;
      throw_if_broken();
      if (!free)
        throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                            " for a buffer for " + batch_text(batch) + ": " + batch_text(buffer.batch) +
                            " in it is not yet acknowledged by " + owing(index));
    }
    buffer.state = State::filling;
    buffer.batch = batch;
    return buffer.block;
  }

  void commit(std::int64_t batch, std::int32_t index, std::int64_t oldest_version,
              const SenderCounts& counts) {
    const std::scoped_lock lock(mutex_);
    Buffer& buffer = filling(index, batch, "commit");
    throw_if_broken();
    buffer.state = State::sent;
    buffer.oldest_version = oldest_version;
    buffer.counts = counts;
    buffer.outstanding = static_cast<int>(targets_.size());
    last_ = std::max(last_, batch);
    for (const Route& route : routes_) totals_.sent += route.groups * options_.group_episodes;
    for (auto& target : targets_) target->queue.push_back(index);
    if (targets_.empty()) buffer.state = State::free;
    changed_.notify_all();
  }

  /// False: it is not being filled with this batch.
  bool drop(std::int64_t batch, std::int32_t index) {
    const std::scoped_lock lock(mutex_);
    if (index < 0 || static_cast<std::size_t>(index) >= buffers_.size()) return false;
    Buffer& buffer = buffers_[static_cast<std::size_t>(index)];
    if (buffer.state != State::filling || buffer.batch != batch) return false;
    buffer.state = State::free;
    return true;
  }

  /// Waits until all that was committed is acknowledged, then tells every actor the last batch. What was
  /// asked of it when an actor is gone: nothing, if that one has acknowledged all.
  void goodbye() {
    std::unique_lock lock(mutex_);
    if (said_goodbye_) return;
    auto idle = [&] {
      return std::all_of(buffers_.begin(), buffers_.end(),
                         [](const Buffer& buffer) { return buffer.state != State::sent; });
    };
    const auto end = deadline_after(options_.deadline);
    auto wait = [&](auto ready) {
      if (changed_.wait_until(lock, end, [&] { return closed_ || !broken().empty() || ready(); })) return;
      std::string whom;
      for (std::size_t i = 0; i < buffers_.size(); ++i)
        if (buffers_[i].state == State::sent)
          whom += (whom.empty() ? "" : "; ") + batch_text(buffers_[i].batch) + " by " +
                  owing(static_cast<std::int32_t>(i));
      throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                          " to say goodbye; not acknowledged: " + (whom.empty() ? "the goodbye" : whom));
    };
    wait(idle);
    if (!idle()) throw_if_broken();
    said_goodbye_ = true;
    for (auto& target : targets_)
      if (target->gone.empty()) target->queue.push_back(farewell);
    changed_.notify_all();
    auto parted = [&] {
      return std::all_of(targets_.begin(), targets_.end(), [](const auto& target) { return target->done; });
    };
    if (!changed_.wait_until(lock, end, [&] { return closed_ || parted(); }))
      throw DeadlineError("data plane: " + options_.name + " waited " + seconds_text(options_.deadline) +
                          " for an actor to take its goodbye");
  }

  Totals totals() const {
    const std::scoped_lock lock(mutex_);
    return totals_;
  }

  /// Ends every wait, here and at the actors.
  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    for (auto& target : targets_)
      if (target->channel) target->channel->close();
    changed_.notify_all();
  }

 private:
  static constexpr std::int32_t farewell = -1;
  enum class State : std::uint8_t { free, filling, sent };
  struct Buffer {
    State state = State::free;
    std::int64_t batch = -1;
    std::int64_t oldest_version = 0;
    SenderCounts counts;
    int outstanding = 0;  ///< actors that have not acknowledged all of it
    std::byte* block = nullptr;
  };
  struct Target {
    int actor = 0;
    std::vector<std::size_t> routes;        ///< positions in routes_
    std::vector<std::size_t> queue_routes;  ///< local: theirs in the queue
    std::shared_ptr<Channel> channel;       ///< null: local
    std::deque<std::int32_t> queue;         ///< buffers; bounded by their number, and a farewell
    std::string gone;                       ///< why
    bool done = false;                      ///< its thread has ended
    std::byte* staging = nullptr;
    std::thread thread;
  };

  Buffer& at(std::int32_t index, std::int64_t batch, const char* call) {
    if (index < 0 || static_cast<std::size_t>(index) >= buffers_.size())
      throw Error(std::string("data plane: ") + call + " of buffer " + std::to_string(index) + " (" +
                  batch_text(batch) + "), but there are " + std::to_string(buffers_.size()) +
                  ": use the tokens that the schedule gave");
    if (said_goodbye_ || batch <= last_)
      throw Error("data plane: " + options_.name + " cannot " + call + " " + batch_text(batch) + ": " +
                  (said_goodbye_ ? "it has said goodbye"
                                 : batch_text(last_ + 1) + " is the first that it still may hand over"));
    return buffers_[static_cast<std::size_t>(index)];
  }
  Buffer& filling(std::int32_t index, std::int64_t batch, const char* call) {
    Buffer& buffer = at(index, batch, call);
    if (buffer.state == State::filling && buffer.batch == batch) return buffer;
    throw Error("data plane: buffer " + std::to_string(index) + " cannot be handed over as " +
                batch_text(batch) + ": it " +
                (buffer.state == State::filling ? "is being filled with "
                 : buffer.state == State::sent  ? "was handed over with "
                                                : "is free after ") +
                batch_text(buffer.batch) + "; a buffer goes produce, commit");
  }
  /// Why an actor is gone that still was needed; empty: none is.
  std::string broken() const {
    for (const auto& target : targets_)
      if (!target->gone.empty()) return target->gone;
    return {};
  }
  void throw_if_broken() const {
    if (closed_) throw Error("data plane: " + options_.name + " was closed");
    if (const std::string why = broken(); !why.empty())
      throw PeerError("data plane: " + options_.name + " cannot hand over its batches: " + why);
  }
  std::string owing(std::int32_t index) const {
    std::string text;
    for (const auto& target : targets_)
      if (std::find(target->queue.begin(), target->queue.end(), index) != target->queue.end())
        text += (text.empty() ? "" : ", ") + name_of(*target);
    return text;
  }
  const std::string& name_of(const Target& target) const {
    return options_.actor_names[static_cast<std::size_t>(target.actor)];
  }

  // ---- The conversation

  DataMessage message(const Target& target, MessageKind kind, std::int64_t batch) const {
    DataMessage message;
    message.kind = kind;
    message.rollout = options_.rollout;
    message.actor = target.actor;
    message.incarnation = options_.incarnation;
    message.batch = batch;
    message.fingerprint = options_.fingerprint;
    return message;
  }
  DataMessage hear(Target& target, MessageKind kind, std::chrono::nanoseconds limit) {
    MessageBytes bytes;
    target.channel->receive(bytes, limit);
    DataMessage answer;
    if (!read_message(bytes, answer) || (answer.kind != kind && answer.kind != MessageKind::refused))
      throw Error("data plane: " + options_.name + " got an answer from " + name_of(target) +
                  " that is none; the ranks' programs differ");
    return answer;
  }
  void say(Target& target, const DataMessage& message) {
    target.channel->send(write_message(message), options_.deadline);
  }
  /// With all actors at once: each says from which batch on it can take parts, the latest holds for all.
  void greet() {
    auto expect = [&](const DataMessage& answer, const Target& target) {
      if (answer.kind == MessageKind::refused)
        throw ConfigError("data plane: " + name_of(target) + " refused " + options_.name + ": " +
                          std::string(refusal_name(answer.refusal)) +
                          "; start all ranks with the same program and the same settings");
    };
    auto each = [&](auto visit) {
      for (auto& target : targets_)
        if (target->channel) visit(*target);
    };
    each([&](Target& target) {
      DataMessage hello = message(target, MessageKind::hello, options_.first_batch);
      hello.bytes = static_cast<std::int64_t>(buffers_.size());
      say(target, hello);
    });
    each([&](Target& target) {
      const DataMessage offer = hear(target, MessageKind::offer, options_.deadline);
      expect(offer, target);
      first_batch_ = std::max(first_batch_, offer.batch);
    });
    each([&](Target& target) { say(target, message(target, MessageKind::start, first_batch_)); });
    each([&](Target& target) { expect(hear(target, MessageKind::accepted, options_.deadline), target); });
    last_ = first_batch_ - 1;
  }

  void serve(Target& target) {
    std::string why;
    try {
      while (const auto index = next(target)) {
        if (*index == farewell) {
          if (target.channel) {
            say(target, message(target, MessageKind::goodbye, last_batch()));
            hear(target, MessageKind::accepted, options_.deadline);
          }
          break;
        }
        Buffer& buffer = buffers_[static_cast<std::size_t>(*index)];  // unchanged while it is `sent`
        for (std::size_t i = 0; i < target.routes.size(); ++i)
          target.channel ? hand_over(target, buffer, target.routes[i])
                         : move(buffer, target.routes[i], target.queue_routes[i]);
        const std::scoped_lock lock(mutex_);
        target.queue.pop_front();
        if (--buffer.outstanding == 0) buffer.state = State::free;
        changed_.notify_all();
      }
    } catch (const std::exception& error) {
      why = error.what();
    }
    const std::scoped_lock lock(mutex_);
    target.done = true;
    const bool parting = !target.queue.empty() && target.queue.front() == farewell;
    if (!why.empty() && !parting) target.gone = why;  // whoever has all may leave before the goodbye
    changed_.notify_all();
  }
  std::optional<std::int32_t> next(Target& target) {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, between_messages, [&] { return closed_ || !target.queue.empty(); })) {
    }
    if (closed_) return {};
    return target.queue.front();
  }
  std::int64_t last_batch() const {
    const std::scoped_lock lock(mutex_);
    return last_;
  }
  SenderCounts counts_with(std::size_t route, const Buffer& buffer) const {
    return route == 0 ? buffer.counts : SenderCounts{};  // once, however many parts there are
  }
  void settle(std::size_t route, bool accepted) {
    const std::int64_t episodes = routes_[route].groups * options_.group_episodes;
    const std::scoped_lock lock(mutex_);
    (accepted ? totals_.acknowledged : totals_.refused) += episodes;
  }

  void move(Buffer& buffer, std::size_t route, std::size_t queue_route) {
    const bool admitted = queue_->admit(queue_route, buffer.batch) == Refusal::none;
    if (admitted) {
      if (whole_is_local_)
        queue_->exchange(buffer.batch, buffer.block);
      else
        copy_strips(buffer.block, strips_[route], queue_->block(buffer.batch), queue_->strips()[queue_route]);
      queue_->arrive(queue_route, buffer.batch, buffer.oldest_version, counts_with(route, buffer),
                     !whole_is_local_);
    }
    settle(route, admitted);
  }

  void hand_over(Target& target, const Buffer& buffer, std::size_t route) {
    const Strips& strips = strips_[route];
    const std::size_t size = strips_bytes(strips);
    const SenderCounts counts = counts_with(route, buffer);
    DataMessage part = message(target, MessageKind::part, buffer.batch);
    part.first_group = routes_[route].first_group;
    part.groups = routes_[route].groups;
    part.bytes = static_cast<std::int64_t>(size);
    part.oldest_version = buffer.oldest_version;
    part.env_steps = counts.env_steps;
    part.chunk_steps = counts.chunk_steps;
    target.channel->send(write_message(part), between_messages);
    auto matches = [&](const DataMessage& answer) {
      if (answer.kind == MessageKind::refused && answer.refusal == Refusal::malformed) return;
      if (answer.batch != part.batch || answer.first_group != part.first_group)
        throw Error("data plane: " + name_of(target) + " answered for " + batch_text(answer.batch) +
                    " where " + batch_text(part.batch) + " was offered");
    };
    DataMessage answer = hear(target, MessageKind::go, between_messages);  // waits for a buffer there
    matches(answer);
    if (answer.kind == MessageKind::go) {
      StripCursor from(strips);
      in_chunks(
          size, target.staging,
          [&](std::span<std::byte> chunk) {
            const std::size_t payload = chunk.size() - seal_bytes;
            gather(buffer.block, from, chunk.first(payload));
            seal_chunk(chunk, payload);
          },
          [&](std::span<std::byte> chunk) { target.channel->send(chunk, options_.deadline); });
      {
        const std::scoped_lock lock(mutex_);
        totals_.bytes_sent += part.bytes;
        ++totals_.parts_sent;
      }
      answer = hear(target, MessageKind::accepted, options_.deadline);
      matches(answer);
    }
    settle(route, answer.kind != MessageKind::refused);
  }

  void stop() {
    close();
    for (auto& target : targets_)
      if (target->thread.joinable()) target->thread.join();
  }

  const Options options_;
  const std::vector<Route> routes_;
  const std::vector<Strips> strips_;
  BatchQueue* const queue_;
  bool whole_is_local_ = false;
  std::int64_t first_batch_ = 0;
  std::optional<Blocks> staging_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false, said_goodbye_ = false;
  std::int64_t last_ = -1;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Target>> targets_;
  Totals totals_;
};

}  // namespace dvla::detail
