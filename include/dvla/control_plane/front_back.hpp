// FrontBack<T>: two copies of a thing, usually a model: the sampler reads the front one, reception fills the
// back one, and the sampler swaps them at a chunk boundary. Paper: "weights are swapped at chunk boundaries,
// a reader never sees a torn version". One atomic word, so a swap never blocks the sampler.
//
// Filled again before a swap: reception reclaims the back copy, so the newest wins and no fill is ever
// refused. While it is being reclaimed there is nothing to swap to: try_swap says so and the sampler goes on
// with the front; a rollout that must have what was ready before (staleness) calls swap_within, which waits
// for that one fill and nothing else.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

/// front(), try_swap(), swap_within(): the sampler, one call at a time. fill(): reception, one call at a
/// time.
template <class Type>
class FrontBack {
 public:
  FrontBack(Type front, Type back) : copies_{std::move(front), std::move(back)} {}
  FrontBack(const FrontBack&) = delete;
  FrontBack& operator=(const FrontBack&) = delete;

  /// Sampler: the copy to read until the next swap.
  Type& front() { return copies_[front_]; }
  const Type& front() const { return copies_[front_]; }

  /// Sampler, at a chunk boundary: if the back copy is ready, it is the front from now on, and true.
  bool try_swap() {
    unsigned seen = word_.load(std::memory_order_acquire);
    while (phase(seen) == ready) {
      if (word_.compare_exchange_weak(seen, make(stale, 1 - side(seen)), std::memory_order_acq_rel)) {
        front_ = 1 - side(seen);
        return true;
      }
    }
    return false;
  }

  /// Sampler, at the start of a rollout: as try_swap, but waits for a fill that is under way. Throws
  /// DeadlineError if that fill does not end.
  bool swap_within(std::chrono::nanoseconds limit) {
    const auto deadline = detail::deadline_after(limit);
    // Again after each wait: reception may have begun another fill before this thread came to swap.
    while (!try_swap()) {
      if (phase(word_.load(std::memory_order_acquire)) == stale) return false;
      std::unique_lock lock(mutex_);
      if (!filled_.wait_until(lock, deadline,
                              [&] { return phase(word_.load(std::memory_order_acquire)) != filling; })) {
        throw DeadlineError(
            "front/back: the sampler waited " + detail::seconds_text(limit) +
            " for weight reception to finish filling the back copy; is the reception lane stuck?");
      }
    }
    return true;
  }

  /// Reception: `write(back)` fills the back copy, which is ready when it returns. If it throws, the back
  /// copy is not offered, and what was ready before in it is lost.
  template <class Write>
  void fill(Write&& write) {
    unsigned seen = word_.load(std::memory_order_acquire);
    while (!word_.compare_exchange_weak(seen, make(filling, side(seen)), std::memory_order_acq_rel)) {
    }
    try {
      std::forward<Write>(write)(copies_[1 - side(seen)]);
    } catch (...) {
      finish(make(stale, side(seen)));
      throw;
    }
    finish(make(ready, side(seen)));
  }

 private:
  enum Phase : unsigned { stale, filling, ready };
  static constexpr unsigned make(Phase phase, unsigned side) {
    return static_cast<unsigned>(phase) << 1 | side;
  }
  static constexpr Phase phase(unsigned word) { return static_cast<Phase>(word >> 1); }
  static constexpr unsigned side(unsigned word) { return word & 1U; }
  void finish(unsigned word) {
    {
      const std::scoped_lock lock(mutex_);
      word_.store(word, std::memory_order_release);
    }
    filled_.notify_all();
  }

  std::array<Type, 2> copies_;
  alignas(64) unsigned front_ = 0;  // the sampler's own copy of the side
  alignas(64) std::atomic<unsigned> word_{make(stale, 0)};
  std::mutex mutex_;
  std::condition_variable filled_;
};

}  // namespace dvla
