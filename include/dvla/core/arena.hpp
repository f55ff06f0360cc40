// The cores of one lane: a tbb::task_arena of that lane's size, so that lanes do not steal each other's
// cores. Data-parallel work inside a lane (stepping environments) runs here; the lane's own thread is one of
// the workers. Design: "The four lanes". Not for blocking work, and not re-entrant: one caller at a time.
#pragma once

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>

#include <cstdint>
#include <utility>

namespace dvla {

class Arena {
 public:
  /// `threads` >= 1, the calling thread included.
  explicit Arena(int threads = 1) : threads_(threads < 1 ? 1 : threads), arena_(threads_, 1) {}

  int threads() const { return threads_; }

  /// body(i) for i in [0, count); returns when all are done; the first exception is rethrown here.
  template <class Body>
  void for_each(std::int64_t count, const Body& body) {
    if (threads_ == 1 || count == 1) {
      for (std::int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    arena_.execute([&] { tbb::parallel_for(std::int64_t{0}, count, body, tbb::simple_partitioner{}); });
  }

  /// Runs `first` on a worker of the arena while the caller runs `second`; returns when both are done.
  /// With one thread they run one after the other.
  template <class First, class Second>
  void both(First&& first, Second&& second) {
    if (threads_ == 1) {
      std::forward<First>(first)();
      std::forward<Second>(second)();
      return;
    }
    arena_.execute([&] {
      tbb::task_group group;
      group.run([&] { first(); });
      try {
        second();
      } catch (...) {
        group.wait();
        throw;
      }
      group.wait();
    });
  }

 private:
  int threads_;
  tbb::task_arena arena_;
};

}  // namespace dvla
