// A scripted expert for LIBERO's tasks that are one thing put on, or into, another: over the thing, down, close, up, over the place,
// down, open. Where it is in that follows from the state alone (poses, contacts, what the fingers are driven to), so it takes up again
// what noise, or a slip, undid. Of LIBERO nothing is taken: the original has none but people's demonstrations.
//
// Heights are found from the boxes about geoms: what lies between the thing and its place is passed over.
#pragma once

#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dvla/environment/libero/goal.hpp"
#include "dvla/environment/libero/osc_pose.hpp"

namespace dvla::libero {

/// Immutable once made; rows on different threads share it.
class Expert {
 public:
  static constexpr std::size_t fingers = 2;
  /// `rest`: of the arm, whose orientation it keeps. Of the fingers: where their positions are, and their motors. `data` is forwarded.
  Expert(const mjModel& model, const mjData& data, const Goal& goal, const OscPose& arm,
         const OscPose::State& rest, const std::array<int, fingers>& positions,
         const std::array<int, fingers>& motors)
      : places_(goal.places()),
        site_(arm.site()),
        robot_(model.body_rootid[model.site_bodyid[site_]]),
        upright_(rest.goal_orientation),
        position_(positions),
        motor_(motors),
        finger_of_(static_cast<std::size_t>(model.ngeom)) {
    for (std::size_t i = 0; i < fingers; ++i) {
      const auto joint =
          std::find(model.jnt_qposadr, model.jnt_qposadr + model.njnt, position_[i]) - model.jnt_qposadr;
      for (int geom = 0; geom < model.ngeom; ++geom)
        for (int body = model.geom_bodyid[geom]; body > 0; body = model.body_parentid[body])
          if (body == model.jnt_bodyid[joint])
            finger_of_[static_cast<std::size_t>(geom)] = static_cast<std::uint8_t>(1 + i);
      if (i == 0) mju_mulMatTVec(axis_.data(), data.site_xmat + 9 * site_, data.xaxis + 3 * joint, 3, 3);
    }
    if (goal.moves_joints())
      why_not_ = "its goal asks for a joint to be moved";
    else if (std::ranges::any_of(places_, &Goal::Place::opens))
      why_not_ = "its goal is in a part that has to be opened";
  }

  /// Empty, or why it has no skill for the task.
  const std::string& why_not() const { return why_not_; }

  /// The next action [7], in [-1, 1]. `data` is as a control step, or a beginning, has left it.
  void act(const mjModel& model, const mjData& data, std::span<float> action) const {
    const auto open =
        std::ranges::find_if(places_, [&](const Goal::Place& each) { return !Goal::there(each, data); });
    const Vector hand = at(data.site_xpos + 3 * site_);
    Wish wish{hand, upright_};
    if (open == places_.end())
      wish.position[2] += clearance;  // it is done
    else if (held(model, data, open->thing))
      carry(model, data, *open, wish);
    else
      approach(model, data, open->thing, wish);

    mjtNum command[3], most = 1, turn[3];
    for (std::size_t i = 0; i < 3; ++i) {
      command[i] = gain * (wish.position[i] - hand[i]) / reach;
      most = std::max(most, std::abs(command[i]) / wish.speed);
    }
    OscPose::turn_between(data.site_xmat + 9 * site_, wish.orientation.data(), turn);
    for (std::size_t i = 0; i < 3; ++i) {
      action[i] = static_cast<float>(command[i] / most);
      action[3 + i] = static_cast<float>(std::clamp(2 * gain * turn[i] / turning, -1.0, 1.0));
    }
    action[6] = wish.closed ? 1 : -1;
  }

 private:
  using Vector = std::array<mjtNum, 3>;
  using Matrix = std::array<mjtNum, 9>;
  struct Wish {
    Vector position;  ///< of the grip site
    Matrix orientation;
    bool closed = false;
    mjtNum speed = 1;  ///< at most so much of the largest action
  };
  struct Extent {
    mjtNum low = std::numeric_limits<mjtNum>::infinity(), high = -low;
    mjtNum width() const { return high - low; }
    mjtNum middle() const { return (low + high) / 2; }
  };

  // An action of 1 is so many metres and radians. What is held slips at 1.
  static constexpr mjtNum reach = 0.05, turning = 0.5, gain = 2, carrying = 0.6;
  // Metres from here on. The fingers open by 0.08; the grip site goes so far below a thing's top, and the least of that.
  static constexpr mjtNum graspable = 0.068, depth = 0.03, least_depth = 0.012, wall = 0.004;
  // Of the hand, from its grip site: the fingers' ends below, an open finger's far side, the palm's underside and half of its width.
  static constexpr mjtNum fingertips = 0.008, outside = 0.05, palm_above = 0.02, palm_half = 0.1;
  // From the robot's base; further off the arm is straight, and stays so.
  static constexpr mjtNum stretched = 0.74;
  // Over what is passed, and how near to be above a place before going down to it, by degrees over the funnel.
  static constexpr mjtNum clearance = 0.05, near = 0.012, funnel = 0.04;
  static constexpr Vector along_x = {1, 0, 0}, along_y = {0, 1, 0}, vertical = {0, 0, 1};

  static Vector at(const mjtNum* point) { return {point[0], point[1], point[2]}; }
  static mjtNum apart(const Vector& a, const Vector& b) { return std::hypot(a[0] - b[0], a[1] - b[1]); }
  static int root(const mjModel& model, int geom) { return model.body_rootid[model.geom_bodyid[geom]]; }
  static bool solid(const mjModel& model, int geom) {
    return (model.geom_contype[geom] != 0 || model.geom_conaffinity[geom] != 0) &&
           model.geom_type[geom] != mjGEOM_PLANE;
  }

  /// What the box about a geom takes up along a direction.
  static Extent extent_of_geom(const mjModel& model, const mjData& data, int geom, const Vector& direction) {
    const mjtNum *const box = model.geom_aabb + 6 * geom, *const turned = data.geom_xmat + 9 * geom;
    mjtNum own[3];
    mju_mulMatTVec(own, turned, direction.data(), 3, 3);
    const mjtNum middle = mju_dot3(direction.data(), data.geom_xpos + 3 * geom) + mju_dot3(own, box),
                 half = std::abs(own[0]) * box[3] + std::abs(own[1]) * box[4] + std::abs(own[2]) * box[5];
    return {middle - half, middle + half};
  }
  /// The same of all solid geoms below a root body.
  static Extent extent(const mjModel& model, const mjData& data, int body, const Vector& direction) {
    Extent all;
    for (int geom = 0; geom < model.ngeom; ++geom) {
      if (root(model, geom) != body || !solid(model, geom)) continue;
      const Extent one = extent_of_geom(model, data, geom, direction);
      all = {std::min(all.low, one.low), std::max(all.high, one.high)};
    }
    return all;
  }
  /// The top of what lies within `radius` of the way between two points, seen from above; `thing` and the robot apart.
  mjtNum top(const mjModel& model, const mjData& data, const Vector& from, const Vector& to, mjtNum radius,
             int thing) const {
    const int points = 1 + static_cast<int>(apart(from, to) / 0.02);
    mjtNum highest = -1;
    for (int geom = 0; geom < model.ngeom; ++geom) {
      if (const int body = root(model, geom); body == thing || body == robot_ || !solid(model, geom))
        continue;
      const mjtNum high = extent_of_geom(model, data, geom, vertical).high;
      if (high <= highest) continue;
      const mjtNum *const box = model.geom_aabb + 6 * geom, *const turned = data.geom_xmat + 9 * geom;
      mjtNum middle[3];
      mju_mulMatVec(middle, turned, box, 3, 3);
      mju_addTo3(middle, data.geom_xpos + 3 * geom);
      // Of the box's three axes the most upright one says nothing from above.
      int upright = 0;
      for (const int axis : {1, 2})
        if (std::abs(turned[6 + axis]) > std::abs(turned[6 + upright])) upright = axis;
      for (int i = 0; i <= points; ++i) {
        const mjtNum part = static_cast<mjtNum>(i) / points,
                     x = from[0] + part * (to[0] - from[0]) - middle[0],
                     y = from[1] + part * (to[1] - from[1]) - middle[1];
        bool over = true;
        for (int axis = 0; axis < 3; ++axis)
          over = over && (axis == upright ||
                          std::abs(x * turned[axis] + y * turned[3 + axis]) <= box[3 + axis] + radius);
        if (!over) continue;
        highest = high;
        break;
      }
    }
    return highest;
  }

  /// Whether both fingers touch it.
  bool held(const mjModel& model, const mjData& data, int thing) const {
    int touching = 0;
    for (int i = 0; i < data.ncon; ++i)
      for (const int side : {0, 1}) {
        const int one = data.contact[i].geom[side], other = data.contact[i].geom[1 - side];
        if (one >= 0 && other >= 0 && root(model, other) == thing)
          touching |= finger_of_[static_cast<std::size_t>(one)];
      }
    return touching == 3;
  }
  /// Metres between the fingers, as they are and as they are driven to be.
  mjtNum opening(const mjData& data) const {
    return std::abs(data.qpos[position_[0]]) + std::abs(data.qpos[position_[1]]);
  }
  mjtNum opening_wanted(const mjData& data) const {
    return std::abs(data.ctrl[motor_[0]]) + std::abs(data.ctrl[motor_[1]]);
  }

  /// The fingers' axis, and the hand, upright but turned about the vertical.
  Vector axis(mjtNum angle) const {
    Vector made;
    mju_mulMatVec(made.data(), turned(angle).data(), axis_.data(), 3, 3);
    return made;
  }
  Matrix turned(mjtNum angle) const {
    const mjtNum c = std::cos(angle), s = std::sin(angle), about[9] = {c, -s, 0, s, c, 0, 0, 0, 1};
    Matrix made;
    mju_mulMatMat(made.data(), about, upright_.data(), 3, 3, 3);
    return made;
  }

  /// How the hand takes a thing: about its middle where the fingers reach around it, else by its rim. Of the ways it may be turned,
  /// the first that has room for fingers and palm; where none has, that which has most, and as high as it asks for.
  Wish grasp(const mjModel& model, const mjData& data, int thing) const {
    const Extent x = extent(model, data, thing, along_x), y = extent(model, data, thing, along_y),
                 z = extent(model, data, thing, vertical);
    const Vector middle = {x.middle(), y.middle(), std::max(z.high - depth, (z.low + z.high) / 2)};
    constexpr mjtNum turn = mjPI / 12;
    constexpr std::array turns = {0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6};
    const bool around = std::ranges::any_of(
        turns, [&](int i) { return extent(model, data, thing, axis(i * turn)).width() <= graspable; });
    Wish best{middle, upright_};
    mjtNum least = std::numeric_limits<mjtNum>::infinity();
    for (const int i : turns)
      for (const int side : {1, -1}) {
        Vector outwards = axis(i * turn);
        mju_scl3(outwards.data(), outwards.data(), side);
        const mjtNum width = extent(model, data, thing, outwards).width(),
                     rim = around ? 0 : width / 2 - wall;
        if (around && (width > graspable || side < 0)) continue;
        const auto out = [&](mjtNum by) {
          return Vector{middle[0] + by * outwards[0], middle[1] + by * outwards[1], middle[2]};
        };
        const mjtNum rise = top(model, data, out(around ? -outside : rim), out(rim + outside), 0.012, thing) +
                            fingertips,
                     palm = top(model, data, out(rim - palm_half), out(rim + palm_half), 0.035, thing) -
                            palm_above,
                     blocked = std::max({rise - middle[2], palm - middle[2], 0.0});
        const mjtNum far = apart(out(rim), at(data.xpos + 3 * robot_)),
                     cost = blocked + 0.002 * std::abs(i) +
                            (around ? width / 2 : 0.05 * far + std::max(far - stretched, 0.0) / 2);
        if (cost >= least) continue;
        least = cost;
        best = {out(rim), turned(i * turn)};
        best.position[2] += std::min(blocked, std::max(z.high - least_depth - middle[2], 0.0));
      }
    return best;
  }

  void approach(const mjModel& model, const mjData& data, int thing, Wish& wish) const {
    const Vector hand = wish.position;
    const Wish aim = grasp(model, data, thing);
    wish.orientation = aim.orientation;
    const mjtNum off = apart(hand, aim.position), above = hand[2] - aim.position[2];
    const bool around = off < 0.025 && std::abs(above) < 0.02;
    const bool closing = opening_wanted(data) < opening(data) - 0.002;
    // Closed upon nothing, it opens before it closes again.
    if (around && (closing || (off < 1.5 * near && above < 0.01 && opening(data) > 0.07))) {
      wish.position = aim.position;
      wish.closed = true;
      return;
    }
    const mjtNum safe = std::max(aim.position[2] + depth + fingertips + 0.025,
                                 top(model, data, hand, aim.position, 0.05, robot_) + fingertips + 0.02);
    const mjtNum part = opening(data) < 0.07 && above > 0.02
                            ? 1
                            : std::clamp((off - (above < 0.03 ? 2 : 1) * near) / 0.015, 0.0, 1.0);
    const mjtNum height = aim.position[2] + part * (safe - aim.position[2]);
    const bool low = off > funnel + near && hand[2] < safe - 0.02;
    wish.position = low ? Vector{hand[0], hand[1], height} : Vector{aim.position[0], aim.position[1], height};
  }

  void carry(const mjModel& model, const mjData& data, const Goal::Place& place, Wish& wish) const {
    const Vector thing = at(data.xpos + 3 * place.thing), to = at(Goal::position(place, data));
    const mjtNum off = apart(thing, to), bottom = extent(model, data, place.thing, vertical).low;
    const mjtNum level = [&] {
      if (place.kind == Goal::Kind::on_region) return to[2] + place.size[2];
      const int other = place.kind == Goal::Kind::on_object
                            ? place.other
                            : model.body_rootid[model.site_bodyid[place.other]];
      return extent(model, data, other, vertical).high - (place.kind == Goal::Kind::in_region ? 0.03 : 0);
    }();
    // Upright, turned as it is.
    Vector now;
    mju_mulMatVec(now.data(), data.site_xmat + 9 * site_, axis_.data(), 3, 3);
    const Vector rest = axis(0), across = axis(mjPI / 2);
    wish.orientation =
        turned(std::atan2(mju_dot3(now.data(), across.data()), mju_dot3(now.data(), rest.data())));
    wish.closed = true;
    wish.speed = carrying;
    if (off < 0.02 && (bottom < level + 0.01 || Goal::touching(place, data))) {
      wish.closed = false;
      return;
    }
    if (opening_wanted(data) > 0.001) return;  // the grip is not firm yet
    const mjtNum safe = std::max(level, top(model, data, thing, to, 0.08, place.thing)) + clearance;
    const mjtNum part = std::clamp((off - near) / funnel, 0.0, 1.0);
    const mjtNum height = level + part * (safe - level);
    wish.position[2] += height - bottom;
    if (off > funnel + near && bottom < safe - 0.02) return;
    wish.position[0] += to[0] - thing[0];
    wish.position[1] += to[1] - thing[1];
  }

  std::vector<Goal::Place> places_;
  int site_, robot_;
  Matrix upright_;
  Vector axis_{};  // of the fingers, to the hand
  std::array<int, fingers> position_, motor_;
  std::vector<std::uint8_t> finger_of_;  // [geoms] 1 and 2 of the fingers
  std::string why_not_;
};

}  // namespace dvla::libero
