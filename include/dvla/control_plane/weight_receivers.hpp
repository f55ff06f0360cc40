// A rollout's side of the broadcast plane: one thread an actor, which checks every frame, fills that actor's
// slot and proves it by its checksum. It waits before it overwrites what is still needed, so an actor that is
// ahead of the others is held back, never stored. What is wrong ends that actor here; receive says why.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/control_plane/weight_board.hpp"
#include "dvla/control_plane/weight_frame.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

class WeightReceivers {
 public:
  explicit WeightReceivers(WeightBoard& board)
      : board_(board), links_(board.rollout >= 0 ? board.roles.actors.size() : 0) {}
  ~WeightReceivers() {
    for (auto& link : links_)
      if (link && link->thread.joinable()) link->thread.join();
  }

  /// The way from an actor, which is listened to from now on.
  void connect(int actor, std::vector<std::unique_ptr<Channel>> channels) {
    auto& link = links_[WeightBoard::place(actor)];
    link = std::make_unique<Link>(terms(actor), std::move(channels), board_.deadline);
    link->thread = std::thread([this, &from = *link] { listen(from); });
  }

  // ---- With the board's lock held
  struct Gone {
    int actor = -1;
    std::string why;
    explicit operator bool() const { return actor >= 0; }
  };
  /// An actor that has gone, and sent nothing that can make `version` or a later one whole.
  Gone without(WeightPeer how, std::int64_t version) const {
    for (const auto& link : links_)
      if (link && link->peer == how && !board_.slots.has_sent(link->terms.actor, version))
        return {link->terms.actor, link->why};
    return {};
  }
  /// An actor that is listened to, or -1.
  int live() const {
    for (const auto& link : links_)
      if (link && link->peer == WeightPeer::live) return link->terms.actor;
    return -1;
  }
  void close() {
    for (const auto& link : links_)
      if (link) link->wire.close();
  }
  void lose(int actor) {
    if (actor < 0 || WeightBoard::place(actor) >= links_.size()) return;
    if (auto& link = links_[WeightBoard::place(actor)]) link->wire.close();
  }

 private:
  /// Between versions an actor need not send anything: lanes that wait have deadlines of their own, and a
  /// peer that dies or stops closes the channel.
  static constexpr std::chrono::hours idle{1000};

  struct Link {
    Link(WeightFrameTerms its_terms, std::vector<std::unique_ptr<Channel>> channels,
         std::chrono::nanoseconds limit)
        : terms(std::move(its_terms)), wire(std::move(channels), limit) {}
    WeightFrameTerms terms;
    WeightWire wire;
    WeightPeer peer = WeightPeer::live;
    std::string why;
    std::thread thread;
  };

  WeightFrameTerms terms(int actor) const {
    WeightFrameTerms terms;
    const PartLayout& its = board_.layout(actor);
    terms.from = board_.actor_name(actor);
    terms.actor = actor;
    terms.rollout = board_.rollout;
    terms.incarnation = board_.incarnation;
    terms.layout = its.identity;
    terms.bytes = its.bytes;
    return terms;
  }

  void listen(Link& link) {
    try {
      std::array<std::byte, 64> head;
      for (;;) {
        link.wire.channel().receive(head, idle);
        const WeightFrame frame = read_frame(head, link.terms);
        if (frame.kind == FrameKind::end) break;
        take_version(link, frame);
      }
      link.wire.channel().send(std::array<std::byte, 8>{}, board_.deadline);
      end(link, WeightPeer::ended, {});
    } catch (const std::exception& error) {
      link.wire.close();
      end(link, WeightPeer::lost, error.what());
    }
  }
  void end(Link& link, WeightPeer how, std::string why) {
    {
      const std::scoped_lock lock(board_.mutex);
      link.peer = how;
      link.why = std::move(why);
    }
    board_.changed.notify_all();
  }

  void take_version(Link& link, const WeightFrame& frame) {
    const int actor = link.terms.actor;
    WeightSlot& slot = claim(actor, frame);
    const auto start = std::chrono::steady_clock::now();
    try {
      fill(link, frame, slot);
    } catch (...) {
      const std::scoped_lock lock(board_.mutex);
      board_.slots.abandon(actor);
      throw;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    {
      const std::scoped_lock lock(board_.mutex);
      board_.slots.ready(actor);
      ++board_.report.versions_received;
      board_.report.bytes_received += static_cast<std::int64_t>(frame.bytes);
      board_.report.receive_s += took.count();
    }
    link.terms.last = frame.version;
    board_.changed.notify_all();
  }
  WeightSlot& claim(int actor, const WeightFrame& frame) {
    std::unique_lock lock(board_.mutex);
    board_.slots.announce(actor, frame.version);
    board_.changed.notify_all();
    const bool free = board_.changed.wait_until(lock, deadline_after(board_.deadline),
                                                [&] { return board_.closed || board_.slots.free(actor); });
    if (board_.closed) throw Error("control plane: closed");
    if (!free)
      throw DeadlineError("control plane: version " + std::to_string(frame.version) + " of " +
                          board_.actor_name(actor) + " waited " + seconds_text(board_.deadline) + " at " +
                          board_.me + " for " + board_.actor_name(board_.slots.last_actor()) +
                          " to come beyond version " +
                          std::to_string(board_.slots.newest(board_.slots.last_actor())) + "; is it stuck?");
    return board_.slots.take(actor, frame.version);
  }
  void fill(Link& link, const WeightFrame& frame, WeightSlot& slot) {
    const std::uint64_t sum = link.wire.receive(slot.bytes);
    if (sum != link.wire.receive_sum())
      throw Error(
          "control plane: version " + std::to_string(frame.version) + " from " + link.terms.from +
          " does not match its checksum: it is torn or damaged; nobody may write to published weights");
  }

  WeightBoard& board_;
  std::vector<std::unique_ptr<Link>> links_;  ///< by actor; null: this rank
};

}  // namespace dvla::detail
