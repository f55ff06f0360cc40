// Owners of MuJoCo's C objects, and the one way in which an MJCF text becomes a model inside a pool.
#pragma once

#include <mujoco/mujoco.h>

#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
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

/// A fresh mjData of `model` in `pool`.
inline MujocoPointer<mjData> make_mujoco_data(const mjModel& model, std::pmr::memory_resource& pool) {
  MujocoMemory::Scope scope(pool);
  mjData* data = nullptr;
  auto call = [&] { data = mj_makeData(&model); };
  if (!MujocoGuard::run(call) || data == nullptr) {
    scope.roll_back();
    throw Error("the environment pool is too small: a MuJoCo state needs more than " +
                std::to_string((sizeof(mjData) + static_cast<std::size_t>(model.narena)) / 1024) +
                " KiB a row; raise --environment-pool-mib or use fewer environments");
  }
  return MujocoPointer<mjData>(data);
}

}  // namespace dvla::detail
