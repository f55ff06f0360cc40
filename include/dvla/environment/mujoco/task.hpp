// What a manipulation task gives MujocoBatch: a small struct, no base class. One object per batch serves all
// rows and threads, so its functions are const; what differs between rows lies in mjData and in `Goal`.
#pragma once

#include <mujoco/mujoco.h>

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"

namespace dvla {

/// - `name`, `mjcf` (the model's text, with a camera "top"), `instructions` (an array of sentences; each
/// changes
///   the goal), `proprioception` (floats in an observation), `actions` (dimensions), `substeps` (mj_step per
///   control step).
/// - `Task(model)` looks up ids once. `Goal` is the episode's task, trivially copyable.
/// - `reset(model, data, random, instruction)` writes positions and mocap poses into freshly reset data and
///   returns the Goal, that of instruction number `instruction`, or of a drawn one where it is -1; it uses no
///   randomness but `random`, the same amount either way. mj_forward follows.
/// - `apply(model, data, goal, action)` turns one action in [-1, 1] into data.ctrl before the substeps.
/// - `success`, `dense_reward` (about [0, 1]), `observe` (about [-1, 1] per float) and `expert` see the state
///   after the substeps, with body and site poses up to date.
/// - Nothing here allocates, throws or prints: the functions run while MuJoCo's errors are guarded.
template <class Task>
concept MujocoTask = std::is_trivially_copyable_v<typename Task::Goal> &&
    std::constructible_from<Task, const mjModel&> &&
    requires(const Task& task, const mjModel& model, mjData& data, const typename Task::Goal& goal,
             SplitMix64& random, std::span<const float> action, std::span<float> out) {
  { Task::name } -> std::convertible_to<std::string_view>;
  { Task::mjcf } -> std::convertible_to<std::string_view>;
  { Task::instructions[0] } -> std::convertible_to<std::string_view>;
  { Task::proprioception } -> std::convertible_to<int>;
  { Task::actions } -> std::convertible_to<int>;
  { Task::substeps } -> std::convertible_to<int>;
  { task.reset(model, data, random, std::int32_t{}) } -> std::same_as<typename Task::Goal>;
  { task.instruction(goal) } -> std::convertible_to<std::int32_t>;
  task.apply(model, data, goal, action);
  { task.success(data, goal) } -> std::convertible_to<bool>;
  { task.dense_reward(data, goal) } -> std::convertible_to<float>;
  task.observe(data, goal, out);
  task.expert(model, data, goal, out);
};

namespace detail {

/// Id of a named object; an Error that names it if the model lacks it.
inline int mujoco_id(const mjModel& model, mjtObj type, const char* name) {
  const int id = mj_name2id(&model, type, name);
  if (id < 0) {
    throw Error(std::string("the MuJoCo model has no ") + mju_type2Str(type) + " named '" + name +
                "'; the task's code and its MJCF text do not fit");
  }
  return id;
}

inline float clamp_unit(mjtNum value) { return static_cast<float>(value < -1 ? -1 : value > 1 ? 1 : value); }

}  // namespace detail
}  // namespace dvla
