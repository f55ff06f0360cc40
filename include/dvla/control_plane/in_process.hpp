// The control plane of one process: weights go through one of two host buffers, versioned and checksummed, so
// the trainer packs version n + 1 while the samplers still read n. Paper: control plane, co-located form.
// Carries weights only; which of the samplers' copies takes them is front_back.hpp's business.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/control_plane/weight_buffer.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

/// One distribution thread (begin, publish), any number of reception threads (receive). Versions strictly
/// increase, and a receiver never sees a torn one: the buffer that is packed is the one that nobody reads.
class InProcessWeightPlane {
 public:
  /// Two buffers of `bytes` in `pool`, which must outlive this. `patience`: how long begin waits at most for
  /// readers of the buffer that it needs.
  InProcessWeightPlane(std::size_t bytes, std::pmr::memory_resource& pool,
                       std::chrono::nanoseconds patience = std::chrono::seconds(30))
      : buffers_{WeightBuffer(bytes, pool), WeightBuffer(bytes, pool)}, bytes_(bytes), patience_(patience) {}

  std::size_t bytes() const { return bytes_; }
  /// The newest published version; -1 before the first.
  std::int64_t latest() const {
    const std::scoped_lock lock(mutex_);
    return latest_;
  }

  /// Distribution lane: where to pack `version`. Throws Error if it is not newer than the latest,
  /// DeadlineError if a receiver does not leave the buffer.
  std::span<std::byte> begin(std::int64_t version) {
    std::unique_lock lock(mutex_);
    if (version <= latest_) {
      throw Error("control plane: version " + std::to_string(version) + " cannot follow version " +
                  std::to_string(latest_) + "; versions strictly increase");
    }
    const std::size_t target = 1 - newest_;
    if (!changed_.wait_until(lock, detail::deadline_after(patience_),
                             [&] { return readers_[target] == 0; })) {
      throw DeadlineError("control plane: weight distribution waited " + detail::seconds_text(patience_) +
                          " for a receiver to leave the buffer of version " +
                          std::to_string(buffers_[target].version()) + " to pack version " +
                          std::to_string(version) + ", but it did not; is a reception lane stuck?");
    }
    packing_ = version;
    return buffers_[target].payload();
  }

  /// Distribution lane: what begin gave is complete. Checksummed, then visible.
  void publish(std::int64_t version) {
    if (version != packing_) {
      throw Error("control plane: publish(" + std::to_string(version) + ") without begin(" +
                  std::to_string(version) + "); pack a version before it is published");
    }
    const std::size_t target = 1 - newest_;  // only this thread changes newest_
    buffers_[target].seal(version);
    {
      const std::scoped_lock lock(mutex_);
      newest_ = target;
      latest_ = version;
      packing_ = none;
    }
    changed_.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is there, copies the newest into `destination` (of
  /// bytes()) and proves the copy. Returns its version. Throws DeadlineError after `limit`, Error
  /// for a wrong size, a damaged version, or after close().
  std::int64_t receive(std::span<std::byte> destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    if (destination.size() != bytes_) {
      throw Error("control plane: weights are " + std::to_string(bytes_) + " bytes and the destination " +
                  std::to_string(destination.size()) + "; trainer and sampler must have the same model");
    }
    std::size_t source = 0;
    {
      std::unique_lock lock(mutex_);
      const std::int64_t wanted = at_least < 0 ? 0 : at_least;
      const bool there = changed_.wait_until(lock, detail::deadline_after(limit),
                                             [&] { return latest_ >= wanted || closed_; });
      if (closed_)
        throw Error("control plane: closed while reception waited for version " + std::to_string(wanted));
      if (!there) {
        throw DeadlineError("control plane: weight reception waited " + detail::seconds_text(limit) +
                            " for version " + std::to_string(wanted) +
                            " from weight distribution; the latest is " + std::to_string(latest_) +
                            "; is the training lane behind?");
      }
      source = newest_;
      ++readers_[source];
    }
    const Leave leave{*this, source};
    const WeightBuffer& buffer = buffers_[source];
    if (bytes_ > 0) std::memcpy(destination.data(), buffer.payload().data(), bytes_);
    buffer.verify(destination);
    return buffer.version();
  }

  /// Wakes everyone who waits in receive; they, and later calls, throw Error.
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }

 private:
  static constexpr std::int64_t none = -1;
  struct Leave {
    InProcessWeightPlane& plane;
    std::size_t source;
    ~Leave() {
      {
        const std::scoped_lock lock(plane.mutex_);
        --plane.readers_[source];
      }
      plane.changed_.notify_all();
    }
  };

  std::array<WeightBuffer, 2> buffers_;
  std::size_t bytes_;
  std::chrono::nanoseconds patience_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::array<int, 2> readers_{};
  std::size_t newest_ = 1;
  std::int64_t latest_ = none;
  std::int64_t packing_ = none;
  bool closed_ = false;
};

template <class Pipeline>
struct machinery<InProcessWeights, Pipeline> {
  using type = InProcessWeightPlane;
};

}  // namespace dvla
