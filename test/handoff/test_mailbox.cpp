// dvla-test: tsan
// mailbox, credit and the semaphore below them: bounds, deadlines, ends, several threads.
#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "dvla/handoff/mailbox.hpp"

using namespace std::chrono_literals;
using dvla::DeadlineError;
using dvla::mailbox;

namespace {
const dvla::wait_reason nobody{};
}

TEST_CASE("a mailbox hands out what came in, in order, and wraps at any capacity") {
  for (std::size_t capacity : {1u, 2u, 3u, 7u}) {
    mailbox<int> box(capacity);
    for (int round = 0; round < 5; ++round) {
      for (std::size_t i = 0; i < capacity; ++i) CHECK(box.try_push(static_cast<int>(i)));
      CHECK_FALSE(box.try_push(99));
      for (std::size_t i = 0; i < capacity; ++i) CHECK(box.try_pop() == static_cast<int>(i));
      CHECK_FALSE(box.try_pop());
    }
  }
}

TEST_CASE("a mailbox without places is refused") { CHECK_THROWS_AS(mailbox<int>(0), dvla::ConfigError); }

TEST_CASE("a wait that runs out says who waited for whom, for what, how long and for which batch") {
  mailbox<int> box(1);
  CHECK_THROWS_WITH_AS(box.pop(30ms, {"training", "a batch", "sampling", 12}),
                       "lane 'training' waited 0.03 s for a batch from lane 'sampling' (batch 12)",
                       DeadlineError);
  CHECK(box.push(1, 30ms, nobody));
  CHECK_THROWS_WITH_AS(box.push(2, 30ms, {"sampling", "room", "training"}),
                       "lane 'sampling' waited 0.03 s for room from lane 'training'", DeadlineError);
  CHECK(box.try_pop() == 1);  // the refused item is not inside
  CHECK_FALSE(box.try_pop());
}

TEST_CASE("a limit beyond the end of time is a limit") {
  mailbox<int> box(1);
  std::thread producer([&] { box.push(5, std::chrono::nanoseconds::max(), nobody); });
  CHECK(box.pop(std::chrono::nanoseconds::max(), nobody) == 5);
  producer.join();
}

TEST_CASE("closing lets the consumer take what is inside, then says that no more comes") {
  mailbox<int> box(3);
  box.try_push(1);
  box.try_push(2);
  box.close();
  CHECK_FALSE(box.try_push(3));
  CHECK_FALSE(box.push(3, 1h, nobody));
  CHECK(box.pop(1h, nobody) == 1);
  CHECK(box.pop(1h, nobody) == 2);
  CHECK_FALSE(box.pop(1h, nobody));
}

TEST_CASE("cancelling drops what is inside") {
  mailbox<int> box(3);
  box.try_push(1);
  box.cancel();
  CHECK_FALSE(box.pop(1h, nobody));
  CHECK_FALSE(box.try_pop());
}

TEST_CASE("closing wakes everyone who waits, parked or spinning") {
  for (int round = 0; round < 200; ++round) {
    mailbox<int> full(1), empty(1);
    full.try_push(0);
    std::vector<std::thread> waiters;
    for (int i = 0; i < 2; ++i) waiters.emplace_back([&] { CHECK_FALSE(full.push(1, 1h, nobody)); });
    waiters.emplace_back([&] { CHECK_FALSE(empty.pop(1h, nobody)); });
    if (round % 4 == 0) std::this_thread::yield();
    full.close();
    empty.close();
    for (auto& each : waiters) each.join();
  }
}

TEST_CASE("many producers lose nothing, double nothing and keep each one's order, with back-pressure") {
  constexpr int producers = 3, each = 5000;
  for (std::size_t capacity : {1u, 4u, 64u}) {
    mailbox<std::pair<int, int>> box(capacity);
    std::vector<std::thread> threads;
    for (int p = 0; p < producers; ++p)
      threads.emplace_back([&box, p] {
        for (int i = 0; i < each; ++i) box.push({p, i}, 60s, nobody);
      });
    std::vector<int> next(producers, 0);
    bool in_order = true;
    for (int i = 0; i < producers * each; ++i) {
      const auto item = box.pop(60s, nobody);
      in_order = in_order && item && next[static_cast<std::size_t>(item->first)]++ == item->second;
    }
    for (auto& thread : threads) thread.join();
    CHECK(in_order);
    CHECK_FALSE(box.try_pop());
  }
}

TEST_CASE("items may own memory and need not be copyable") {
  mailbox<std::unique_ptr<std::string>> box(2);
  std::thread producer([&] {
    for (int i = 0; i < 1000; ++i) box.push(std::make_unique<std::string>(std::to_string(i)), 60s, nobody);
    box.close();
  });
  int count = 0;
  while (auto item = box.pop(60s, nobody)) CHECK(**item == std::to_string(count++));
  CHECK(count == 1000);
  producer.join();
}

TEST_CASE("a semaphore never loses a wake-up between threads that ping and pong") {
  dvla::timed_semaphore ping, pong;
  std::thread other([&] {
    for (int i = 0; i < 20000; ++i) {
      REQUIRE(ping.acquire_for(60s) == dvla::wait_result::acquired);
      pong.release();
    }
  });
  for (int i = 0; i < 20000; ++i) {
    ping.release();
    REQUIRE(pong.acquire_for(60s) == dvla::wait_result::acquired);
  }
  other.join();
}

TEST_CASE("many waiters share many permits, each exactly once") {
  dvla::timed_semaphore permits;
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      while (permits.acquire_for(60s) == dvla::wait_result::acquired) taken.fetch_add(1);
    });
  for (int i = 0; i < 10000; ++i) permits.release();
  permits.close();
  for (auto& thread : threads) thread.join();
  CHECK(taken == 10000);
}

TEST_CASE("what was taken before the end is handed out before the end, and nothing after it") {
  struct Slow {  // a push in the midst of which much can happen
    Slow() = default;
    Slow(Slow&&) noexcept {}
    Slow& operator=(Slow&&) noexcept {
      std::this_thread::sleep_for(20us);
      return *this;
    }
  };
  for (int round = 0; round < 200; ++round) {
    mailbox<Slow> box(8);
    std::atomic<int> taken{0};
    std::thread producer([&] {
      while (box.push({}, 60s, nobody)) {
        taken.fetch_add(1);
        std::this_thread::sleep_for(20us);  // whoever closes gets the lock, too
      }
    });
    std::thread closer([&] {
      std::this_thread::sleep_for(round % 16 * 20us);
      box.close();
    });
    int got = 0;
    while (box.pop(60s, nobody)) ++got;
    producer.join();
    closer.join();
    REQUIRE(got == taken);
  }
}

TEST_CASE("what is written before the end is seen by whoever is told of it") {
  using dvla::wait_result;
  const auto told = [](auto wait) {
    for (int round = 0; round < 50; ++round) {
      dvla::timed_semaphore permits;
      int written = 0;  // ThreadSanitizer looks on
      std::thread other([&] {
        if (round % 2 == 0) std::this_thread::sleep_for(200us);  // it is waited for already
        written = 1;
        permits.close();
      });
      wait(permits);
      CHECK(written == 1);
      other.join();
    }
  };
  told([](auto& permits) {  // waiting, parked after a while
    while (permits.acquire_for(60s) != wait_result::closed) {
    }
  });
  told([](auto& permits) {  // never waiting
    while (permits.acquire_for(0s) != wait_result::closed) {
    }
  });
  told([](auto& permits) {
    while (!permits.closed()) {
    }
  });
}
