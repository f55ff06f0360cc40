// FrontBack<T>: two copies of a thing, usually a model: the sampler reads the front one, reception fills the
// back one, and the sampler swaps them at a chunk boundary. Paper: "weights are swapped at chunk boundaries,
// a reader never sees a torn version". The lock is held for a few instructions only, never while a copy is
// filled, so a swap does not wait for reception.
//
// Filled again before a swap: reception reclaims the back copy, so the newest wins and no fill is ever
// refused. While it is being reclaimed there is nothing to swap to: try_swap says so and the sampler goes on
// with the front; a rollout that must have what was ready before (staleness) calls swap_within, which waits
// for that one fill and nothing else.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
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

  /// Sampler: the copy to read until the next swap.
  Type& front() { return copies_[front_]; }
  const Type& front() const { return copies_[front_]; }

  /// Sampler, at a chunk boundary: if the back copy is ready, it is the front from now on, and true.
  bool try_swap() {
    const std::scoped_lock lock(mutex_);
    return swap();
  }

  /// Sampler, at the start of a rollout: as try_swap, but waits for a fill that is under way. Throws
  /// DeadlineError if that fill does not end.
  bool swap_within(std::chrono::nanoseconds limit) {
    std::unique_lock lock(mutex_);
    if (!filled_.wait_until(lock, detail::deadline_after(limit), [&] { return back_ != Back::filling; }))
      throw DeadlineError(
          "front/back: the sampler waited ", detail::seconds_text(limit),
          " for weight reception to finish filling the back copy; is the reception lane stuck?");
    return swap();
  }

  /// Reception: `write(back)` fills the back copy, which is ready when it returns. If it throws, the back
  /// copy is not offered, and what was ready before in it is lost.
  template <class Write>
  void fill(Write&& write) {
    Type* const back = [&] {
      const std::scoped_lock lock(mutex_);
      back_ = Back::filling;
      return &copies_[1 - front_];
    }();
    try {
      std::forward<Write>(write)(*back);
    } catch (...) {
      finish(Back::stale);
      throw;
    }
    finish(Back::ready);
  }

 private:
  enum class Back : std::uint8_t { stale, filling, ready };
  bool swap() {
    if (back_ != Back::ready) return false;
    back_ = Back::stale;
    front_ = 1 - front_;
    return true;
  }
  void finish(Back how) {
    const std::scoped_lock lock(mutex_);
    back_ = how;
    filled_.notify_all();
  }

  std::array<Type, 2> copies_;
  std::size_t front_ = 0;  // changed by the sampler alone, under the lock
  Back back_ = Back::stale;
  std::mutex mutex_;
  std::condition_variable filled_;
};

}  // namespace dvla
