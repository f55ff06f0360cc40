// Stages for the schedules' tests: they do no work, but they check what the schedule promises.
// Trajectory buffers are plain memory that two lanes touch, and nothing else here orders the lanes, so that
// ThreadSanitizer sees a hand-over that orders too little.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "dvla/handoff/semaphore.hpp"
#include "dvla/handoff/stages.hpp"

struct simulated {
  explicit simulated(int staleness) : live(staleness + 1), buffers(static_cast<std::size_t>(live)) {}

  void sample(dvla::Token& token) {
    token.version = installed.load(std::memory_order_relaxed);  // before the trainer may go on
    started.store(token.batch + 1, std::memory_order_release);
    gate.release();
    sampled_order.push_back(token.batch);
    auto& buffer = buffers.at(static_cast<std::size_t>(token.buffer));
    if (buffer.in_use.exchange(true, std::memory_order_relaxed)) buffer_clash = true;
    buffer.batch = token.batch;
    call(0, token.batch);
  }
  void train(dvla::Token& token) {
    const std::int64_t lag = trained - token.version;  // the trainer's own version counter
    most_lag = std::max(most_lag, lag);
    least_lag = std::min(least_lag, lag);
    if (buffers.at(static_cast<std::size_t>(token.buffer)).batch != token.batch) buffer_clash = true;
    // A trainer that is slower than the sampler, without a clock: it waits for the start of rollout b + K.
    while (slow_trainer &&
           started.load(std::memory_order_relaxed) <= std::min(token.batch + live - 1, last_batch))
      gate.acquire_for(std::chrono::seconds(60));
    call(1, token.batch);
    token.version = ++trained;
  }
  void distribute(dvla::Token& token) {
    weights[token.batch % 4] = token.version;
    call(2, token.batch);
  }
  void receive(dvla::Token& token) {
    call(3, token.batch);
    installed.store(weights[token.batch % 4], std::memory_order_relaxed);
    received_order.push_back(token.batch);
    buffers.at(static_cast<std::size_t>(token.buffer)).in_use.store(false, std::memory_order_relaxed);
  }
  void observe(const dvla::Token& token) {
    observed_order.push_back(token.batch);
    call(4, token.batch);
  }
  void enter(dvla::lane_kind kind) noexcept { entered.fetch_add(1 << (4 * static_cast<int>(kind))); }

  void start_at(std::int64_t first, std::int64_t count) {
    trained = first;
    installed = first;
    last_batch = first + count - 1;
  }

  struct trajectory {
    std::atomic<bool> in_use{false};
    std::int64_t batch = -1;
    trajectory() = default;
    trajectory(const trajectory&) {}
  };
  const int live;
  std::vector<trajectory> buffers;
  bool slow_trainer = false;
  std::int64_t last_batch = 0;
  std::function<void(int lane, std::int64_t batch)> on_call;  // lanes 0 to 3, 4 = observer
  dvla::timed_semaphore gate;
  std::atomic<std::int64_t> started{0}, installed{0};
  std::int64_t trained = 0, most_lag = -1, least_lag = 1 << 30, weights[4] = {};
  std::vector<std::int64_t> sampled_order, received_order, observed_order;
  std::atomic<bool> buffer_clash{false};
  std::atomic<int> entered{0};

 private:
  void call(int lane, std::int64_t batch) {
    if (on_call) on_call(lane, batch);
  }
};
static_assert(dvla::LaneStages<simulated> && dvla::ObservingStages<simulated>);

inline std::vector<std::int64_t> counted(std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> numbers;
  for (std::int64_t i = 0; i < count; ++i) numbers.push_back(first + i);
  return numbers;
}
