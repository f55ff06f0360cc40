// The data plane of one process: the token is the message, no payload byte is copied. Paper: data plane,
// co-located form. Owns the trajectory buffers, each one contiguous block born in the environment pool, and
// who holds which: free -> filling (sampler) -> sent -> reading (trainer) -> free. Does not wait: the lanes'
// mailboxes and credits do, and a buffer out of turn is an error here, never a silent overwrite.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
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
  /// Places `buffers` trajectories of these layouts. `seal`: commit writes a checksum and consume proves it:
  /// reads every byte twice a batch, so for tests and for hunting stray writes.
  InProcessTrajectories(const Transition& transition, const Decision& decision, int buffers,
                        std::pmr::memory_resource& environment_pool, bool seal = false)
      : pool_(environment_pool), buffers_(buffers), seal_(seal) {
    if (buffers < 1) {
      throw ConfigError("data plane: " + std::to_string(buffers) +
                        " trajectory buffers; at least 1 is needed");
    }
    slots_ = std::make_unique<Slot[]>(static_cast<std::size_t>(buffers));
    const Trajectory<Decision> layout = trajectory_layout(transition, decision);
    bytes_ = record_bytes(layout);
    try {
      for (int i = 0; i < buffers; ++i) {
        slots_[i].block = static_cast<std::byte*>(pool_.allocate(bytes_, record_alignment));
        slots_[i].trajectory = layout;
        place_record(slots_[i].trajectory, slots_[i].block);
      }
    } catch (...) {
      give_back();
      throw;
    }
  }
  ~InProcessTrajectories() { give_back(); }
  InProcessTrajectories(const InProcessTrajectories&) = delete;
  InProcessTrajectories& operator=(const InProcessTrajectories&) = delete;

  int buffers() const { return buffers_; }
  std::size_t bytes_per_trajectory() const { return bytes_; }

  /// Sampler: the buffer to fill with token.batch. Again for the same batch gives the same buffer. Throws
  /// Error, naming both batches, if another batch still has it.
  Trajectory<Decision>& produce(const Token& token) {
    Slot& slot = at(token, "produce");
    const State state = slot.state.load(std::memory_order_acquire);
    if (state == State::free) {
      slot.trajectory.id = token.batch;
      slot.batch.store(token.batch, std::memory_order_relaxed);
      slot.state.store(State::filling, std::memory_order_release);
    } else if (state != State::filling || slot.batch.load(std::memory_order_relaxed) != token.batch) {
      refuse(token, slot, "cannot be filled with batch");
    }
    return slot.trajectory;
  }

  /// Sampler: hands over what produce gave. Afterwards the trainer's; the token says which.
  void commit(const Token& token) {
    Slot& slot = expect(token, State::filling, "commit", "cannot be handed over as batch");
    slot.trajectory.checksum = seal_ ? record_checksum(slot.trajectory) : 0;
    sent_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::sent, std::memory_order_release);
  }

  /// Trainer: the trajectory that the token names, where the sampler wrote it. Again gives the same.
  Trajectory<Decision>& consume(const Token& token) {
    Slot& slot = at(token, "consume");
    const State state = slot.state.load(std::memory_order_acquire);
    if ((state != State::sent && state != State::reading) ||
        slot.batch.load(std::memory_order_relaxed) != token.batch) {
      refuse(token, slot, "cannot be read as batch");
    }
    if (seal_ && state == State::sent && record_checksum(slot.trajectory) != slot.trajectory.checksum) {
      throw Error("data plane: batch " + std::to_string(token.batch) + " in buffer " +
                  std::to_string(token.buffer) +
                  " changed after its hand-over: something still writes to it; look for a stray view");
    }
    slot.state.store(State::reading, std::memory_order_release);
    return slot.trajectory;
  }

  /// Trainer: done with it; the buffer is free again.
  void release(const Token& token) {
    Slot& slot = expect(token, State::reading, "release", "cannot be released as batch");
    trained_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::free, std::memory_order_release);
  }

  /// Gives up a batch at any stage: the buffer is free again. Counted as dropped if it was handed over.
  void drop(const Token& token) {
    Slot& slot = at(token, "drop");
    const State state = slot.state.load(std::memory_order_acquire);
    if (state == State::free || slot.batch.load(std::memory_order_relaxed) != token.batch) {
      refuse(token, slot, "cannot be dropped as batch");
    }
    if (state != State::filling) dropped_.fetch_add(1, std::memory_order_relaxed);
    slot.state.store(State::free, std::memory_order_release);
  }

  DataPlaneReport report() const {
    DataPlaneReport report;
    for (int i = 0; i < buffers_; ++i) {
      const State state = slots_[i].state.load(std::memory_order_acquire);
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
    std::atomic<State> state{State::free};
    std::atomic<std::int64_t> batch{-1};
    std::byte* block = nullptr;
    Trajectory<Decision> trajectory;
  };

  Slot& at(const Token& token, const char* call) {
    if (token.buffer < 0 || token.buffer >= buffers_) {
      throw Error(std::string("data plane: ") + call + " of buffer " + std::to_string(token.buffer) +
                  " (batch " + std::to_string(token.batch) + "), but there are " + std::to_string(buffers_) +
                  ": use the tokens that the schedule gave");
    }
    return slots_[token.buffer];
  }
  Slot& expect(const Token& token, State state, const char* call, const char* cannot) {
    Slot& slot = at(token, call);
    if (slot.state.load(std::memory_order_acquire) != state ||
        slot.batch.load(std::memory_order_relaxed) != token.batch) {
      refuse(token, slot, cannot);
    }
    return slot;
  }
  [[noreturn]] void refuse(const Token& token, const Slot& slot, const char* cannot) const {
    static constexpr std::array says{"is free after batch ", "is being filled with batch ",
                                     "waits for the trainer with batch ", "is being trained on as batch "};
    const auto state = static_cast<std::size_t>(slot.state.load(std::memory_order_acquire));
    throw Error("data plane: buffer " + std::to_string(token.buffer) + " " + cannot + " " +
                std::to_string(token.batch) + ": it " + says.at(state) +
                std::to_string(slot.batch.load(std::memory_order_relaxed)) +
                "; a buffer goes produce, commit, consume, release");
  }
  void give_back() {
    for (int i = 0; i < buffers_; ++i) {
      if (slots_[i].block != nullptr) pool_.deallocate(slots_[i].block, bytes_, record_alignment);
    }
  }

  std::pmr::memory_resource& pool_;
  int buffers_;
  bool seal_;
  std::size_t bytes_ = 0;
  std::unique_ptr<Slot[]> slots_;
  std::atomic<std::int64_t> sent_{0};
  std::atomic<std::int64_t> trained_{0};
  std::atomic<std::int64_t> dropped_{0};
};

template <class Pipeline>
struct machinery<InProcessData, Pipeline> {
  using type = InProcessTrajectories<typename machinery_t<typename Pipeline::model, Pipeline>::Decision>;
};

}  // namespace dvla
