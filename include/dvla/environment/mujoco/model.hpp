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

/// Compiles a parsed model on the heap and copies it into `pool`. `parse(why, size)` gives an mjSpec, or none and why. A state with bad
/// numbers is not silently reset by MuJoCo (autoreset is off): the batch finds it and says so.
template <class Parse>
MujocoPointer<mjModel> load_mujoco(const std::string& task, std::pmr::memory_resource& pool, Parse parse) {
  char why[512] = {};
  const MujocoGuard::Naming naming(task.c_str());
  MujocoMemory::install();
  const MujocoPointer<mjSpec> spec(parse(why, static_cast<int>(sizeof why)));
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
inline MujocoPointer<mjModel> load_mujoco_model(std::string_view name, std::string_view mjcf,
                                                std::pmr::memory_resource& pool) {
  return load_mujoco("task '" + std::string(name) + "'", pool, [&](char* why, int size) {
    return mj_parseXMLString(std::string(mjcf).c_str(), nullptr, why, size);
  });
}
inline MujocoPointer<mjModel> load_mujoco_file(const std::string& path, std::pmr::memory_resource& pool) {
  return load_mujoco("'" + path + "'", pool,
                     [&](char* why, int size) { return mj_parseXML(path.c_str(), nullptr, why, size); });
}

/// What a step of `data` found wrong with its numbers, or null.
inline const char* mujoco_trouble(const mjData& data) {
  if (data.warning[mjWARN_BADQPOS].number != 0) return "a position is not a sane number";
  if (data.warning[mjWARN_BADQVEL].number != 0) return "a velocity is not a sane number";
  if (data.warning[mjWARN_BADQACC].number != 0) return "an acceleration is not a sane number";
  if (data.warning[mjWARN_CONTACTFULL].number + data.warning[mjWARN_CNSTRFULL].number != 0)
    return "the contacts need more memory than the model's <size memory=...> gives";
  return nullptr;
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
