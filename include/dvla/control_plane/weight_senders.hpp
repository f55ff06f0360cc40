// An actor's side of the broadcast plane: one thread a rollout, which sends every version of this actor's
// part. A rollout that is lost, or takes
// nothing for the deadline, is left out and counted; the others go on.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/control_plane/weight_board.hpp"
#include "dvla/control_plane/weight_frame.hpp"
#include "dvla/control_plane/weight_wire.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

class WeightSenders {
 public:
  explicit WeightSenders(WeightBoard& board)
      : board_(board), links_(board.actor >= 0 ? board.roles.rollouts.size() : 0) {}
  ~WeightSenders() {
    for (auto& link : links_)
      if (link && link->thread.joinable()) link->thread.join();
  }

  /// The way to a rollout, which is served from now on. Throws Error for one whose incarnation is not newer
  /// than the one before.
  void connect(int rollout, std::vector<std::unique_ptr<Channel>> channels, int incarnation) {
    const std::scoped_lock one_at_a_time(connecting_);
    check(rollout, incarnation);
    auto& link = links_[WeightBoard::place(rollout)];
    const bool again = link != nullptr;
    if (again) {
      {
        const std::scoped_lock lock(board_.mutex);
        lose(rollout);
      }
      board_.changed.notify_all();
      link->thread.join();
    }
    auto fresh = std::make_unique<Link>(rollout, incarnation, std::move(channels), board_.deadline / 2);
    const std::scoped_lock lock(board_.mutex);
    if (board_.closed)
      throw Error("control plane: closed; " + board_.rollout_name(rollout) + " gets no more weights");
    link = std::move(fresh);
    if (again) ++board_.report.rejoined;
    link->thread = std::thread([this, &to = *link] { serve(to); });
  }

  /// Throws as connect does, before a channel is made.
  void check_newer(int rollout, int incarnation) {
    const std::scoped_lock one_at_a_time(connecting_);
    check(rollout, incarnation);
  }

  // ---- With the board's lock held
  /// A rollout that still needs what lies where this actor packs next, or -1.
  int behind() const {
    const WeightSlot& target = board_.slots.target(board_.actor);
    for (const auto& link : links_) {
      if (!link || link->peer != WeightPeer::live || target.state != WeightSlot::State::ready) continue;
      const bool waits = link->sent != WeightBoard::none && link->sent < target.version;
      if (waits || link->sending == target.version) return link->rollout;
    }
    return -1;
  }
  /// A rollout that is served, or -1.
  int live() const {
    for (const auto& link : links_)
      if (link && link->peer == WeightPeer::live) return link->rollout;
    return -1;
  }
  void close() {
    for (const auto& link : links_)
      if (link) link->wire.close();
  }
  void lose(int rollout) {
    if (rollout < 0 || WeightBoard::place(rollout) >= links_.size()) return;
    auto& link = links_[WeightBoard::place(rollout)];
    if (!link) return;
    link->dismissed = true;
    link->wire.close();
  }

 private:
  struct Link {
    Link(int to, int its_incarnation, std::vector<std::unique_ptr<Channel>> channels,
         std::chrono::nanoseconds limit_of_a_piece)
        : rollout(to),
          incarnation(its_incarnation),
          wire(std::move(channels), limit_of_a_piece),
          limit(limit_of_a_piece) {}
    const int rollout, incarnation;
    WeightWire wire;
    const std::chrono::nanoseconds limit;
    std::int64_t sent = WeightBoard::none, sending = WeightBoard::none;
    WeightPeer peer = WeightPeer::live;
    bool dismissed = false;  ///< known to be lost, or a newer incarnation takes its place
    std::thread thread;
  };
  void check(int rollout, int incarnation) const {
    if (rollout < 0 || WeightBoard::place(rollout) >= links_.size() || rollout == board_.rollout)
      throw Error("control plane: " + board_.me + " sends no weights to rollout " + std::to_string(rollout));
    const auto& link = links_[WeightBoard::place(rollout)];
    if (link && incarnation <= link->incarnation)
      throw Error("control plane: incarnation " + std::to_string(incarnation) + " of " +
                  board_.rollout_name(rollout) + " is not newer than " + std::to_string(link->incarnation));
  }

  void serve(Link& link) {
    try {
      for (;;) {
        WeightSlot* slot = nullptr;
        {
          std::unique_lock lock(board_.mutex);
          board_.changed.wait(lock, [&] {
            slot = next(link);
            return board_.closed || link.dismissed || slot || board_.finishing;
          });
          if (board_.closed || link.dismissed)
            throw PeerError("it was given up while there was nothing to send");
          link.sending = slot ? slot->version : WeightBoard::none;
          if (slot) ++slot->readers;
        }
        if (!slot) break;
        const Leave leave{board_, *slot};
        send_version(link, *slot);
      }
      link.wire.channel().send(frame(link, FrameKind::end, link.sent).bytes_of(), link.limit);
      std::array<std::byte, 8> goodbye{};  // without it, closing might overtake what was sent
      link.wire.channel().receive(goodbye, board_.deadline);
      end(link, WeightPeer::ended, {});
    } catch (const std::exception& error) {
      link.wire.close();
      end(link, WeightPeer::lost, error.what());
    }
  }
  /// A rollout that is new here begins with the newest version; after that it gets every one.
  WeightSlot* next(const Link& link) {
    return board_.slots.next(board_.actor, link.sent, link.sent != WeightBoard::none);
  }
  struct Leave {
    WeightBoard& board;
    WeightSlot& slot;
    ~Leave() {
      {
        const std::scoped_lock lock(board.mutex);
        --slot.readers;
      }
      board.changed.notify_all();
    }
  };
  void end(Link& link, WeightPeer how, const std::string& why) {
    {
      const std::scoped_lock lock(board_.mutex);
      link.peer = how;
      if (how == WeightPeer::lost && !board_.closed) {
        ++board_.report.lost;
        board_.report.last_loss = board_.rollout_name(link.rollout) + ": " + why;
      }
    }
    board_.changed.notify_all();
  }

  WeightFrame frame(const Link& link, FrameKind kind, std::int64_t version) const {
    WeightFrame frame;
    frame.version = version;
    frame.layout = board_.layout(board_.actor).identity;
    frame.actor = board_.actor;
    frame.rollout = link.rollout;
    frame.incarnation = link.incarnation;
    frame.kind = kind;
    return frame;
  }
  void send_version(Link& link, const WeightSlot& slot) {
    const auto start = std::chrono::steady_clock::now();
    const PartLayout& own = board_.layout(board_.actor);
    WeightFrame head = frame(link, FrameKind::weights, slot.version);
    head.bytes = own.bytes;
    link.wire.channel().send(head.bytes_of(), link.limit);
    link.wire.send_sum(link.wire.send(slot.bytes));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const std::scoped_lock lock(board_.mutex);
    link.sent = slot.version;
    link.sending = WeightBoard::none;
    WeightPlaneReport& report = board_.report;
    ++report.versions_sent;
    report.bytes_sent += static_cast<std::int64_t>(head.bytes);
    report.send_s += took.count();
  }

  WeightBoard& board_;
  std::vector<std::unique_ptr<Link>> links_;  ///< by rollout; null: this rank, or not yet
  std::mutex connecting_;                     ///< taken before the board's
};

}  // namespace dvla::detail
