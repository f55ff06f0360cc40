// Heartbeats: whether the other end of each pair lives. A channel per pair carries nothing but beats: one is
// sent each period, and one expected within two. A peer that dies or stops is reported once; one that leaves
// says so first, which is no loss. Issue: "A peer that stops is noticed within two heartbeats". What a loss
// means (closing the pair's other channels, ending the run) is the callback's business.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla {

/// Members may be called from any thread but those that call back. Two threads per pair, which sleep.
class Heartbeat {
 public:
  /// Called once per loss, from a thread of this class; must not throw and not call this object.
  using OnLost = std::function<void(int peer, const std::string& reason)>;
  /// The reason of one that has left by itself, while the others go on.
  static constexpr const char* has_left = "it has left";

  Heartbeat(std::chrono::nanoseconds period, OnLost on_lost) : period_(period), on_lost_(std::move(on_lost)) {
    if (period_ < std::chrono::milliseconds(1))
      throw ConfigError("the period of heartbeats is ", detail::seconds_text(period_),
                        "; it must be at least 0.001 s");
  }
  /// Without leave() before: the peers see this rank as lost.
  ~Heartbeat() {
    for (Pair& pair : pairs_) break_off(pair);
  }

  /// From now on; `channel` is of the pair's heartbeats alone, and the peer does the same. A peer that comes
  /// again, after a loss, is watched anew; if its loss was not noticed yet, it is reported now.
  void watch(int peer, std::unique_ptr<Channel> channel) {
    const std::scoped_lock lock(mutex_);
    for (auto old = pairs_.begin(); old != pairs_.end(); ++old) {
      if (old->peer != peer) continue;
      lose(*old, old->channel->peer() + " came again");
      pairs_.erase(old);
      break;
    }
    Pair& pair = pairs_.emplace_back(peer, std::move(channel));
    pair.sender = std::jthread([this, &pair] { send_beats(pair); });
    pair.receiver = std::jthread([this, &pair] { receive_beats(pair); });
  }

  /// The end in peace: says goodbye to every peer that is there and waits for its answer, at most two
  /// periods. Nothing is reported from now on. `alone`: the others go on, and to them it is a loss, whose
  /// reason is that it has left.
  void leave(bool alone = false) {
    const std::scoped_lock lock(mutex_);
    for (Pair& pair : pairs_) say(pair, alone ? alone_goodbye : goodbye);
    pairs_.clear();
  }

 private:
  static constexpr std::byte beat{1}, goodbye{2}, alone_goodbye{3};

  struct Pair {
    Pair(int peer_, std::unique_ptr<Channel> channel_) : peer(peer_), channel(std::move(channel_)) {}
    const int peer;
    const std::unique_ptr<Channel> channel;
    std::mutex mutex;
    std::condition_variable changed;
    std::byte word = beat;  ///< what it is told next; a goodbye, of one's own or in answer, is the last
    bool lost = false;
    std::jthread sender, receiver;  ///< joined first
  };

  std::chrono::nanoseconds patience() const { return 2 * period_; }

  static void say(Pair& pair, std::byte word) {
    const std::scoped_lock lock(pair.mutex);
    pair.word = word;
    pair.changed.notify_all();
  }
  /// True: nobody has said goodbye, and nobody has broken off before.
  static bool break_off(Pair& pair) {
    const bool first = [&] {
      const std::scoped_lock lock(pair.mutex);
      pair.changed.notify_all();
      return !std::exchange(pair.lost, true) && pair.word == beat;
    }();
    pair.channel->close();
    return first;
  }
  void lose(Pair& pair, const std::string& reason) {
    if (break_off(pair)) on_lost_(pair.peer, reason);
  }

  void send_beats(Pair& pair) {
    for (;;) {
      const auto next = std::chrono::steady_clock::now() + period_;
      std::unique_lock lock(pair.mutex);
      if (pair.lost) return;
      const std::byte word = pair.word;
      lock.unlock();
      if (!exchange(pair, [&] { pair.channel->send(std::span(&word, 1), patience()); })) return;
      if (word != beat) return;
      lock.lock();
      pair.changed.wait_until(lock, next, [&] { return pair.lost || pair.word != beat; });
    }
  }
  void receive_beats(Pair& pair) {
    std::byte word = beat;
    while (word == beat)
      if (!exchange(pair, [&] { pair.channel->receive(std::span(&word, 1), patience()); })) return;
    if (word == alone_goodbye) return lose(pair, has_left);
    say(pair, goodbye);
  }
  template <class Call>
  bool exchange(Pair& pair, Call call) {
    try {
      call();
      return true;
    } catch (const DeadlineError&) {
      lose(pair,
           pair.channel->peer() + " was silent for " + detail::seconds_text(patience()) + ", two heartbeats");
    } catch (const std::exception& error) {
      lose(pair, error.what());
    }
    return false;
  }

  const std::chrono::nanoseconds period_;
  const OnLost on_lost_;
  std::mutex mutex_;  ///< taken before a pair's
  std::list<Pair> pairs_;
};

}  // namespace dvla
