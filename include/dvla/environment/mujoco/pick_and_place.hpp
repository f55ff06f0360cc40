// PickAndPlace: a two-finger gripper on a gantry lifts a cube and sets it on the stand that the instruction
// names. The grasp is friction alone; the stands are higher than the table, so pushing does not solve it.
// Solved when the cube rests on the stand and the fingers have let go. Chance gives the places of gripper,
// cube and stands and which one is red. 10 x 5 ms per control step; wants a horizon of 32.
//
// Action [4]: gripper velocity x, y, z (1 is 0.8 m/s) | grip (1 closed, -1 open).
// Proprioception [23]: gripper x y z | its velocity | finger opening, its speed | cube x y z | cube from
// gripper x y z | cube velocity x y z | cube yaw as cos 4a, sin 4a | red x y | blue x y.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "dvla/environment/mujoco/task.hpp"

namespace dvla {

struct PickAndPlace {
  static constexpr std::string_view name = "PickAndPlace";
  static constexpr std::array<std::string_view, 2> instructions = {"put the cube on the red stand",
                                                                   "put the cube on the blue stand"};
  static constexpr int actions = 4;
  static constexpr int proprioception = 23;
  static constexpr int substeps = 10;
  static constexpr int advised_horizon = 32;

  struct Goal {
    mjtNum x = 0, y = 0;  ///< middle of the stand that the instruction names
    std::int32_t instruction = 0;
  };

  static constexpr std::string_view mjcf = R"(
<mujoco model="pick_and_place">
  <compiler angle="radian"/>
  <option timestep="0.005" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <size memory="256K"/>
  <visual><headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular=".1 .1 .1"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".93 .95 .97" rgb2=".75 .80 .86" width="64" height="64"/>
    <texture name="wood" type="2d" builtin="checker" rgb1=".86 .83 .77" rgb2=".83 .80 .74" width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="6 6" specular=".1" shininess=".1"/>
    <material name="cube" rgba=".96 .72 .22 1" specular=".3" shininess=".4"/>
    <material name="hand" rgba=".92 .93 .94 1" specular=".4" shininess=".5"/>
    <material name="finger" rgba=".22 .25 .30 1" specular=".6" shininess=".7"/>
    <material name="red" rgba=".86 .22 .20 1" specular=".2"/>
    <material name="blue" rgba=".16 .42 .82 1" specular=".2"/>
  </asset>
  <worldbody>
    <light pos="-.3 -.3 1.2" dir=".25 .25 -1" diffuse=".5 .5 .5" specular=".2 .2 .2" castshadow="true"/>
    <camera name="top" pos="0 -.56 .56" xyaxes="1 0 0 0 .74 .67" fovy="40"/>
    <geom name="table" type="box" size=".30 .30 .02" pos="0 0 -.02" material="wood" contype="1" conaffinity="0"/>
    <body name="red" mocap="true">
      <geom type="box" size=".04 .04 .02" material="red" contype="1" conaffinity="0" friction="1 .005 .0001"/>
    </body>
    <body name="blue" mocap="true">
      <geom type="box" size=".04 .04 .02" material="blue" contype="1" conaffinity="0" friction="1 .005 .0001"/>
    </body>
    <body name="hand" gravcomp="1">
      <joint name="hand_x" type="slide" axis="1 0 0" range="-.25 .25"/>
      <joint name="hand_y" type="slide" axis="0 1 0" range="-.25 .25"/>
      <joint name="hand_z" type="slide" axis="0 0 1" range="0 .3"/>
      <geom type="box" size=".055 .018 .012" pos="0 0 .064" mass=".4" material="hand" contype="0" conaffinity="0"/>
      <geom type="capsule" fromto="0 0 .08 0 0 .2" size=".014" mass=".1" material="hand" contype="0" conaffinity="0"/>
      <body name="right" gravcomp="1">
        <joint name="right" type="slide" axis="1 0 0" range="0 .04" armature=".05"/>
        <geom type="box" size=".006 .012 .032" pos=".006 0 .02" mass=".05" material="finger" contype="0"
              conaffinity="2" friction="1.5 .01 .0001"/>
      </body>
      <body name="left" gravcomp="1">
        <joint name="left" type="slide" axis="-1 0 0" range="0 .04" armature=".05"/>
        <geom type="box" size=".006 .012 .032" pos="-.006 0 .02" mass=".05" material="finger" contype="0"
              conaffinity="2" friction="1.5 .01 .0001"/>
      </body>
    </body>
    <body name="cube" pos="0 0 .02">
      <freejoint/>
      <geom name="cube" type="box" size=".02 .02 .02" mass=".05" material="cube" contype="2" conaffinity="1"
            friction="1 .005 .0001" condim="4"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="hand_x" kv="100" ctrlrange="-.8 .8"/>
    <velocity joint="hand_y" kv="100" ctrlrange="-.8 .8"/>
    <velocity joint="hand_z" kv="100" ctrlrange="-.8 .8"/>
    <position joint="right" kp="400" dampratio="1" ctrlrange="0 .04"/>
    <position joint="left" kp="400" dampratio="1" ctrlrange="0 .04"/>
  </actuator>
</mujoco>)";

  explicit PickAndPlace(const mjModel& model)
      : red_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "red")]),
        blue_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "blue")]) {}

  Goal reset(const mjModel&, mjData& data, SplitMix64& random, std::int32_t wanted) const {
    data.qpos[0] = random.uniform(-0.1, 0.1);
    data.qpos[1] = random.uniform(-0.15, 0.0);
    data.qpos[2] = random.uniform(0.12, 0.16);
    for (const int finger : {3, 4}) data.ctrl[finger] = data.qpos[finger] = open;
    data.qpos[cube] = random.uniform(-0.12, 0.12);
    data.qpos[cube + 1] = random.uniform(-0.15, -0.05);
    data.qpos[cube + 2] = half;
    const mjtNum yaw = random.uniform(-0.2, 0.2);
    data.qpos[cube + 3] = std::cos(yaw / 2);
    data.qpos[cube + 6] = std::sin(yaw / 2);
    const bool red_left = random.below(2) == 0;
    const auto drawn = static_cast<std::int32_t>(random.below(instructions.size()));
    const std::int32_t instruction = wanted < 0 ? drawn : wanted;
    for (const bool left : {true, false}) {
      mjtNum* stand = data.mocap_pos + 3 * (left == red_left ? red_ : blue_);
      stand[0] = left ? random.uniform(-0.16, -0.07) : random.uniform(0.07, 0.16);
      stand[1] = random.uniform(0.06, 0.15);
      stand[2] = stand_height / 2;
    }
    const mjtNum* goal = data.mocap_pos + 3 * (instruction == 0 ? red_ : blue_);
    return {goal[0], goal[1], instruction};
  }

  std::int32_t instruction(const Goal& goal) const { return goal.instruction; }

  void apply(const mjModel&, mjData& data, const Goal&, std::span<const float> action) const {
    for (int i = 0; i < 3; ++i)
      data.ctrl[i] = speed * static_cast<mjtNum>(action[static_cast<std::size_t>(i)]);
    data.ctrl[3] = data.ctrl[4] = open * (1 - static_cast<mjtNum>(action[3])) / 2;
  }

  bool success(const mjData& data, const Goal& goal) const {
    const mjtNum rest = stand_height + half;
    return off_goal(data, goal) < 0.03 && std::abs(data.qpos[cube + 2] - rest) < 0.006 &&
           std::min(data.qpos[3], data.qpos[4]) > half + 0.003 && mju_norm3(data.qvel + cube_speed) < 0.1;
  }

  /// Nearness of gripper to cube (0.3), cube to goal (0.5), and 0.2 when solved.
  float dense_reward(const mjData& data, const Goal& goal) const {
    const mjtNum reach = mju_dist3(data.qpos, data.qpos + cube);
    const mjtNum rest = stand_height + half - data.qpos[cube + 2];
    const mjtNum carry = std::hypot(off_goal(data, goal), rest);
    return static_cast<float>(0.3 * (1 - std::tanh(5 * reach)) + 0.5 * (1 - std::tanh(5 * carry)) +
                              (success(data, goal) ? 0.2 : 0.0));
  }

  void observe(const mjData& data, const Goal&, std::span<float> out) const {
    std::size_t at = 0;
    auto put = [&](mjtNum value) { out[at++] = static_cast<float>(value); };
    const mjtNum *hand = data.qpos, *box = data.qpos + cube, *turn = box + 3;
    auto put_point = [&](const mjtNum* point) {
      put(point[0] / 0.25);
      put(point[1] / 0.25);
      put((point[2] - 0.1) / 0.1);
    };
    put_point(hand);
    for (int i = 0; i < 3; ++i) put(data.qvel[i] / speed);
    put((data.qpos[3] + data.qpos[4]) / open - 1);
    put((data.qvel[3] + data.qvel[4]) / 2);
    put_point(box);
    for (int i = 0; i < 3; ++i) put((box[i] - hand[i]) / 0.25);
    for (int i = 0; i < 3; ++i) put(data.qvel[cube_speed + i] / speed);
    const mjtNum yaw = std::atan2(2 * (turn[0] * turn[3] + turn[1] * turn[2]),
                                  1 - 2 * (turn[2] * turn[2] + turn[3] * turn[3]));
    put(std::cos(4 * yaw));
    put(std::sin(4 * yaw));
    for (const int stand : {red_, blue_}) {
      put(data.mocap_pos[3 * stand] / 0.25);
      put(data.mocap_pos[3 * stand + 1] / 0.25);
    }
  }

  /// Over the cube, down, close, up, over the stand, down, open; which of these follows from the state alone.
  void expert(const mjModel&, const mjData& data, const Goal& goal, std::span<float> action) const {
    const mjtNum *hand = data.qpos, *box = data.qpos + cube;
    const mjtNum to_cube = std::hypot(box[0] - hand[0], box[1] - hand[1]);
    const mjtNum opening = (data.qpos[3] + data.qpos[4]) / 2;
    const bool around = to_cube < 0.012 && std::abs(hand[2] - box[2]) < 0.012;
    const bool held = around && opening < half + 0.0015;
    const mjtNum to_goal = off_goal(data, goal);
    const mjtNum rest = stand_height + half;
    mjtNum wanted[3] = {box[0], box[1], box[2]};
    mjtNum grip = -1;
    if (to_goal < 0.02 && box[2] < rest + 0.004 && box[2] > rest - 0.01) {
      mju_copy3(wanted, hand);  // let go
    } else if (held) {
      grip = 1;
      wanted[2] = rest + 0.025;
      if (box[2] > rest + 0.005 || to_goal > 0.12) {
        wanted[0] = hand[0] + goal.x - box[0];
        wanted[1] = hand[1] + goal.y - box[1];
      }
      if (to_goal < 0.012) wanted[2] = rest - 0.002;
    } else if (around) {
      grip = 1;
    } else if (to_cube > 0.012) {
      wanted[2] = std::max(box[2] + 0.06, to_cube > 0.04 ? hand[2] : 0.0);
    }
    mjtNum most = 1;
    mjtNum command[3];
    for (int i = 0; i < 3; ++i) {
      command[i] = (wanted[i] - hand[i]) / (speed * 0.05);
      most = std::max(most, std::abs(command[i]));
    }
    for (int i = 0; i < 3; ++i) action[static_cast<std::size_t>(i)] = static_cast<float>(command[i] / most);
    action[3] = static_cast<float>(grip);
  }

 private:
  static constexpr int cube = 5;                // its first position; 5 of the gripper come before
  static constexpr int cube_speed = 5;          // its first velocity
  static constexpr mjtNum half = 0.02;          // half of the cube's edge, metres
  static constexpr mjtNum stand_height = 0.04;  // metres
  static constexpr mjtNum open = 0.036;         // a finger's distance from the middle when open
  static constexpr mjtNum speed = 0.8;          // m/s at action 1

  static mjtNum off_goal(const mjData& data, const Goal& goal) {
    return std::hypot(data.qpos[cube] - goal.x, data.qpos[cube + 1] - goal.y);
  }

  int red_, blue_;
};

static_assert(MujocoTask<PickAndPlace>);

}  // namespace dvla
