// A lane's mailbox: a bounded ring, storage allocated once, with a semaphore on either end.
// Design: "A mailbox is a bounded ring with a counting semaphore: spin briefly, then park".
// Many producers, ONE consumer. Full means back-pressure: push waits, nothing is lost, nothing grows.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "dvla/handoff/semaphore.hpp"

namespace dvla {

/// `Item`: default-constructible and movable. Capacity is exactly what the constructor is given.
/// Thread-safety: push, try_push, close, cancel from any thread; pop, try_pop from one thread at a time.
template <class Item>
requires std::default_initializable<Item> && std::movable<Item>
class mailbox {
 public:
  /// Throws ConfigError if capacity is 0 or above 2^30 - 1.
  explicit mailbox(std::size_t capacity)
      : capacity_(checked(capacity)),
        room_(static_cast<std::uint32_t>(capacity)),
        slots_(std::make_unique<Item[]>(capacity)) {}

  std::size_t capacity() const noexcept { return capacity_; }
  bool closed() const noexcept { return items_.closed(); }

  /// Waits up to `limit` for room. False: the mailbox is closed and the item was not taken.
  /// Throws DeadlineError, worded by `reason`, when it stays full.
  bool push(Item item, std::chrono::nanoseconds limit, const wait_reason& reason) {
    return room_.acquire(limit, reason) && put(std::move(item));
  }

  /// Never waits. False: full or closed.
  bool try_push(Item item) { return room_.try_acquire() && put(std::move(item)); }

  /// Waits up to `limit` for an item, oldest first. Empty: closed and nothing left (or cancelled).
  /// Throws DeadlineError, worded by `reason`, when nothing comes.
  std::optional<Item> pop(std::chrono::nanoseconds limit, const wait_reason& reason) {
    if (!items_.acquire(limit, reason)) return std::nullopt;
    return take();
  }

  /// Never waits. Empty: nothing there.
  std::optional<Item> try_pop() {
    if (!items_.try_acquire()) return std::nullopt;
    return take();
  }

  /// No more items: wakes everyone; the consumer still gets what is inside.
  void close() noexcept { shut(&timed_semaphore::close); }
  /// As close(), and what is inside is dropped.
  void cancel() noexcept { shut(&timed_semaphore::cancel); }

 private:
  static std::size_t checked(std::size_t capacity) {
    if (capacity == 0 || capacity >= (1u << 30))
      throw ConfigError("mailbox capacity is ", capacity, ", choose 1 to 1073741823");
    return capacity;
  }

  bool put(Item item) {
    const std::lock_guard lock(producers_);  // also against shut(): nothing enters behind the end
    if (room_.closed()) return false;
    slots_[tail_] = std::move(item);
    tail_ = tail_ + 1 == capacity_ ? 0 : tail_ + 1;
    items_.release();
    return true;
  }

  Item take() {
    Item item = std::move(slots_[head_]);
    head_ = head_ + 1 == capacity_ ? 0 : head_ + 1;
    room_.release();
    return item;
  }

  void shut(void (timed_semaphore::*how)() noexcept) noexcept {
    const std::lock_guard lock(producers_);
    room_.cancel();
    (items_.*how)();
  }

  const std::size_t capacity_;
  timed_semaphore room_, items_;
  std::mutex producers_;
  std::unique_ptr<Item[]> slots_;
  std::size_t tail_ = 0;              // producers' side
  alignas(64) std::size_t head_ = 0;  // consumer's side
};

}  // namespace dvla
