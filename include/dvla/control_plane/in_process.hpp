// The control plane of one process: the reception lane copies the trainable weights from the trainer's own
// model into the samplers' copy, once. Paper: control plane, co-located form. Which of the samplers' copies
// takes them is front_back.hpp's business; that the trainer does not change them meanwhile is the run's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

/// Of one plane, since its start.
struct InProcessWeightReport {
  std::int64_t published = 0, installed = 0, installed_bytes = 0;
  std::int64_t verified = 0;  ///< versions of which both sides were hashed
};

/// publish: one distribution thread. receive: one reception thread a destination. All others: any.
class InProcessWeightPlane {
 public:
  /// `source`: the trainer's live units, which must outlive this. Every so many versions what was copied is
  /// proved by hashes of both sides.
  explicit InProcessWeightPlane(const std::vector<WeightUnit>& source, std::int64_t verify_every = 16)
      : source_(source), verify_every_(verify_every) {}

  std::int64_t latest() const {
    const std::scoped_lock lock(mutex_);
    return latest_;
  }

  /// Distribution lane: the source is `version` now, and does not change until that has been received or a
  /// newer one is published; the run's training lane waits for that before its next optimiser step.
  void publish(std::int64_t version) {
    {
      const std::scoped_lock lock(mutex_);
      if (version <= latest_)
        throw Error("control plane: version ", version, " cannot follow version ", latest_,
                    "; versions strictly increase");
      latest_ = version;
      ++report_.published;
    }
    changed_.notify_all();
  }

  /// Reception lane: waits until a version >= at_least is there, copies it and returns its number; where
  /// `destination` is the source itself, nothing is copied. Throws DeadlineError after `limit`, Error after
  /// close(), for a destination of other extents, and where the copy's hash is not the source's.
  std::int64_t receive(const std::vector<WeightUnit>& destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    const std::int64_t wanted = at_least < 0 ? 0 : at_least;
    std::int64_t version = 0;
    {
      std::unique_lock lock(mutex_);
      const bool there = changed_.wait_until(lock, detail::deadline_after(limit),
                                             [&] { return latest_ >= wanted || closed_; });
      if (closed_) throw Error("control plane: closed while reception waited for version ", wanted);
      if (!there)
        throw DeadlineError("control plane: weight reception waited ", detail::seconds_text(limit),
                            " for version ", wanted, " from weight distribution; the latest is ", latest_,
                            "; is the training lane behind?");
      version = latest_;
    }
    if (&destination == &source_) return version;
    const std::size_t bytes = copy_weights(source_, destination);
    const bool verify = verify_every_ > 0 && version % verify_every_ == 0;
    if (verify && weights_checksum(source_) != weights_checksum(destination))
      throw Error("control plane: version ", version,
                  " is not in the sampler's copy what it is in the trainer's model; nobody "
                  "may write to either while it is installed");
    const std::scoped_lock lock(mutex_);
    ++report_.installed;
    report_.installed_bytes += static_cast<std::int64_t>(bytes);
    report_.verified += verify ? 1 : 0;
    return version;
  }

  /// Wakes everyone who waits; they, and later calls of receive, throw Error.
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }

  InProcessWeightReport report() const {
    const std::scoped_lock lock(mutex_);
    return report_;
  }

 private:
  const std::vector<WeightUnit>& source_;
  const std::int64_t verify_every_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t latest_ = -1;
  bool closed_ = false;
  InProcessWeightReport report_;
};

template <class Pipeline>
struct machinery<InProcessWeights, Pipeline> {
  using type = InProcessWeightPlane;
};

}  // namespace dvla
