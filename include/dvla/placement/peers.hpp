// One end of a plane between processes: the ranks at the other ends, each with a channel and a thread that
// talks to it, under one lock. What the data plane's two ends (data_plane/endpoint.hpp) and the control plane
// (control_plane/broadcast.hpp) have in common: who is there, who is lost, who comes again, and the
// sentences of waits that run out. Knows no messages.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

/// The rank at the other end.
struct Peer {
  Peer(int index_, std::string name_) : index(index_), name(std::move(name_)) {}
  const int index;         ///< which actor, or which rollout
  const std::string name;  ///< "rank 3 (actor 0)"
  std::unique_ptr<Channel> channel;
  std::int64_t incarnation = 0;  ///< that joined last
  std::string why_gone;          ///< empty: it is not
  bool ended = false;            ///< its thread is at its end
  std::thread thread;
};

/// `PeerType` derives from Peer. Derived classes call stop() in their destructors.
template <class PeerType>
class Peers {
 public:
  /// Ends every wait, here and at the other ends of the channels; later calls throw.
  void close() noexcept {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    for (PeerType& peer : peers_)
      if (peer.channel) peer.channel->close();
    changed_.notify_all();
  }

 protected:
  /// `plane`: "data plane", which opens every sentence; `name`: this rank's.
  Peers(const char* plane, std::string name) : plane_(plane), name_(std::move(name)) {}
  ~Peers() = default;
  void stop() {
    close();
    for (PeerType& peer : peers_)
      if (peer.thread.joinable()) peer.thread.join();
  }

  /// Lets a peer's first incarnation in, or its next one, whose channel `connect` makes. `begin` starts its
  /// thread; the lock is held, and the thread of the incarnation before has ended. One at a time.
  template <class Connect, class Begin>
  void connect_peer(PeerType& peer, std::int64_t incarnation, Connect connect, Begin begin) {
    const std::scoped_lock one(joining_);
    if (peer.channel && incarnation <= peer.incarnation)
      throw Error(plane_, ": ", peer.name, " comes with incarnation ", incarnation, ", but incarnation ",
                  peer.incarnation, " was here already; a restarted rollout takes the next number");
    std::unique_ptr<Channel> channel = connect();
    if (peer.thread.joinable()) {
      {
        const std::scoped_lock lock(mutex_);
        lose(peer, concat("incarnation ", incarnation, " takes its place"));
      }
      peer.thread.join();
    }
    const std::scoped_lock lock(mutex_);
    throw_if_closed();
    peer.why_gone.clear();
    peer.ended = false;
    peer.channel = std::move(channel);
    peer.incarnation = incarnation;
    begin();
  }
  /// Runs `talk` in the peer's thread, then, with the lock held, `end(why)`; why: empty unless it failed.
  template <class Talk, class End>
  void start(PeerType& peer, Talk talk, End end) {
    peer.thread = std::thread([this, &peer, talk = std::move(talk), end = std::move(end)] {
      std::string why;
      try {
        talk();
      } catch (const std::exception& error) {
        why = error.what();
        if (peer.channel) peer.channel->close();
      }
      const std::scoped_lock lock(mutex_);
      peer.ended = true;
      end(why);
      changed_.notify_all();
    });
  }
  /// With the lock held: ends a peer's channel, whose thread then fails.
  void lose(PeerType& peer, const std::string& why) {
    if (peer.ended || !peer.channel) return;
    if (peer.why_gone.empty()) peer.why_gone = why;
    peer.channel->close();
    changed_.notify_all();
  }

  /// False: `ready` did not hold until then, and nobody has closed this end.
  template <class Ready>
  bool wait_until(std::unique_lock<std::mutex>& lock, std::chrono::steady_clock::time_point until,
                  Ready ready) {
    return changed_.wait_until(lock, until, [&] { return closed_ || ready(); });
  }
  template <class... Parts>
  [[noreturn]] void ran_out(std::chrono::nanoseconds limit, const Parts&... what) const {
    refuse<DeadlineError>("waited ", seconds_text(limit), " ", what...);
  }
  template <class Type = Error, class... Parts>
  [[noreturn]] void refuse(const Parts&... what) const {
    throw Type(plane_, ": ", name_, " ", what...);
  }
  void throw_if_closed() const {
    if (closed_) refuse("was closed");
  }

  const char* const plane_;
  const std::string name_;      // "rank 3 (actor 0)"
  std::deque<PeerType> peers_;  // they never move
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;

 private:
  std::mutex joining_;  // taken before the other
};

}  // namespace dvla::detail
