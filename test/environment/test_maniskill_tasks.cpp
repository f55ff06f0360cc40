// dvla-test: io long
// Tasks of ManiSkill with other robots, control modes and ways to end, 200 control steps each with resets among them,
// and three with cameras: through worker processes they show, bit for bit, what they show in Python alone, which
// writes the records (record.py). Prints what was compared. Skipped where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "dvla/environment/maniskill.hpp"
#include "test/environment/recorded.hpp"

namespace {
struct Played {
  std::string task;
  std::string control_mode = "", robot_uids = "", obs_mode = "state";
  int rows = 3, steps = 200, limit = 0, pixels = 0;
  std::vector<std::string> how{};  ///< of record.py besides
  bool training = false;           ///< and so with fast_reset
};

dvla_test::Agreement agrees(const Played& played) {
  CAPTURE(played.task);
  const dvla_test::TemporaryFolder folder;
  dvla::ManiSkillKnobs knobs;
  knobs.python = dvla_test::simulator_python("maniskill");
  knobs.workers = 2;
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
  const auto recorded = dvla_test::record("maniskill", played.task, more, folder.path());
  const auto agreed = dvla_test::replay<dvla::ManiSkillEnvironment>(recorded, knobs, played.training);
  for (const std::string& wrong : agreed.wrong) FAIL_CHECK(wrong);
  std::printf("%s, %s%s%s, %d rows, %d steps%s: %s\n", played.task.c_str(), played.obs_mode.c_str(),
              (played.control_mode.empty() ? "" : ", " + played.control_mode).c_str(),
              (played.robot_uids.empty() ? "" : ", " + played.robot_uids).c_str(), played.rows, played.steps,
              played.training ? ", fast reset" : "", agreed.text().c_str());
  std::fflush(stdout);
  return agreed;
}
}  // namespace

TEST_CASE("Tasks from states show the same bits as in Python alone, however their episodes end") {
  dvla_test::Agreement all;
  for (const Played& played : std::vector<Played>{
           {.task = "PickCube-v1", .control_mode = "pd_joint_delta_pos", .limit = 37},
           {.task = "PushCube-v1", .control_mode = "pd_ee_delta_pos", .limit = 50, .how = {"--push"}},
           {.task = "PegInsertionSide-v1", .control_mode = "pd_ee_delta_pose", .limit = 45},
           {.task = "StackCube-v1", .control_mode = "pd_joint_pos", .limit = 60},
           {.task = "PickCube-v1", .robot_uids = "fetch", .limit = 37},
           {.task = "PickCubeSO100-v1"},
           {.task = "TriFingerRotateCubeLevel0-v1", .limit = 70},
           {.task = "MS-CartpoleBalance-v1"}}) {
    const auto agreed = agrees(played);
    CHECK(agreed.episodes > played.rows);
    all.solved += agreed.solved;
    all.failed += agreed.failed;
    all.cut += agreed.cut;
  }
  CHECK(all.solved > 0);
  CHECK(all.failed > 0);
  CHECK(all.cut > 0);
}

TEST_CASE("Under fast resets the same history shows the same bits as in Python alone") {
  agrees({.task = "PushCube-v1",
          .control_mode = "pd_ee_delta_pos",
          .limit = 50,
          .how = {"--push", "--plain-reset"},
          .training = true});
}

TEST_CASE("Pictures are the same bytes as in Python alone") {
  const auto pictures = [](const Played& played) {
    const auto agreed = agrees(played);
    CHECK(agreed.pixels > 0);
    CHECK(agreed.episodes > played.rows);
  };
  pictures({.task = "PickCube-v1",
            .control_mode = "pd_ee_delta_pose",
            .obs_mode = "rgb",
            .rows = 2,
            .steps = 24,
            .limit = 10,
            .pixels = 64});
  pictures({.task = "PushCube-v1",
            .control_mode = "pd_ee_delta_pos",
            .obs_mode = "rgb+state",
            .rows = 2,
            .steps = 24,
            .limit = 10,
            .pixels = 64,
            .how = {"--push"}});
  pictures({.task = "StackCube-v1", .obs_mode = "rgb", .rows = 2, .steps = 24, .limit = 10, .pixels = 32});
}

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
