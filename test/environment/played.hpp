// Tasks of ManiSkill that are played as Python alone has played and recorded them (record.py): by workers, or in this process.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "dvla/environment/maniskill.hpp"
#include "test/environment/recorded.hpp"

namespace dvla_test {

struct Played {
  std::string task;
  std::string control_mode = "", robot_uids = "", obs_mode = "state";
  int rows = 3, steps = 200, limit = 0, pixels = 0;
  std::vector<std::string> how{};  ///< of record.py besides
  bool training = false;           ///< and so with fast_reset
};

/// Prints what was compared; fails where a bit differs.
inline Agreement agrees(const Played& played, bool embedded = false) {
  CAPTURE(played.task);
  const TemporaryFolder folder;
  dvla::ManiSkillKnobs knobs;
  knobs.python = simulator_python("maniskill");
  knobs.embedded = embedded;
  knobs.workers = embedded ? 0 : 2;
  knobs.task = played.task;
  knobs.control_mode = played.control_mode;
  knobs.robot_uids = played.robot_uids;
  knobs.obs_mode = played.obs_mode;
  knobs.max_episode_steps = played.limit;
  knobs.camera_pixels = played.pixels;
  knobs.fast_reset = played.training;
  std::vector<std::string> more{"--rows",         std::to_string(played.rows),
                                "--steps",        std::to_string(played.steps),
                                "--limit",        std::to_string(played.limit),
                                "--pixels",       std::to_string(played.pixels),
                                "--obs-mode",     played.obs_mode,
                                "--control-mode", played.control_mode,
                                "--robot-uids",   played.robot_uids};
  more.insert(more.end(), played.how.begin(), played.how.end());
  const auto recorded = record("maniskill", played.task, more, folder.path());
  const auto agreed = replay<dvla::ManiSkillEnvironment>(recorded, knobs, played.training);
  for (const std::string& wrong : agreed.wrong) FAIL_CHECK(wrong);
  std::printf("%s%s, %s%s%s, %d rows, %d steps%s: %s\n", embedded ? "embedded: " : "", played.task.c_str(),
              played.obs_mode.c_str(),
              (played.control_mode.empty() ? "" : ", " + played.control_mode).c_str(),
              (played.robot_uids.empty() ? "" : ", " + played.robot_uids).c_str(), played.rows, played.steps,
              played.training ? ", fast reset" : "", agreed.text().c_str());
  std::fflush(stdout);
  return agreed;
}

/// 200 control steps each with resets among them, from states: other robots, control modes and ways to end.
inline void play_tasks(bool embedded) {
  Agreement all;
  for (const Played& played : std::vector<Played>{
           {.task = "PickCube-v1", .control_mode = "pd_joint_delta_pos", .limit = 37},
           {.task = "PushCube-v1", .control_mode = "pd_ee_delta_pos", .limit = 50, .how = {"--push"}},
           {.task = "PegInsertionSide-v1", .control_mode = "pd_ee_delta_pose", .limit = 45},
           {.task = "StackCube-v1", .control_mode = "pd_joint_pos", .limit = 60},
           {.task = "PickCube-v1", .robot_uids = "fetch", .limit = 37},
           {.task = "PickCubeSO100-v1"},
           {.task = "TriFingerRotateCubeLevel0-v1", .limit = 70},
           {.task = "MS-CartpoleBalance-v1"}}) {
    const Agreement agreed = agrees(played, embedded);
    CHECK(agreed.episodes > played.rows);
    all.solved += agreed.solved;
    all.failed += agreed.failed;
    all.cut += agreed.cut;
  }
  CHECK(all.solved > 0);
  CHECK(all.failed > 0);
  CHECK(all.cut > 0);
}

/// Contacts survive a fast reset: the same history, the same bits.
inline void play_fast_resets(bool embedded) {
  agrees({.task = "PushCube-v1",
          .control_mode = "pd_ee_delta_pos",
          .limit = 50,
          .how = {"--push", "--plain-reset"},
          .training = true},
         embedded);
}

inline void play_pictures(bool embedded) {
  for (const Played& played : std::vector<Played>{
           {.task = "PickCube-v1",
  .control_mode = "pd_ee_delta_pose",
  .obs_mode = "rgb",
  .rows = 2,
  .steps = 24,
  .limit = 10,
  .pixels = 64},
           {.task = "PushCube-v1",
           .control_mode = "pd_ee_delta_pos",
           .obs_mode = "rgb+state",
           .rows = 2,
           .steps = 24,
           .limit = 10,
           .pixels = 64,
           .how = {"--push"}},
           {.task = "StackCube-v1", .obs_mode = "rgb", .rows = 2, .steps = 24, .limit = 10, .pixels = 32}}) {
    const Agreement agreed = agrees(played, embedded);
    CHECK(agreed.pixels > 0);
    CHECK(agreed.episodes > played.rows);
  }
}

}  // namespace dvla_test
