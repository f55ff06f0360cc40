// What a user tunes in environments that are Python's (Gymnasium, ManiSkill): plain structs without Python, so that
// compositions can be named, printed and read from a file without any simulator.
#pragma once

#include <algorithm>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

/// Of every one. Where it lists tasks, they are one behind the other, with commas between.
struct PythonKnobs {
  int environments = 16;
  int workers = 0;
  bool embedded = false;
  std::string python{};
  std::string arguments = "{}";
  int max_episode_steps = 0;
  std::string instruction{};
  std::string task_weights{};
  int normalise_steps = 0;
  bool render = false;
  double worker_step_s = 30;
  double worker_reset_s = 60;
  double worker_start_s = 180;
};

template <>
inline constexpr auto knob_docs<PythonKnobs> = std::to_array<KnobDoc>({
    {"environments", "environments stepped at once; a multiple of the group", 1, 65536},
    {"workers", "processes that the environments are spread over; 0 = one a core", 0, 1024},
    {"embedded", "in this process, by its own Python, instead of workers"},
    {"python", "interpreter that has the simulator; empty = the one that scripts/setup made"},
    {"arguments", "keyword arguments for making an environment, as a JSON object"},
    {"max_episode_steps", "longest episode; 0 = the environment's own", 0, 1000000, "control steps"},
    {"instruction", "what the policy is told; empty = from the task's name"},
    {"task_weights", "how often each task is played, as 2,1,1; empty = all alike"},
    {"normalise_steps",
     "proprioception minus its mean over its spread, within 5, as measured in so many random steps; 0 = as "
     "it is",
     0, 1000000, "control steps"},
    {"render", "environments can be drawn (run.animation)"},
    {"worker_step_s", "a worker that steps for longer is killed and its rows fail", 0.01, 86400, "s"},
    {"worker_reset_s", "the same of a reset", 0.01, 86400, "s"},
    {"worker_start_s", "the same of a worker's start, which imports the simulator", 0.01, 86400, "s"},
});

/// What a call may take by these deadlines: a step, or a reset that has to wait for a start first. Found by
/// validate(config).
inline double longest_call_s(const PythonKnobs& knobs) {
  return std::max(knobs.worker_step_s, knobs.worker_start_s + knobs.worker_reset_s);
}

/// All rows are one simulation, in one worker.
inline bool steps_together(const PythonKnobs&) { return false; }

/// Rules beyond ranges; found by validate(config).
inline void check(const PythonKnobs& knobs) {
  if (knobs.embedded && knobs.workers > 1)
    throw ConfigError("environment.workers is ", knobs.workers,
                      ", and environment.embedded is true: an interpreter is one; leave workers at 0");
}

struct GymnasiumKnobs : PythonKnobs {
  std::string id{};
  std::string factory{};
  double success_return = 0;
};

template <>
inline constexpr auto knob_docs<GymnasiumKnobs> = joined_docs(
    knob_docs<PythonKnobs>,
    std::to_array<KnobDoc>({
        {"id", "of Gymnasium's registry, as FetchReach-v4; several, with commas between, are tasks"},
        {"factory",
         "module:function that makes an environment of your own, instead of an id; several are tasks, too"},
        {"success_return",
         "an episode that has gained as much has solved its task and ends; 0 = where it says success", 0,
         1e9},
    }));

inline void check(const GymnasiumKnobs& knobs) {
  check(static_cast<const PythonKnobs&>(knobs));
  if (knobs.id.empty() == knobs.factory.empty())
    throw ConfigError(knobs.id.empty() ? "environment.id is empty; give an id of Gymnasium's registry (--id "
                                         "FetchReach-v4), or environment.factory"
                                       : "environment.id and environment.factory are both given; give one");
}

struct ManiSkillKnobs : PythonKnobs {
  std::string task = "PickCube-v1";
  std::string obs_mode = "state";
  std::string control_mode{};
  std::string reward_mode{};
  std::string robot_uids{};
  std::string sim_backend = "physx_cpu";
  int camera_pixels = 0;
  bool fast_reset = false;
};

inline bool steps_together(const ManiSkillKnobs& knobs) { return knobs.sim_backend != "physx_cpu"; }

template <>
inline constexpr auto knob_docs<ManiSkillKnobs> = joined_docs(
    knob_docs<PythonKnobs>,
    std::to_array<KnobDoc>({
        {"task", "ManiSkill's name of it, as PushCube-v1; several with commas between"},
        {"obs_mode", "state, rgb, rgb+state, or another of ManiSkill's"},
        {"control_mode", "as pd_ee_delta_pos; empty = the robot's own"},
        {"reward_mode", "sparse, dense, normalized_dense, none; empty = the task's own"},
        {"robot_uids", "as panda; empty = the task's own"},
        {"sim_backend", "physx_cpu, an environment a row; or physx_cuda, all rows in one on a GPU"},
        {"camera_pixels", "side of the sensors' frames; 0 = the task's own", 0, 2048, "pixels"},
        {"fast_reset",
         "training's episodes begin without building the scene anew: 5 times as fast, but what "
         "touched before shows"},
    }));

inline void check(const ManiSkillKnobs& knobs) {
  check(static_cast<const PythonKnobs&>(knobs));
  if (knobs.task.empty())
    throw ConfigError("environment.task is empty; give a task of ManiSkill (--task PushCube-v1)");
  if (!steps_together(knobs)) return;
  const std::string which =
      knobs.sim_backend.substr(std::min(knobs.sim_backend.size(), std::string("physx_cuda").size()));
  if (!knobs.sim_backend.starts_with("physx_cuda") ||
      !(which.empty() ||
        (which.size() > 1 && which[0] == ':' && which.find_first_not_of("0123456789", 1) == which.npos)))
    throw ConfigError("environment.sim_backend is '", knobs.sim_backend,
                      "'; it must be physx_cpu, physx_cuda, or physx_cuda:N for the N-th GPU");
  if (knobs.workers > 1 || knobs.embedded)
    throw ConfigError("environment.sim_backend is ", knobs.sim_backend,
                      ", which steps all environments in one worker: leave workers at 0 and embedded false");
  if (knobs.task.find(',') != knobs.task.npos)
    throw ConfigError("environment.sim_backend is ", knobs.sim_backend,
                      ", which simulates one task, and environment.task is '", knobs.task,
                      "': leave task one");
  if (knobs.control_mode.find("_target_") != knobs.control_mode.npos)
    throw ConfigError(
        "environment.control_mode is ", knobs.control_mode,
        ", whose controller sets targets, which a reset of one row forgets of all under sim_backend ",
        knobs.sim_backend, "; choose a mode without targets");
  if (!knobs.fast_reset)
    throw ConfigError("environment.sim_backend is ", knobs.sim_backend,
                      ", which can build no row's scene anew: give fast_reset true, and know that what was "
                      "touched before shows");
  if (knobs.render)
    throw ConfigError("environment.sim_backend is ", knobs.sim_backend,
                      ", of which no pictures are drawn: leave render false");
}

}  // namespace dvla

template <std::same_as<dvla::PythonKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::environments, &K::workers, &K::embedded, &K::python, &K::arguments,
                    &K::max_episode_steps, &K::instruction, &K::task_weights, &K::normalise_steps, &K::render,
                    &K::worker_step_s, &K::worker_reset_s, &K::worker_start_s> {};
template <std::same_as<dvla::GymnasiumKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::more_members<dvla::PythonKnobs, &K::id, &K::factory, &K::success_return> {};
template <std::same_as<dvla::ManiSkillKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::more_members<dvla::PythonKnobs, &K::task, &K::obs_mode, &K::control_mode, &K::reward_mode,
                         &K::robot_uids, &K::sim_backend, &K::camera_pixels, &K::fast_reset> {};
