// The control plane of one process: the reception lane copies the trainable weights from the trainer's own
// model into the samplers' copy, once. Paper: control plane, co-located form. Which of the samplers' copies
// takes them is front_back.hpp's business; that the trainer does not change them meanwhile is the run's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "dvla/control_plane/descriptors.hpp"
#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {

class InProcessWeightPlane {
 public:
  explicit InProcessWeightPlane(const std::vector<WeightUnit>& source,
                                std::chrono::nanoseconds patience = std::chrono::seconds(30),
                                std::int64_t verify_every = 16)
      : source_(source), patience_(patience), verify_every_(verify_every) {}
  std::int64_t latest() const {
    const std::scoped_lock lock(mutex_);
    return latest_;
  }
  void publish(std::int64_t version) {
    {
      const std::scoped_lock lock(mutex_);
      if (version <= latest_) throw Error("control plane: version order");
      latest_ = version;
    }
    changed_.notify_all();
  }
  std::int64_t receive(const std::vector<WeightUnit>& destination, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    std::int64_t version = 0;
    {
      std::unique_lock lock(mutex_);
      const bool there = changed_.wait_until(lock, detail::deadline_after(limit),
                                             [&] { return latest_ >= at_least || closed_; });
      if (closed_) throw Error("control plane: closed");
      if (!there) throw DeadlineError("control plane: deadline");
      version = latest_;
    }
    if (&destination != &source_) copy_weights(source_, destination);
    return version;
  }
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }

 private:
  const std::vector<WeightUnit>& source_;
  std::chrono::nanoseconds patience_;
  std::int64_t verify_every_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t latest_ = -1;
  bool closed_ = false;
};

template <class Pipeline>
struct machinery<InProcessWeights, Pipeline> {
  using type = InProcessWeightPlane;
};

}  // namespace dvla
