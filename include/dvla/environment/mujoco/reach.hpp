// Reach: a 4-joint arm brings its tip to the ball that the instruction names. An action moves the tip; damped
// least squares turn that into joint targets for the position servos (as ManiSkill's pd_ee_delta_pos). No
// contacts. Chance gives the arm's pose, the balls' places and which is red. 10 x 5 ms per control step.
//
// Action [3]: displacement of the tip x, y, z; 1 is 3 cm.
// Proprioception [17]: joint angles (4) | joint speeds (4) | tip x y z | red x y z | blue x y z.
#pragma once

#include <array>
#include <cmath>

#include "dvla/environment/mujoco/task.hpp"

namespace dvla {

struct Reach {
  static constexpr std::string_view name = "Reach";
  static constexpr std::array<std::string_view, 2> instructions = {"touch the red ball",
                                                                   "touch the blue ball"};
  static constexpr int actions = 3;
  static constexpr int proprioception = 17;
  static constexpr int substeps = 10;
  static constexpr int advised_horizon = 16;

  struct Goal {
    mjtNum position[3] = {};
    std::int32_t instruction = 0;
  };

  static constexpr std::string_view mjcf = R"(
<mujoco model="reach">
  <compiler angle="radian"/>
  <option timestep="0.005" integrator="implicitfast"><flag contact="disable"/></option>
  <size memory="64K"/>
  <visual><headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular=".1 .1 .1"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".93 .95 .97" rgb2=".75 .80 .86" width="64" height="64"/>
    <texture name="wood" type="2d" builtin="checker" rgb1=".86 .83 .77" rgb2=".83 .80 .74" width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="6 6" specular=".1" shininess=".1"/>
    <material name="link" rgba=".92 .93 .94 1" specular=".4" shininess=".5"/>
    <material name="joint" rgba=".22 .25 .30 1" specular=".6" shininess=".7"/>
    <material name="red" rgba=".86 .22 .20 1" specular=".4" shininess=".6"/>
    <material name="blue" rgba=".16 .42 .82 1" specular=".4" shininess=".6"/>
  </asset>
  <default><joint armature=".01"/><position kp="200" dampratio="1" inheritrange="1"/></default>
  <worldbody>
    <light pos="-.2 -.4 1.4" dir=".3 .3 -1" diffuse=".5 .5 .5" specular=".2 .2 .2" castshadow="true"/>
    <camera name="top" pos=".95 -.62 .72" xyaxes=".69 .72 0 -.36 .34 .87" fovy="40"/>
    <geom name="table" type="box" size=".42 .34 .02" pos=".16 0 -.02" material="wood"/>
    <body name="red" mocap="true"><geom type="sphere" size=".022" material="red"/></body>
    <body name="blue" mocap="true"><geom type="sphere" size=".022" material="blue"/></body>
    <body name="base" gravcomp="1">
      <joint name="yaw" axis="0 0 1" range="-1.8 1.8"/>
      <geom type="cylinder" fromto="0 0 0 0 0 .06" size=".05" mass="1" material="joint"/>
      <geom type="capsule" fromto="0 0 .05 0 0 .1" size=".028" mass=".3" material="link"/>
      <body name="upper" pos="0 0 .1" gravcomp="1">
        <joint name="shoulder" axis="0 1 0" range="-.6 1.9"/>
        <geom type="cylinder" fromto="0 -.034 0 0 .034 0" size=".03" mass=".2" material="joint"/>
        <geom type="capsule" fromto="0 0 0 0 0 .2" size=".022" mass=".3" material="link"/>
        <body name="fore" pos="0 0 .2" gravcomp="1">
          <joint name="elbow" axis="0 1 0" range="0 2.7"/>
          <geom type="cylinder" fromto="0 -.028 0 0 .028 0" size=".025" mass=".2" material="joint"/>
          <geom type="capsule" fromto="0 0 0 0 0 .2" size=".018" mass=".2" material="link"/>
          <body name="hand" pos="0 0 .2" gravcomp="1">
            <joint name="wrist" axis="0 1 0" range="-1.8 1.8"/>
            <geom type="cylinder" fromto="0 -.022 0 0 .022 0" size=".02" mass=".1" material="joint"/>
            <geom type="capsule" fromto="0 0 0 0 0 .09" size=".012" mass=".1" material="link"/>
            <geom type="sphere" pos="0 0 .1" size=".014" mass=".02" rgba=".96 .72 .22 1"/>
            <site name="tip" pos="0 0 .1" size=".004" rgba="0 0 0 0"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position joint="yaw"/><position joint="shoulder"/><position joint="elbow"/><position joint="wrist"/>
  </actuator>
</mujoco>)";

  explicit Reach(const mjModel& model)
      : tip_(detail::mujoco_id(model, mjOBJ_SITE, "tip")),
        red_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "red")]),
        blue_(model.body_mocapid[detail::mujoco_id(model, mjOBJ_BODY, "blue")]) {}

  Goal reset(const mjModel&, mjData& data, SplitMix64& random, std::int32_t wanted) const {
    constexpr mjtNum home[joints] = {0, 0.3, 1.4, 0.6};
    for (int i = 0; i < joints; ++i) data.ctrl[i] = data.qpos[i] = home[i] + random.uniform(-0.2, 0.2);
    const bool red_left = random.below(2) == 0;
    const auto drawn = static_cast<std::int32_t>(random.below(instructions.size()));
    const std::int32_t instruction = wanted < 0 ? drawn : wanted;
    for (const bool left : {true, false}) {
      mjtNum* ball = data.mocap_pos + 3 * (left == red_left ? red_ : blue_);
      ball[0] = random.uniform(0.20, 0.36);
      ball[1] = left ? random.uniform(0.05, 0.20) : random.uniform(-0.20, -0.05);
      ball[2] = random.uniform(0.06, 0.30);
    }
    Goal goal;
    goal.instruction = instruction;
    mju_copy3(goal.position, data.mocap_pos + 3 * (instruction == 0 ? red_ : blue_));
    return goal;
  }

  std::int32_t instruction(const Goal& goal) const { return goal.instruction; }

  /// Joint targets = angles + J^T (J J^T + damping^2)^-1 displacement.
  void apply(const mjModel& model, mjData& data, const Goal&, std::span<const float> action) const {
    mjtNum jacobian[3 * joints], normal[9], wanted[3];
    mj_comPos(&model, &data);
    mj_jacSite(&model, &data, jacobian, nullptr, tip_);
    for (int i = 0; i < 3; ++i) wanted[i] = step * static_cast<mjtNum>(action[static_cast<std::size_t>(i)]);
    mju_mulMatMatT(normal, jacobian, jacobian, 3, joints, 3);
    for (int i = 0; i < 3; ++i) normal[4 * i] += damping * damping;
    mju_cholFactor(normal, 3, 0);
    mju_cholSolve(wanted, normal, wanted, 3);
    mjtNum turn[joints];
    mju_mulMatTVec(turn, jacobian, wanted, 3, joints);
    for (int i = 0; i < joints; ++i) data.ctrl[i] = data.qpos[i] + turn[i];
  }

  bool success(const mjData& data, const Goal& goal) const { return distance(data, goal) < radius; }
  float dense_reward(const mjData& data, const Goal& goal) const {
    return static_cast<float>(1 - std::tanh(5 * distance(data, goal)));
  }

  void observe(const mjData& data, const Goal&, std::span<float> out) const {
    std::size_t at = 0;
    auto put = [&](mjtNum value) { out[at++] = static_cast<float>(value); };
    for (int i = 0; i < joints; ++i) put((data.qpos[i] - middle[i]) / half_range[i]);
    for (int i = 0; i < joints; ++i) put(data.qvel[i] / top_speed);
    for (const mjtNum* point :
         {data.site_xpos + 3 * tip_, data.mocap_pos + 3 * red_, data.mocap_pos + 3 * blue_}) {
      put((point[0] - 0.25) / 0.25);
      put(point[1] / 0.3);
      put((point[2] - 0.2) / 0.2);
    }
  }

  /// Straight to the ball.
  void expert(const mjModel&, const mjData& data, const Goal& goal, std::span<float> action) const {
    const mjtNum* tip = data.site_xpos + 3 * tip_;
    mjtNum most = step;
    for (int i = 0; i < 3; ++i) most = std::max(most, std::abs(goal.position[i] - tip[i]));
    for (int i = 0; i < 3; ++i)
      action[static_cast<std::size_t>(i)] = static_cast<float>((goal.position[i] - tip[i]) / most);
  }

 private:
  static constexpr int joints = 4;
  static constexpr mjtNum step = 0.03;     // metres per control step at action 1
  static constexpr mjtNum damping = 0.05;  // of the least squares
  static constexpr mjtNum radius = 0.025;  // tip to the ball's centre when solved
  static constexpr mjtNum top_speed = 4;   // rad/s at observation 1
  static constexpr mjtNum middle[joints] = {0, 0.65, 1.35, 0};
  static constexpr mjtNum half_range[joints] = {1.8, 1.25, 1.35, 1.8};

  mjtNum distance(const mjData& data, const Goal& goal) const {
    return mju_dist3(data.site_xpos + 3 * tip_, goal.position);
  }

  int tip_, red_, blue_;
};

static_assert(MujocoTask<Reach>);

}  // namespace dvla
