// The data plane of one process: the token is the message, no payload byte is copied. Paper: data plane,
// co-located form. Owns the trajectory buffers, each one contiguous block born in the environment pool, and
// who holds which: free -> filling (sampler) -> sent -> reading (trainer) -> free. Does not wait: the lanes'
// mailboxes and credits do, and a buffer out of turn is an error here, never a silent overwrite.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory_resource>

#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/record.hpp"
#include "dvla/data_plane/descriptors.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/token.hpp"

namespace dvla {

/// sent = trained + dropped + in_flight, exactly so whenever no call is under way.
struct DataPlaneReport {
  std::int64_t sent = 0;
  std::int64_t trained = 0;
  std::int64_t dropped = 0;
  std::int64_t in_flight = 0;             ///< handed over and neither trained nor dropped yet
  std::int64_t payload_bytes_copied = 0;  ///< by the plane, between sampler's and trainer's memory
};

/// One sampler thread (produce, commit) and one trainer thread (consume, release) at a time for each buffer;
/// different buffers are independent. `drop` belongs to whoever holds the buffer. report() from anywhere.
/// The pool must outlive this.
template <class Decision>
class InProcessTrajectories {
 public:
  /// Places `buffers` trajectories of these layouts.
  InProcessTrajectories(const Transition& transition, const Decision& decision, int buffers,
                        std::pmr::memory_resource& environment_pool) {
    if (buffers < 1) throw ConfigError("data plane: ", buffers, " trajectory buffers; at least 1 is needed");
    while (slots_.size() < static_cast<std::size_t>(buffers))
      slots_.emplace_back(trajectory_layout(transition, decision), environment_pool);
  }

  int buffers() const { return static_cast<int>(slots_.size()); }

  /// Sampler: the buffer to fill with token.batch. Again for the same batch gives the same buffer. Throws
  /// Error, naming both batches, if another batch still has it.
  Trajectory<Decision>& produce(const Token& token) {
    constexpr const char* cannot = "cannot be filled with batch";
    Slot& slot = at(token, cannot);
    if (slot.state.load(std::memory_order_acquire) != State::free)
      return *expect(token, {State::filling}, cannot).trajectory;
    slot.trajectory->id = token.batch;
    slot.batch.store(token.batch, std::memory_order_relaxed);
    slot.state.store(State::filling, std::memory_order_relaxed);  // commit publishes
    return *slot.trajectory;
  }

  /// Sampler: hands over what produce gave. Afterwards the trainer's; the token says which.
  void commit(const Token& token) {
    Slot& slot = expect(token, {State::filling}, "cannot be handed over as batch");
    sent_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::sent, std::memory_order_release);
  }

  /// Trainer: the trajectory that the token names, where the sampler wrote it. Again gives the same.
  Trajectory<Decision>& consume(const Token& token) {
    Slot& slot = expect(token, {State::sent, State::reading}, "cannot be read as batch");
    slot.state.store(State::reading, std::memory_order_relaxed);
    return *slot.trajectory;
  }

  /// Trainer: done with it; the buffer is free again.
  void release(const Token& token) {
    Slot& slot = expect(token, {State::reading}, "cannot be released as batch");
    trained_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::free, std::memory_order_release);
  }

  /// Gives up a batch at any stage: the buffer is free again. Counted as dropped if it was handed over.
  void drop(const Token& token) {
    Slot& slot = expect(token, {State::filling, State::sent, State::reading}, "cannot be dropped as batch");
    if (slot.state != State::filling) dropped_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::free, std::memory_order_release);
  }

  DataPlaneReport report() const {
    DataPlaneReport report;
    for (const Slot& slot : slots_) {
      const State state = slot.state.load(std::memory_order_relaxed);
      report.in_flight += state == State::sent || state == State::reading;
    }
    report.sent = sent_.load(std::memory_order_relaxed);
    report.trained = trained_.load(std::memory_order_relaxed);
    report.dropped = dropped_.load(std::memory_order_relaxed);
    return report;  // payload_bytes_copied stays 0: there is no copy in this file
  }

 private:
  enum class State : std::uint8_t { free, filling, sent, reading };
  struct alignas(64) Slot {
    Slot(const Trajectory<Decision>& layout, std::pmr::memory_resource& pool) : trajectory(layout, pool) {}
    std::atomic<State> state{State::free};
    std::atomic<std::int64_t> batch{-1};
    OwnedRecord<Trajectory<Decision>> trajectory;
  };

  Slot& at(const Token& token, const char* cannot) {
    if (token.buffer >= 0 && token.buffer < buffers()) return slots_[static_cast<std::size_t>(token.buffer)];
    refuse(token, cannot, "there are ", buffers(), " buffers; use the tokens that the schedule gave");
  }
  /// The token's buffer, where it is in one of these states with the token's batch.
  Slot& expect(const Token& token, std::initializer_list<State> states, const char* cannot) {
    static constexpr std::array says{"is free after batch ", "is being filled with batch ",
                                     "waits for the trainer with batch ", "is being trained on as batch "};
    Slot& slot = at(token, cannot);
    const State state = slot.state.load(std::memory_order_acquire);
    const std::int64_t batch = slot.batch.load(std::memory_order_relaxed);
    if (batch == token.batch && std::find(states.begin(), states.end(), state) != states.end()) return slot;
    refuse(token, cannot, "it ", says.at(static_cast<std::size_t>(state)), batch,
           "; a buffer goes produce, commit, consume, release");
  }
  template <class... Why>
  [[noreturn]] static void refuse(const Token& token, const char* cannot, const Why&... why) {
    throw Error("data plane: buffer ", token.buffer, " ", cannot, " ", token.batch, ": ", why...);
  }

  std::deque<Slot> slots_;
  std::atomic<std::int64_t> sent_{0};
  std::atomic<std::int64_t> trained_{0};
  std::atomic<std::int64_t> dropped_{0};
};

template <class Pipeline>
struct machinery<InProcessData, Pipeline> {
  using type = InProcessTrajectories<typename machinery_t<typename Pipeline::model, Pipeline>::Decision>;
};

}  // namespace dvla
