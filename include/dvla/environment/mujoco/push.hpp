// Push: a U-shaped tool pushes a cube across a table onto the disc that the instruction names.
// Planar: the tool slides in x and y (velocity control), the cube slides and turns; its friction on the table
// is viscous joint damping, so the only contacts are between tool and cube. Chance gives the start of tool
// and cube, both discs' places and which one is red. 10 x 5 ms per control step; solvable in 16 control
// steps.
//
// Action [2]: tool velocity x, y; 1 is 0.6 m/s.
// Proprioception [15]: tool x y | tool velocity x y | cube x y | cube velocity x y | cube yaw as cos 4a, sin
// 4a (a cube looks the same after a quarter turn) | red x y | blue x y | 1 if the cube is touched.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "dvla/environment/mujoco/task.hpp"

namespace dvla {

struct Push {
  static constexpr std::string_view name = "Push";
  static constexpr std::array<std::string_view, 2> instructions = {"push the cube to the red target",
                                                                   "push the cube to the blue target"};
  static constexpr int actions = 2;
  static constexpr int proprioception = 15;
  static constexpr int substeps = 10;
  static constexpr int advised_horizon = 16;

  struct Goal {
    mjtNum x = 0, y = 0;  ///< of the disc that the instruction names
    std::int32_t instruction = 0;
  };

  static constexpr std::string_view mjcf = R"(
<mujoco model="push">
  <compiler angle="radian"/>
  <option timestep="0.005" integrator="implicitfast"/>
  <size memory="64K"/>
  <visual>
    <headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular=".1 .1 .1"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".93 .95 .97" rgb2=".75 .80 .86" width="64" height="64"/>
    <texture name="wood" type="2d" builtin="checker" rgb1=".86 .83 .77" rgb2=".83 .80 .74" width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="6 6" specular=".1" shininess=".1"/>
    <material name="cube" rgba=".96 .72 .22 1" specular=".3" shininess=".4"/>
    <material name="tool" rgba=".22 .25 .30 1" specular=".6" shininess=".7"/>
    <material name="red" rgba=".86 .22 .20 1"/>
    <material name="blue" rgba=".16 .42 .82 1"/>
  </asset>
  <worldbody>
    <light pos="-.3 -.3 1.2" dir=".25 .25 -1" diffuse=".5 .5 .5" specular=".2 .2 .2" castshadow="true"/>
    <camera name="top" pos="0 -.36 .66" xyaxes="1 0 0 0 .894 .448" fovy="36"/>
    <geom name="table" type="box" size=".34 .34 .02" pos="0 0 -.02" material="wood" contype="0" conaffinity="0"/>
    <body name="red" mocap="true">
      <geom type="cylinder" size=".04 .001" material="red" contype="0" conaffinity="0"/>
      <geom type="cylinder" size=".028 .0015" rgba=".95 .80 .78 1" contype="0" conaffinity="0"/>
    </body>
    <body name="blue" mocap="true">
      <geom type="cylinder" size=".04 .001" material="blue" contype="0" conaffinity="0"/>
      <geom type="cylinder" size=".028 .0015" rgba=".78 .85 .95 1" contype="0" conaffinity="0"/>
    </body>
    <body name="tool" pos="0 0 .03">
      <joint name="tool_x" type="slide" axis="1 0 0" range="-.3 .3" limited="true"/>
      <joint name="tool_y" type="slide" axis="0 1 0" range="-.3 .3" limited="true"/>
      <geom name="tool" type="box" size=".048 .006 .02" mass=".1" friction=".4 .005 .0001" material="tool"/>
      <geom name="left prong" type="box" size=".006 .02 .02" pos="-.042 .02 0" mass=".05" friction=".4 .005 .0001" material="tool"/>
      <geom name="right prong" type="box" size=".006 .02 .02" pos=".042 .02 0" mass=".05" friction=".4 .005 .0001" material="tool"/>
      <geom type="capsule" fromto="0 0 .01 0 0 .11" size=".009" mass="0" material="tool" contype="0" conaffinity="0"/>
    </body>
    <body name="cube" pos="0 0 .03">
      <joint name="cube_x" type="slide" axis="1 0 0" damping="3" range="-.33 .33" limited="true"/>
      <joint name="cube_y" type="slide" axis="0 1 0" damping="3" range="-.33 .33" limited="true"/>
      <joint name="cube_yaw" type="hinge" axis="0 0 1" damping=".003"/>
      <geom name="cube" type="box" size=".03 .03 .03" mass=".1" friction=".4 .005 .0001" material="cube"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="tool_x" kv="20" forcerange="-20 20" ctrlrange="-.6 .6"/>
    <velocity joint="tool_y" kv="20" forcerange="-20 20" ctrlrange="-.6 .6"/>
  </actuator>
</mujoco>)";

  explicit Push(const mjModel& model)
      : red_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "red")]),
        blue_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "blue")]) {}

  Goal reset(const mjModel&, mjData& data, SplitMix64& random, std::int32_t wanted) const {
    data.qpos[0] = random.uniform(-0.06, 0.06);
    data.qpos[1] = random.uniform(-0.17, -0.13);
    data.qpos[2] = random.uniform(-0.025, 0.025);
    data.qpos[3] = random.uniform(-0.06, -0.02);
    data.qpos[4] = random.uniform(-0.15, 0.15);
    const mjtNum left[2] = {random.uniform(-0.09, -0.05), random.uniform(0.05, 0.1)};
    const mjtNum right[2] = {random.uniform(0.05, 0.09), random.uniform(0.05, 0.1)};
    const bool red_left = random.below(2) == 0;
    const auto drawn = static_cast<std::int32_t>(random.below(instructions.size()));
    const std::int32_t instruction = wanted < 0 ? drawn : wanted;
    place(data, red_, red_left ? left : right);
    place(data, blue_, red_left ? right : left);
    const mjtNum* goal = data.mocap_pos + 3 * (instruction == 0 ? red_ : blue_);
    return {goal[0], goal[1], instruction};
  }

  std::int32_t instruction(const Goal& goal) const { return goal.instruction; }

  void apply(const mjModel&, mjData& data, const Goal&, std::span<const float> action) const {
    data.ctrl[0] = speed * static_cast<mjtNum>(action[0]);
    data.ctrl[1] = speed * static_cast<mjtNum>(action[1]);
  }

  bool success(const mjData& data, const Goal& goal) const { return distance(data, goal) < radius; }

  /// Nearness of tool to cube (0.2) and of cube to goal (0.8).
  float dense_reward(const mjData& data, const Goal& goal) const {
    const mjtNum reach = std::hypot(data.qpos[0] - data.qpos[2], data.qpos[1] - data.qpos[3]);
    return static_cast<float>(0.2 * (1 - std::tanh(5 * reach)) +
                              0.8 * (1 - std::tanh(5 * distance(data, goal))));
  }

  void observe(const mjData& data, const Goal&, std::span<float> out) const {
    const mjtNum* red = data.mocap_pos + 3 * red_;
    const mjtNum* blue = data.mocap_pos + 3 * blue_;
    const mjtNum values[proprioception] = {
        data.qpos[0] / extent,      data.qpos[1] / extent, data.qvel[0] / speed,
        data.qvel[1] / speed,       data.qpos[2] / extent, data.qpos[3] / extent,
        data.qvel[2] / speed,       data.qvel[3] / speed,  std::cos(4 * data.qpos[4]),
        std::sin(4 * data.qpos[4]), red[0] / extent,       red[1] / extent,
        blue[0] / extent,           blue[1] / extent,      data.ncon > 0 ? 1.0 : 0.0};
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(values[i]);
  }

  /// Lines up below the cube, takes it between the prongs, and carries it to the goal.
  void expert(const mjModel&, const mjData& data, const Goal& goal, std::span<float> action) const {
    const mjtNum ahead = data.qpos[3] - data.qpos[1];  // cube from tool, metres; 0.036 when they touch
    const mjtNum aside = data.qpos[2] - data.qpos[0];
    mjtNum x = aside, y = ahead - 0.08;  // wanted displacement: below the cube
    if (std::abs(aside) < 0.006 || (ahead < 0.06 && std::abs(aside) < 0.03)) {
      const bool held = ahead < 0.042;
      x = held ? goal.x - data.qpos[2] : aside;
      y = held ? goal.y - data.qpos[3] : ahead - 0.03;
    }
    const mjtNum step = speed * 0.05;
    const mjtNum most = std::max({std::abs(x) / step, std::abs(y) / step, 1.0});
    action[0] = detail::clamp_unit(x / step / most);
    action[1] = detail::clamp_unit(y / step / most);
  }

 private:
  static constexpr mjtNum speed = 0.6;    // m/s at action 1
  static constexpr mjtNum extent = 0.2;   // metres at observation 1
  static constexpr mjtNum radius = 0.04;  // cube's centre lies on the disc when solved

  static void place(mjData& data, int mocap, const mjtNum (&xy)[2]) {
    data.mocap_pos[3 * mocap] = xy[0];
    data.mocap_pos[3 * mocap + 1] = xy[1];
    data.mocap_pos[3 * mocap + 2] = 0.001;
  }
  static mjtNum distance(const mjData& data, const Goal& goal) {
    return std::hypot(data.qpos[2] - goal.x, data.qpos[3] - goal.y);
  }

  int red_, blue_;
};

static_assert(MujocoTask<Push>);

}  // namespace dvla
