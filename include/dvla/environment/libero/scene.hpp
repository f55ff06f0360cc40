// A task of LIBERO, ready to be played: its model, compiled once for all rows, its initial states, its goal, its robot's controller.
// And the gripper. Needs MuJoCo; no torch. Immutable once made, so rows on different threads share it.
#pragma once

#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory_resource>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/libero/expert.hpp"
#include "dvla/environment/libero/files.hpp"
#include "dvla/environment/libero/goal.hpp"
#include "dvla/environment/libero/osc_pose.hpp"
#include "dvla/environment/mujoco/model.hpp"
#include "dvla/io/safetensors.hpp"

namespace dvla::libero {

/// The gripper's action, of which only the sign counts, is summed into the fingers' targets (panda_gripper.py, manipulator.py).
class Fingers {
 public:
  static constexpr int count = 2;
  using State = std::array<mjtNum, count>;  ///< targets in [-1, 1]

  Fingers(const mjModel& model, const Robot& robot) : speed_(robot.finger_speed) {
    if (std::size(robot.finger_joints) != count || std::size(robot.finger_actuators) != count ||
        std::size(robot.finger_sign) != count)
      throw FormatError("its robot has another gripper than one of ", count, " fingers");
    for (std::size_t i = 0; i < count; ++i) {
      position_[i] = model.jnt_qposadr[detail::mujoco_id(model, mjOBJ_JOINT, robot.finger_joints[i].c_str())];
      motor_[i] = detail::mujoco_id(model, mjOBJ_ACTUATOR, robot.finger_actuators[i].c_str());
      sign_[i] = robot.finger_sign[i];
    }
  }
  /// Before a physics step; 1 closes, -1 opens.
  void drive(const mjModel& model, mjData& data, State& state, double action) const {
    const int sign = (action > 0) - (action < 0);
    for (std::size_t i = 0; i < count; ++i) {
      state[i] = std::clamp(state[i] + sign_[i] * speed_ * sign, -1.0, 1.0);
      const mjtNum* const range = model.actuator_ctrlrange + 2 * motor_[i];
      data.ctrl[motor_[i]] = 0.5 * (range[1] + range[0]) + 0.5 * (range[1] - range[0]) * state[i];
    }
  }
  int position(std::size_t finger) const { return position_[finger]; }
  /// Of all: where their positions are in qpos, and their motors in ctrl.
  const std::array<int, count>& positions() const { return position_; }
  const std::array<int, count>& motors() const { return motor_; }

 private:
  double speed_;
  std::array<int, count> position_{}, motor_{};
  std::array<mjtNum, count> sign_{};
};

struct Scene {
  std::string suite, instruction;
  int task = 0, horizon = 0, settling = 0, substeps = 0;
  detail::MujocoPointer<mjModel> model;
  std::int64_t count = 0;      ///< of initial states
  std::vector<double> states;  ///< [count, 1 + nq + nv]: time, positions, speeds
  std::vector<double> poses;   ///< [count, fixtures, 7]: position, quaternion wxyz
  std::vector<int> fixtures;   ///< bodies
  OscPose arm;
  OscPose::State rest;  ///< of an arm that was just reset
  Fingers fingers;
  int hand = 0;  ///< the body whose orientation is observed
  Goal goal;
  struct Lit {
    int site;
    JointsAre on;
    float alpha_off, alpha_on;
  };
  std::vector<Lit> burners;
  std::optional<Expert> expert;  ///< there, once the scene is made

  /// Initial state i, [1 + nq + nv], and where a reset put the fixtures before it, [fixtures, 7].
  std::span<const double> state(std::int64_t i) const {
    return nth(states, i, states.size() / static_cast<std::size_t>(count));
  }
  std::span<const double> placed(std::int64_t i) const { return nth(poses, i, fixtures.size() * 7); }

  /// A task of the folder. `seed`: of the resets whose fixtures' poses it takes. Throws Error or FormatError, which name the file.
  static Scene open(const std::filesystem::path& folder, const Manifest& manifest, const Listed& listed,
                    int seed, std::pmr::memory_resource& pool) {
    const std::filesystem::path at = folder / listed.folder;
    if (manifest.mujoco != mj_versionString())
      throw Error("'", folder.string(), "' was converted with MuJoCo ", manifest.mujoco,
                  ", and this program has ", mj_versionString(),
                  ", by which LIBERO's tasks move and look otherwise; build with the former "
                  "(-DDVLA_MUJOCO_ROOT, docs/libero.md)");
    const TaskFile file = read_task(at / "task.json");
    detail::MujocoPointer<mjModel> model = detail::load_mujoco_file((at / "model.xml").string(), pool);
    model->narena = std::min<decltype(model->narena)>(model->narena, arena);
    try {
      return Scene(manifest, listed, file, std::move(model), at / "states.safetensors", seed);
    } catch (const FormatError& error) {
      throw FormatError("'", at.string(), "': ", error.what());
    }
  }
  /// The same by its number. Throws ConfigError where the folder has none.
  static Scene open(const std::filesystem::path& folder, const Manifest& manifest, const std::string& suite,
                    int task, int seed, std::pmr::memory_resource& pool) {
    for (const Listed& listed : manifest.tasks)
      if (listed.suite == suite && listed.task == task) return open(folder, manifest, listed, seed, pool);
    throw ConfigError("'", folder.string(), "' has no task ", task, " of the suite ", suite,
                      "; scripts/convert_libero makes it");
  }

 private:
  /// Of a row's contacts, constraints and temporaries. The original's XML asks for 1.2 GiB a simulation; 1 MiB is what episodes with 228
  /// contacts took. A row that wants more fails, and says so.
  static constexpr std::size_t arena = std::size_t{16} << 20;

  static std::span<const double> nth(std::span<const double> all, std::int64_t i, std::size_t width) {
    return all.subspan(static_cast<std::size_t>(i) * width, width);
  }
  Scene(const Manifest& manifest, const Listed& listed, const TaskFile& file,
        detail::MujocoPointer<mjModel> compiled, const std::filesystem::path& tensors, int seed)
      : suite(listed.suite),
        instruction(listed.instruction),
        task(listed.task),
        settling(manifest.settling),
        substeps(manifest.robot.substeps),
        model(std::move(compiled)),
        arm(*model, manifest.robot),
        fingers(*model, manifest.robot),
        hand(detail::mujoco_id(*model, mjOBJ_BODY, manifest.robot.eef_body.c_str())),
        goal(*model, file) {
    horizon = manifest.horizons.at(suite);
    if (model->nq != file.nq || model->nv != file.nv)
      throw FormatError("model.xml has ", model->nq, " positions and ", model->nv,
                        " speeds, and by task.json ", file.nq, " and ", file.nv);
    if (model->opt.timestep != manifest.robot.timestep || substeps < 24)
      throw FormatError("a control step is ", substeps, " physics steps of ",
                        detail::number_text(model->opt.timestep), " s; it must be 24 or more, of ",
                        detail::number_text(manifest.robot.timestep), " s");
    if (model->opt.integrator == mjINT_RK4)
      throw FormatError("model.xml wants the integrator RK4, which takes no torques of a controller");
    for (const std::string& body : file.fixtures)
      fixtures.push_back(detail::mujoco_id(*model, mjOBJ_BODY, body.c_str()));
    for (const Burner& burner : file.burners)
      burners.push_back({detail::mujoco_id(*model, mjOBJ_SITE, burner.site.c_str()),
                         JointsAre(*model, burner.joints, burner.turnon, false),
                         static_cast<float>(burner.alpha_off), static_cast<float>(burner.alpha_on)});
    read_states(tensors, seed);
    begin(manifest.robot);
  }

  void read_states(const std::filesystem::path& path, int seed) {
    const io::SafetensorsFile file(path);
    const std::string name = "fixture_poses.seed" + std::to_string(seed);
    const auto shape = file.tensor("states").shape;
    const std::int64_t width = 1 + model->nq + model->nv;
    if (shape.size() != 2 || shape[0] < 1 || shape[1] != width)
      throw FormatError("states.safetensors has states of another shape than [count, ", width, "]");
    count = shape[0];
    const std::span<const double> all = file.span<double>("states"), placed = file.span<double>(name);
    if (placed.size() != static_cast<std::size_t>(count) * fixtures.size() * 7)
      throw FormatError("states.safetensors has ", placed.size(), " numbers of fixtures' poses, and ", count,
                        " states want ", static_cast<std::size_t>(count) * fixtures.size() * 7);
    states.assign(all.begin(), all.end());
    poses.assign(placed.begin(), placed.end());
    for (const std::span<const double> each : {all, placed})
      if (!std::ranges::all_of(each, [](double value) { return std::isfinite(value); }))
        throw FormatError("states.safetensors has a number that is not finite");
  }

  /// The controller measures the arm when it is reset, and does not again before the first torque, although the initial state
  /// has moved it by then.
  void begin(const Robot& robot) {
    const detail::MujocoPointer<mjData> data(mj_makeData(model.get()));
    auto call = [&] {
      for (int i = 0; i < OscPose::joints; ++i)
        data->qpos[arm.angle(i)] = robot.arm_qpos[static_cast<std::size_t>(i)];
      mj_forward(model.get(), data.get());
      arm.begin(*model, *data, rest);
    };
    if (!data || !detail::MujocoGuard::run(call))
      throw Error("MuJoCo cannot place the arm of '", suite, " ", task, "': ", detail::MujocoGuard::error());
    expert.emplace(*model, *data, goal, arm, rest, fingers.positions(), fingers.motors());
  }
};

}  // namespace dvla::libero
