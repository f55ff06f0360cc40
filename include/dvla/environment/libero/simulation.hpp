// A scene of LIBERO being played: MuJoCo's state of it, what the controller and the gripper aim at, and what robosuite would have seen
// last. Reference: robosuite 1.4.0's environments/base.py (step, reset) and LIBERO's envs/env_wrapper.py (set_init_state);
// docs/libero.md says what they do, where, and what here is otherwise.
//
// A control step is 25 physics steps of 2 ms; before each the controller makes torques. What an action is answered with was seen
// when robosuite looks: poses and frames as before the 24th physics step, the fingers behind it. Whether the goal holds is
// asked behind the last.
//
// The original evaluates the model three times a physics step: a forward before the controller, one that the controller asks for, and
// the step's own. What the first two leave for the third is the solver's start, which is to the last bits another where they are left
// out, and contacts amplify that. Here positions and speeds are evaluated once, and constraints solved twice: before the controller, with
// the torques of the step before, and behind it (docs/libero.md, agreement).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/environment/libero/scene.hpp"

namespace dvla::libero {

inline constexpr int actions = 7;         ///< position (3), orientation (3), gripper; 1 closes it
inline constexpr int proprioception = 8;  ///< grip site (m), hand's axis times angle (rad), fingers (m)

/// robosuite's quat2axisangle, of a quaternion wxyz: axis times angle, which lies in [0, 2 pi].
inline void axis_angle(const mjtNum quaternion[4], mjtNum turn[3]) {
  const mjtNum w = std::clamp(quaternion[0], -1.0, 1.0), sine = std::sqrt(1 - w * w);
  for (int i = 0; i < 3; ++i) turn[i] = sine == 0 ? 0 : quaternion[1 + i] * 2 * std::acos(w) / sine;
}

/// One thread at a time. begin() and control() call MuJoCo, so they run where its errors are guarded.
class Simulation {
 public:
  /// In the model's default pose. `scene` and `pool`, of which `rows` such take their memory, must outlive this.
  Simulation(const Scene& scene, std::pmr::memory_resource& pool, std::int64_t rows)
      : scene_(&scene),
        model_(*scene.model),
        body_pos_(model_.body_pos, model_.body_pos + 3 * model_.nbody),
        body_quat_(model_.body_quat, model_.body_quat + 4 * model_.nbody),
        site_rgba_(model_.site_rgba, model_.site_rgba + 4 * model_.nsite),
        data_(detail::make_mujoco_data(model_, pool, rows)),
        shown_(detail::make_mujoco_data(with_arena(model_, std::size_t{1} << 20), pool, rows)),
        seen_(data_->qpos, data_->qpos + model_.nq) {
    model_.opt.disableflags |= mjDSBL_SENSOR;  // nothing reads them
    model_.body_pos = body_pos_.data();
    model_.body_quat = body_quat_.data();
    model_.site_rgba = site_rgba_.data();
  }
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  /// An episode, from a state [1 + nq + nv] (time, positions, speeds) with fixtures at `poses` [fixtures, 7], after so many control steps
  /// in which nothing is asked for and the gripper opens.
  void begin(std::span<const double> state, std::span<const double> poses, int settling) {
    mj_resetData(&model_, data_.get());
    for (std::size_t i = 0; i < scene_->fixtures.size(); ++i) {
      std::copy_n(poses.begin() + static_cast<std::ptrdiff_t>(7 * i), 3,
                  body_pos_.begin() + 3 * scene_->fixtures[i]);
      std::copy_n(poses.begin() + static_cast<std::ptrdiff_t>(7 * i + 3), 4,
                  body_quat_.begin() + 4 * scene_->fixtures[i]);
    }
    data_->time = state[0];
    std::copy_n(state.begin() + 1, model_.nq, data_->qpos);
    std::copy_n(state.begin() + 1 + model_.nq, model_.nv, data_->qvel);
    arm_ = scene_->rest;
    fingers_ = {};
    mj_forward(&model_, data_.get());
    light();
    look_at_poses();  // fresh in all
    look_at_fingers();
    constexpr double waiting[actions] = {0, 0, 0, 0, 0, 0, -1};
    for (int i = 0; i < settling; ++i) control(waiting);
  }

  /// What a control step leaves to the one after it.
  struct Behind {
    std::span<const double> positions, speeds, controls;
    std::span<const double> accelerations;  ///< the solver's start; empty: 0
    std::span<const double> orientation;    ///< aimed at, [3, 3]
    std::span<const double> fingers;        ///< targets
  };
  /// Goes on behind a control step of an episode that began in this: of a record, say.
  void put(const Behind& behind) {
    std::ranges::copy(behind.positions, data_->qpos);
    std::ranges::copy(behind.speeds, data_->qvel);
    std::ranges::copy(behind.controls, data_->ctrl);
    std::fill_n(data_->qacc_warmstart, model_.nv, 0);
    std::ranges::copy(behind.accelerations, data_->qacc_warmstart);
    std::ranges::copy(behind.orientation, arm_.goal_orientation.begin());
    std::ranges::copy(behind.fingers, fingers_.begin());
    arm_.measured = false;
    light();
  }

  /// One control step. Actions are clipped to [-1, 1]; of the gripper's only the sign counts.
  void control(std::span<const double> action) {
    for (int i = 1; i <= scene_->substeps; ++i) {
      mj_step1(&model_, data_.get());
      mj_fwdActuation(&model_, data_.get());
      mj_fwdAcceleration(&model_, data_.get());
      mj_fwdConstraint(&model_, data_.get());
      if (i == 1) scene_->arm.aim(model_, *data_, arm_, action.first(6));
      scene_->arm.drive(model_, *data_, arm_);
      scene_->fingers.drive(model_, *data_, fingers_, action[6]);
      if (i == seen_before) look_at_poses();
      mj_step2(&model_, data_.get());
      if (i == seen_before) look_at_fingers();
    }
    light();
  }

  /// Back to the model's default pose.
  void clear() {
    mj_resetData(&model_, data_.get());
    mj_forward(&model_, data_.get());
    std::copy_n(data_->qpos, model_.nq, seen_.begin());
    felt_ = {};
  }

  bool solved() const { return scene_->goal.holds(*data_); }
  /// As LIBERO's users make them of what the original observes.
  const std::array<float, proprioception>& felt() const { return felt_; }
  const Scene& scene() const { return *scene_; }
  const mjModel& model() const { return model_; }
  const mjData& data() const { return *data_; }
  const OscPose::State& arm() const { return arm_; }
  const Fingers::State& fingers() const { return fingers_; }
  /// Alphas of the scene's burners, as the next look sees them.
  std::span<const float> lit() const { return lit_; }

  /// What frames show: the positions that were seen, with poses of bodies, cameras and lights. Throws Error.
  mjData& seen() {
    std::ranges::copy(seen_, shown_->qpos);
    auto call = [&] {
      mj_kinematics(&model_, shown_.get());
      mj_comPos(&model_, shown_.get());
      mj_camlight(&model_, shown_.get());
    };
    if (!detail::MujocoGuard::run(call))
      throw Error("MuJoCo cannot show a scene: ", detail::MujocoGuard::error());
    return *shown_;
  }

 private:
  static mjModel with_arena(mjModel model, std::size_t bytes) {
    model.narena = static_cast<decltype(model.narena)>(bytes);
    return model;
  }
  static constexpr int seen_before = 24;  // this physics step of a control step

  void look_at_poses() {
    std::copy_n(data_->qpos, model_.nq, seen_.begin());
    // A burner is seen as it was behind the step before.
    for (std::size_t i = 0; i < lit_.size(); ++i) site_rgba_[alpha(i)] = lit_[i];
    mjtNum turn[3];
    axis_angle(data_->xquat + 4 * scene_->hand, turn);
    for (int i = 0; i < 3; ++i) {
      felt_[static_cast<std::size_t>(i)] = static_cast<float>(data_->site_xpos[3 * scene_->arm.site() + i]);
      felt_[static_cast<std::size_t>(3 + i)] = static_cast<float>(turn[i]);
    }
  }
  void look_at_fingers() {
    for (std::size_t i = 0; i < Fingers::count; ++i)
      felt_[6 + i] = static_cast<float>(data_->qpos[scene_->fingers.position(i)]);
  }
  /// Which burners the next look sees.
  void light() {
    for (std::size_t i = 0; i < lit_.size(); ++i) {
      const Scene::Lit& burner = scene_->burners[i];
      lit_[i] = burner.on(*data_) ? burner.alpha_on : burner.alpha_off;
    }
  }
  std::size_t alpha(std::size_t burner) const {
    return static_cast<std::size_t>(4 * scene_->burners[burner].site + 3);
  }

  const Scene* scene_;
  mjModel model_;  // the scene's, but for the three below, which a reset or a burner changes
  std::vector<mjtNum> body_pos_, body_quat_;
  std::vector<float> site_rgba_;
  detail::MujocoPointer<mjData> data_, shown_;
  OscPose::State arm_;
  Fingers::State fingers_{};
  std::array<float, proprioception> felt_{};
  std::vector<mjtNum> seen_;                                             // positions
  std::vector<float> lit_ = std::vector<float>(scene_->burners.size());  // alphas behind the last step
};

}  // namespace dvla::libero
