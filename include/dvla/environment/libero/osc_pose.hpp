// OSC_POSE, the controller under LIBERO's actions: operational space control of the arm's end effector (Khatib 1987), as robosuite 1.4.0
// has it (controllers/osc.py, utils/control_utils.py) with its default settings: fixed impedance, deltas, position and orientation
// uncoupled, no interpolation. An action says by how much position and orientation are to change from where they are when it comes;
// a torque is made of it before every physics step. What of the reference one would not expect stands in docs/libero.md.
//
// Legend: q joint angles of the arm (7), J Jacobian [6, 7] of the grip site, position above orientation, M mass matrix [7, 7].
#pragma once

#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/environment/libero/files.hpp"
#include "dvla/environment/mujoco/task.hpp"

namespace dvla::libero {

class OscPose {
 public:
  static constexpr int joints = 7, controlled = 6;

  /// Of one arm: what it is steered to, and what was measured of it last.
  struct State {
    std::array<mjtNum, 3> goal_position{};
    std::array<mjtNum, 9> goal_orientation{};
    std::array<mjtNum, joints> rest{};  ///< where the arm's freedom beside the task is pulled to
    std::array<mjtNum, 3> position{}, velocity{}, turning{};
    std::array<mjtNum, 9> orientation{};
    std::array<mjtNum, joints> angles{}, speeds{};
    std::array<mjtNum, std::size_t{controlled} * joints> jacobian{};
    std::array<mjtNum, std::size_t{joints} * joints> mass{};
    bool measured = false;  ///< since the last torque
  };

  /// Throws FormatError where the arm is none of seven joints, Error where the model lacks something of it.
  OscPose(const mjModel& model, const Robot& robot)
      : site_(detail::mujoco_id(model, mjOBJ_SITE, robot.eef_site.c_str())) {
    if (std::size(robot.arm_joints) != joints || std::size(robot.arm_actuators) != joints ||
        std::size(robot.arm_qpos) != joints || std::size(robot.kp) != controlled ||
        std::size(robot.kd) != controlled || std::size(robot.input_min) != controlled ||
        std::size(robot.input_max) != controlled || std::size(robot.output_min) != controlled ||
        std::size(robot.output_max) != controlled)
      throw FormatError("its robot has another arm than one of ", joints, " joints that a pose steers");
    if (model.nv > most)
      throw Error("the scene has " + std::to_string(model.nv) +
                  " degrees of freedom; the controller takes up to " + std::to_string(most));
    for (int i = 0; i < joints; ++i) {
      const int joint = detail::mujoco_id(model, mjOBJ_JOINT, robot.arm_joints[at(i)].c_str());
      angle_[at(i)] = model.jnt_qposadr[joint];
      speed_[at(i)] = model.jnt_dofadr[joint];
      motor_[at(i)] = detail::mujoco_id(model, mjOBJ_ACTUATOR, robot.arm_actuators[at(i)].c_str());
    }
    for (int i = 0; i < controlled; ++i) {
      stiffness_[at(i)] = robot.kp[at(i)];
      damping_[at(i)] = robot.kd[at(i)];
      low_[at(i)] = robot.input_min[at(i)];
      high_[at(i)] = robot.input_max[at(i)];
      scale_[at(i)] = (robot.output_max[at(i)] - robot.output_min[at(i)]) / (high_[at(i)] - low_[at(i)]);
      from_[at(i)] = (robot.output_max[at(i)] + robot.output_min[at(i)]) / 2 -
                     scale_[at(i)] * (high_[at(i)] + low_[at(i)]) / 2;
    }
    rest_stiffness_ = robot.nullspace_kp;
    rest_damping_ = 2 * std::sqrt(rest_stiffness_);
  }

  int site() const { return site_; }
  /// Of a joint of the arm: its place among positions and speeds, and its motor.
  int angle(int joint) const { return angle_[at(joint)]; }
  int freedom(int joint) const { return speed_[at(joint)]; }
  int motor(int joint) const { return motor_[at(joint)]; }

  /// As robosuite's environment leaves the controller after a reset: everything is steered to where it is. `data` is forwarded.
  void begin(const mjModel& model, mjData& data, State& state) const {
    measure(model, data, state);
    state.goal_position = state.position;
    state.goal_orientation = state.orientation;
    state.rest = state.angles;
  }

  /// A new action [6], clipped to [-1, 1]: 1 is 5 cm, or half a radian about an axis of the world. `data` is forwarded.
  void aim(const mjModel& model, mjData& data, State& state, std::span<const double> action) const {
    if (!state.measured) measure(model, data, state);
    mjtNum delta[controlled];
    for (int i = 0; i < controlled; ++i)
      delta[i] = std::clamp(action[at(i)], low_[at(i)], high_[at(i)]) * scale_[at(i)] + from_[at(i)];
    for (int i = 0; i < 3; ++i) state.goal_position[at(i)] = state.position[at(i)] + delta[i];
    // Without a turn the orientation aimed at before stays, which is not the one that was reached.
    if (delta[3] == 0 && delta[4] == 0 && delta[5] == 0) return;
    mjtNum turn[9];
    rotation(delta + 3, turn);
    mju_mulMatMat(state.goal_orientation.data(), turn, state.orientation.data(), 3, 3, 3);
  }

  /// Writes the motors' torques into data.ctrl. `data` is forwarded.
  void drive(const mjModel& model, mjData& data, State& state) const {
    if (!state.measured) measure(model, data, state);
    state.measured = false;
    mjtNum wrench[controlled], turn[3];
    turn_between(state.orientation.data(), state.goal_orientation.data(), turn);
    for (int i = 0; i < 3; ++i) {
      wrench[i] = stiffness_[at(i)] * (state.goal_position[at(i)] - state.position[at(i)]) -
                  damping_[at(i)] * state.velocity[at(i)];
      wrench[3 + i] = stiffness_[at(3 + i)] * turn[i] - damping_[at(3 + i)] * state.turning[at(i)];
    }

    // X = M^-1 J^T; the inverse inertia that the effector shows is J X, of which position and orientation have a block each.
    mjtNum factor[joints * joints], x[controlled * joints], inertia[controlled * controlled];
    mju_copy(factor, state.mass.data(), joints * joints);
    mju_cholFactor(factor, joints, 0);
    for (int i = 0; i < controlled; ++i)
      mju_cholSolve(x + joints * i, factor, state.jacobian.data() + joints * i, joints);
    mju_mulMatMatT(inertia, state.jacobian.data(), x, controlled, joints, controlled);
    mjtNum decoupled[controlled];
    for (const int part : {0, 3}) {
      mjtNum block[9];
      for (int i = 0; i < 9; ++i) block[i] = inertia[controlled * (part + i / 3) + part + i % 3];
      mju_cholFactor(block, 3, 0);
      mju_cholSolve(decoupled + part, block, wrench + part, 3);
    }

    // What pulls the arm to its rest, less what of it the effector would feel: N^T p, N^T = 1 - J^T (J X)^-1 X^T.
    mjtNum pull[joints], p[joints], felt[controlled];
    for (int i = 0; i < joints; ++i)
      pull[i] =
          rest_stiffness_ * (state.rest[at(i)] - state.angles[at(i)]) - rest_damping_ * state.speeds[at(i)];
    mju_mulMatVec(p, state.mass.data(), pull, joints, joints);
    mju_mulMatVec(felt, x, p, controlled, joints);
    mju_cholFactor(inertia, controlled, 0);
    mju_cholSolve(felt, inertia, felt, controlled);
    for (int i = 0; i < controlled; ++i) decoupled[i] -= felt[i];

    mjtNum torque[joints];
    mju_mulMatTVec(torque, state.jacobian.data(), decoupled, controlled, joints);
    for (int i = 0; i < joints; ++i) {
      const int motor = motor_[at(i)];
      const mjtNum* const range = model.actuator_ctrlrange + 2 * motor;
      data.ctrl[motor] = std::clamp(torque[i] + data.qfrc_bias[speed_[at(i)]] + p[i], range[0], range[1]);
    }
  }

  /// Half the sum of the columns' cross products: the sine of the angle, about its axis (control_utils.py, orientation_error).
  static void turn_between(const mjtNum* now, const mjtNum* wanted, mjtNum turn[3]) {
    mju_zero3(turn);
    for (int column = 0; column < 3; ++column) {
      const mjtNum a[3] = {now[column], now[3 + column], now[6 + column]};
      const mjtNum b[3] = {wanted[column], wanted[3 + column], wanted[6 + column]};
      mjtNum c[3];
      mju_cross(c, a, b);
      mju_addToScl3(turn, c, 0.5);
    }
  }

 private:
  static constexpr int most = 512;  // degrees of freedom of a scene

  static constexpr std::size_t at(int i) { return static_cast<std::size_t>(i); }

  void measure(const mjModel& model, mjData& data, State& state) const {
    std::copy_n(data.site_xpos + 3 * site_, 3, state.position.begin());
    std::copy_n(data.site_xmat + 9 * site_, 9, state.orientation.begin());
    mjtNum whole[controlled * most];
    mj_jacSite(&model, &data, whole, whole + 3 * model.nv, site_);
    mju_mulMatVec(state.velocity.data(), whole, data.qvel, 3, model.nv);
    mju_mulMatVec(state.turning.data(), whole + 3 * model.nv, data.qvel, 3, model.nv);
    for (int i = 0; i < joints; ++i) {
      state.angles[at(i)] = data.qpos[angle_[at(i)]];
      state.speeds[at(i)] = data.qvel[speed_[at(i)]];
      for (int row = 0; row < controlled; ++row)
        state.jacobian[at(joints * row + i)] = whole[model.nv * row + speed_[at(i)]];
    }
    mjtNum unit[most] = {}, column[most];
    for (int i = 0; i < joints; ++i) {
      unit[speed_[at(i)]] = 1;
      mj_mulM(&model, &data, column, unit);
      unit[speed_[at(i)]] = 0;
      for (int row = 0; row < joints; ++row) state.mass[at(joints * row + i)] = column[speed_[at(row)]];
    }
    state.measured = true;
  }

  /// The rotation by `turn`, axis times angle, rounded to single precision where the reference rounds (transform_utils.py, quat2mat,
  /// as numba compiles it).
  static void rotation(const mjtNum turn[3], mjtNum matrix[9]) {
    const double angle = std::sqrt(turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2]);
    float q[4] = {static_cast<float>(std::cos(angle / 2))};
    for (int i = 0; i < 3; ++i) q[i + 1] = static_cast<float>(turn[i] / angle * std::sin(angle / 2));
    double sum = 0;
    for (const float each : q) sum += static_cast<double>(each * each);
    const double scale = std::sqrt(2.0 / static_cast<double>(static_cast<float>(sum)));
    for (float& each : q) each = static_cast<float>(static_cast<double>(each) * scale);
    const auto off = [&](int i, int j, int k, float sign) {
      return static_cast<double>(q[i] * q[j] + sign * (q[k] * q[0]));
    };
    const auto on = [&](int i, int j) {
      return 1 - static_cast<double>(q[i] * q[i]) - static_cast<double>(q[j] * q[j]);
    };
    const mjtNum made[9] = {on(2, 3),         off(1, 2, 3, -1), off(1, 3, 2, 1),   //
                            off(1, 2, 3, 1),  on(1, 3),         off(2, 3, 1, -1),  //
                            off(1, 3, 2, -1), off(2, 3, 1, 1),  on(1, 2)};
    mju_copy(matrix, made, 9);
  }

  int site_;
  std::array<int, joints> angle_{}, speed_{}, motor_{};
  std::array<mjtNum, controlled> stiffness_{}, damping_{}, low_{}, high_{}, scale_{}, from_{};
  mjtNum rest_stiffness_ = 0, rest_damping_ = 0;
};

}  // namespace dvla::libero
