// Owners of MuJoCo's C objects, and the one way in which an MJCF text becomes a model inside a pool.
#pragma once

#include <mujoco/mujoco.h>

#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/mujoco/guard.hpp"
#include "dvla/environment/mujoco/memory.hpp"

namespace dvla::detail {

struct MujocoDelete {
  void operator()(mjModel* model) const { mj_deleteModel(model); }
  void operator()(mjData* data) const { mj_deleteData(data); }
  void operator()(mjSpec* spec) const { mj_deleteSpec(spec); }
};
template <class Type>
using MujocoPointer = std::unique_ptr<Type, MujocoDelete>;

/// Compiles `mjcf` on the heap and copies the model into `pool`. A state with bad numbers is not silently
/// reset by MuJoCo (autoreset is off): the batch finds it and says so.
inline MujocoPointer<mjModel> load_mujoco_model(std::string_view name, std::string_view mjcf,
                                                std::pmr::memory_resource& pool) {
  char why[512] = {};
  const std::string task = "task '" + std::string(name) + "'";
  const MujocoGuard::Naming naming(task.c_str());
  MujocoMemory::install();
  const MujocoPointer<mjSpec> spec(mj_parseXMLString(std::string(mjcf).c_str(), nullptr, why, sizeof why));
  MujocoPointer<mjModel> compiled(spec ? mj_compile(spec.get(), nullptr) : nullptr);
  if (!compiled) {
    const char* reason = spec ? mjs_getError(spec.get()) : why;
    throw Error("the MJCF text of " + task + " is no model: " + (reason ? reason : why));
  }
  compiled->opt.disableflags |= mjDSBL_AUTORESET;
  MujocoMemory::Scope scope(pool);
  mjModel* copy = nullptr;
  auto call = [&] { copy = mj_copyModel(nullptr, compiled.get()); };
  if (!MujocoGuard::run(call) || copy == nullptr) {
    scope.roll_back();
    throw Error("the environment pool is too small for the model of " + task +
                "; raise --environment-pool-mib");
  }
  return MujocoPointer<mjModel>(copy);
}

/// A fresh mjData of `model` in `pool`, one of so many.
inline MujocoPointer<mjData> make_mujoco_data(const mjModel& model, std::pmr::memory_resource& pool,
                                              std::int64_t rows) {
  mjData* data = nullptr;
  auto call = [&] { data = mj_makeData(&model); };
  {
    MujocoMemory::Scope scope(pool);
    if (MujocoGuard::run(call) && data != nullptr) return MujocoPointer<mjData>(data);
    scope.roll_back();
  }
  data = nullptr;
  MujocoGuard::run(call);  // on the heap, to see what one takes
  const MujocoPointer<mjData> one(data);
  const auto bytes = one ? sizeof(mjData) + static_cast<std::size_t>(one->nbuffer + one->narena) : 0;
  throw Error("the environment pool is too small: " + std::to_string(rows) + " environments of MuJoCo take " +
              mebibytes(static_cast<std::size_t>(rows) * bytes) + " of it (" + std::to_string(bytes / 1024) +
              " KiB each), beside what batches take; raise --environment-pool-mib or use fewer environments");
}

}  // namespace dvla::detail
