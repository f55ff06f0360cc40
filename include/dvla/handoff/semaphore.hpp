// A counting semaphore with a deadline and an end: what mailboxes and credits wait on. Linux (futex).
// It spins for a few microseconds (pauses, none on one core, then a fixed number of yields), then parks. It
// never sleeps and never polls.
//
// Why not std::counting_semaphore: in libstdc++ 12 (bits/semaphore_base.h, bits/atomic_timed_wait.h)
// - try_acquire_until polls with sleeps of up to 64 ms once a wait of more than 128 ms is woken and finds no
//   permit left (__timed_backoff_spin_policy), which a close() or a second waiter provokes;
// - its one compare-and-swap takes a lost race for "no permit" and may then park on the new, non-zero count,
//   from which only another release wakes it;
// - it cannot be closed: a parked waiter could only be woken by a permit that means nothing.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <thread>

#include "dvla/core/process_limits.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

enum class wait_result { acquired, closed, timed_out };

/// Counting semaphore. All members may be called from any thread at any time; it must outlive its callers, so
/// destroy it only after the threads that release it are joined. At most 2^30 - 1 permits.
class timed_semaphore {
 public:
  explicit timed_semaphore(std::uint32_t permits = 0) noexcept
      : word_(permits), pauses_(usable_cores() > 1 ? pauses : 0) {}

  bool try_acquire() noexcept {
    std::uint32_t word = word_.load(std::memory_order_relaxed);
    while ((word & count_mask) != 0 && (word & cancelled_bit) == 0)
      if (word_.compare_exchange_weak(word, word - 1, std::memory_order_acquire, std::memory_order_relaxed))
        return true;
    return false;
  }

  /// As acquire_for. False: closed. Throws DeadlineError, worded by `reason`, when `limit` is over.
  bool acquire(std::chrono::nanoseconds limit, const wait_reason& reason) {
    const wait_result result = acquire_for(limit);
    if (result == wait_result::timed_out) throw deadline_error(reason, limit);
    return result == wait_result::acquired;
  }
  /// Takes a permit, or says why not: closed (and no permit left) or `limit` over.
  wait_result acquire_for(std::chrono::nanoseconds limit) noexcept {
    if (try_acquire()) return wait_result::acquired;
    if (ended()) return last_chance();
    for (int turn = 0; turn < pauses_; ++turn) {
      pause();
      if (try_acquire()) return wait_result::acquired;
    }
    for (int turn = 0; turn < yields; ++turn) {
      std::this_thread::yield();
      if (try_acquire()) return wait_result::acquired;
    }
    return park(detail::deadline_after(limit));
  }

  void release() noexcept {
    word_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) wake(1);
  }
  /// False, and nothing changed, if there are `most` permits already.
  bool try_release(std::uint32_t most) noexcept {
    std::uint32_t word = word_.load(std::memory_order_relaxed);
    do
      if ((word & count_mask) >= most) return false;
    while (!word_.compare_exchange_weak(word, word + 1, std::memory_order_seq_cst));
    if (parked_.load(std::memory_order_seq_cst) > 0) wake(1);
    return true;
  }

  /// No more permits will come: waiters take what is left, then get `closed`.
  void close() noexcept { end(closed_bit); }
  /// As close(), and what is left is not handed out any more.
  void cancel() noexcept { end(closed_bit | cancelled_bit); }
  bool closed() const noexcept { return (word_.load(std::memory_order_acquire) & closed_bit) != 0; }

 private:
  static constexpr std::uint32_t closed_bit = 1u << 30, cancelled_bit = 1u << 31, count_mask = closed_bit - 1;
  // Few pauses, then yields: with more lanes than cores, whoever has the token may be waiting for this very
  // core (spinning 4 us instead made a hand-over three to six times as dear on two cores).
  static constexpr int pauses = 8, yields = 8;

  static void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  bool ended() const noexcept {
    return (word_.load(std::memory_order_acquire) & (closed_bit | cancelled_bit)) != 0;
  }
  // A permit released before close() may have become visible between the two looks.
  wait_result last_chance() noexcept { return try_acquire() ? wait_result::acquired : wait_result::closed; }

  void end(std::uint32_t bits) noexcept {
    word_.fetch_or(bits, std::memory_order_release);  // and wakes whoever parked
    wake(INT_MAX);
  }

  wait_result park(std::chrono::steady_clock::time_point deadline) noexcept {
    const auto since_boot =
        deadline.time_since_epoch();  // steady_clock is CLOCK_MONOTONIC, as the futex's deadline
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
    const timespec until{static_cast<time_t>(whole.count()), static_cast<long>((since_boot - whole).count())};
    for (;;) {
      if (try_acquire()) return wait_result::acquired;
      const std::uint32_t word = word_.load(std::memory_order_acquire);
      if ((word & (closed_bit | cancelled_bit)) != 0) return last_chance();
      if ((word & count_mask) != 0) continue;
      if (std::chrono::steady_clock::now() >= deadline) return wait_result::timed_out;
      // Announce, then park only if the word still is what was seen. A release either sees the announcement
      // or has changed the word before the kernel compares it (a release's and this are seq_cst): no lost wake-up.
      parked_.fetch_add(1, std::memory_order_seq_cst);
      ::syscall(SYS_futex, &word_, FUTEX_WAIT_BITSET_PRIVATE, word, &until, nullptr, FUTEX_BITSET_MATCH_ANY);
      parked_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  void wake(int waiters) noexcept {
    ::syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, waiters, nullptr, nullptr, 0);
  }

  std::atomic<std::uint32_t> word_;  // permits, and two bits for the end
  std::atomic<std::uint32_t> parked_{0};
  const int pauses_;
  static_assert(sizeof(std::atomic<std::uint32_t>) == 4 && std::atomic<std::uint32_t>::is_always_lock_free);
};

}  // namespace dvla
