// The sentences that refuse NCCL where it cannot be: without it in the program, or without GPUs. No torch, no
// CUDA.
#pragma once

#include <atomic>

#include "dvla/core/device.hpp"
#include "dvla/core/error.hpp"
#include "dvla/placement/collectives.hpp"

namespace dvla {

class NcclForm;
/// nullptr: the program was built without NCCL (placement/nccl_group.hpp).
inline std::atomic<NcclForm*> nccl_form{nullptr};

/// Throws ConfigError unless this program can do that for models on `device`.
inline void check_collectives(Collectives collectives, Device device) {
  if (collectives == Collectives::gloo) return;
  if (device != Device::cuda)
    throw ConfigError(
        "run.collectives is nccl, which works between GPUs, but models compute on the CPU; choose "
        "memory.device cuda, or gloo");
  if (nccl_form.load() == nullptr)
    throw ConfigError(
        "run.collectives is nccl, but this program was built without NCCL; include "
        "dvla/placement/nccl_group.hpp where there is an nccl.h, or choose gloo");
}

}  // namespace dvla
