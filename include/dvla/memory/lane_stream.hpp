// The CUDA stream of the calling thread's lane: what a lane puts on the GPU waits for nothing that another
// lane has put there, unless it says so with an event. Paper: model copies are swapped without stopping
// physics or training. Includes c10 only, which knows streams of any device; a program without CUDA may
// include this, but not call it.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <cstdlib>

#include "dvla/handoff/stages.hpp"

namespace dvla::detail {

/// A thread that has entered no lane: `every`.
inline thread_local lane_kind this_lane = lane_kind::every;
/// Which of the two pools this thread's tensors on the GPU come from.
inline thread_local bool in_environment_pool = false;

/// One GPU a process: where several processes share a machine, the one whose number is the process's own
/// there.
inline c10::Device cuda_device() {
  static const c10::Device device = [] {
    const int count = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount();
    int local = 0;
    for (const char* name :
         {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}) {
      if (const char* text = std::getenv(name)) {
        local = std::abs(std::atoi(text));
        break;
      }
    }
    return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(count > 0 ? local % count : 0));
  }();
  return device;
}

/// By lane_kind. None is the default stream, which others wait for.
inline const std::array<c10::Stream, 6>& lane_streams() {
  static const std::array<c10::Stream, 6> streams = [] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    const auto next = [&] { return guard.getStreamFromGlobalPool(cuda_device()); };
    return std::array{next(), next(), next(), next(), next(), next()};
  }();
  return streams;
}
static_assert(static_cast<int>(lane_kind::every) == 5);

inline c10::Stream lane_stream() { return lane_streams()[static_cast<std::size_t>(this_lane)]; }

}  // namespace dvla::detail
