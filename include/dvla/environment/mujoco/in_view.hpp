// What of a MuJoCo scene a camera can see: the rest costs as much to draw, and changes no pixel. A shape is in view where its bounding
// box is not wholly behind one side of the camera's frustum, or where the scene's mirror shows it: MuJoCo draws the scene again for the
// first box or plane that reflects, and only where that is on the picture.
#pragma once

#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>

namespace dvla::detail {

class MujocoInView {
 public:
  /// Of a picture `width` to `height` of the scene that `scene` has, by its camera and flags, with these shapes. Nothing is left out where a light casts
  /// shadows while they are drawn, which what is not seen casts too, or where the camera has no perspective.
  MujocoInView(const mjvScene& scene, std::span<const mjvGeom> shapes, double width, double height) {
    const mjvGLCamera one = mjv_averageCamera(scene.camera, scene.camera + 1);
    bool shadows = false;
    for (int i = 0; i < scene.nlight; ++i) shadows = shadows || scene.lights[i].castshadow;
    if (one.orthographic || one.frustum_near <= 0 || (shadows && scene.flags[mjRND_SHADOW]) ||
        scene.enabletransform)
      return;
    for (std::size_t i = 0; i < 3; ++i) {
      at_[i] = one.pos[i];
      forward_[i] = one.forward[i];
      up_[i] = one.up[i];
    }
    right_ = {forward_[1] * up_[2] - forward_[2] * up_[1], forward_[2] * up_[0] - forward_[0] * up_[2],
              forward_[0] * up_[1] - forward_[1] * up_[0]};
    near_ = one.frustum_near;
    far_ = one.frustum_far;
    const double half = one.frustum_width > 0 ? one.frustum_width
                                              : 0.5 * width / height * (one.frustum_top - one.frustum_bottom);
    // Shares of the distance. A hundredth more than the picture: what is rounded here is not drawn less there.
    const double more = 0.01 * half;
    picture_ = {(one.frustum_center - half - more) / near_, (one.frustum_center + half + more) / near_,
                (one.frustum_bottom - more) / near_, (one.frustum_top + more) / near_};
    perspective_ = true;
    if (scene.flags[mjRND_REFLECTION]) look_for_mirror(shapes);
  }

  bool sees(const mjModel& model, const mjvGeom& shape) const {
    if (!perspective_) return true;
    const std::optional<Box> box = box_of(model, shape);
    return !box || within(corners(*box), picture_) || (mirror_ && within(mirrored(corners(*box)), portal_));
  }
  /// Whether the mirror of the scene is on the picture, so that it has to be drawn a second time.
  bool sees_mirror() const { return !perspective_ || mirror_; }

 private:
  using Point = std::array<double, 3>;
  struct Box {
    Point centre, half;  ///< in the shape's frame
    const mjvGeom* of;
  };
  struct Window {
    double left, right, bottom, top;  ///< of what is seen, as shares of the distance
  };

  static std::optional<Box> box_of(const mjModel& model, const mjvGeom& shape) {
    if (shape.objtype == mjOBJ_GEOM && shape.type != mjGEOM_PLANE && shape.type != mjGEOM_HFIELD &&
        shape.objid >= 0 && shape.objid < model.ngeom) {
      const mjtNum* const box = model.geom_aabb + 6 * shape.objid;
      return Box{{box[0], box[1], box[2]}, {box[3], box[4], box[5]}, &shape};
    }
    return std::nullopt;
  }
  static Point place(const mjvGeom& shape, const Point& p) {
    Point at{};
    for (std::size_t i = 0; i < 3; ++i)
      at[i] =
          shape.pos[i] + shape.mat[3 * i] * p[0] + shape.mat[3 * i + 1] * p[1] + shape.mat[3 * i + 2] * p[2];
    return at;
  }
  static std::array<Point, 8> corners(const Box& box) {
    std::array<Point, 8> all{};
    for (std::size_t i = 0; i < 8; ++i) {
      Point p{};
      for (std::size_t axis = 0; axis < 3; ++axis)
        p[axis] = box.centre[axis] + ((i >> axis) % 2 == 0 ? -1 : 1) * box.half[axis];
      all[i] = place(*box.of, p);
    }
    return all;
  }
  static double dot(const Point& a, const Point& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
  /// Right, up and forward of the camera.
  Point from_camera(const Point& p) const {
    const Point way{p[0] - at_[0], p[1] - at_[1], p[2] - at_[2]};
    return {dot(way, right_), dot(way, up_), dot(way, forward_)};
  }

  bool within(std::span<const Point> points, const Window& window) const {
    std::array<bool, 6> beyond;  // all points are, of each side
    beyond.fill(true);
    for (const Point& point : points) {
      const auto [x, y, z] = from_camera(point);
      const std::array<bool, 6> here = {x<window.left * z, x> window.right * z,
                                        y<window.bottom * z, y> window.top * z, z<near_, z> far_};
      for (std::size_t side = 0; side < beyond.size(); ++side) beyond[side] = beyond[side] && here[side];
    }
    return std::none_of(beyond.begin(), beyond.end(), [](bool each) { return each; });
  }

  /// As MuJoCo finds it: the first plane or box that reflects and is not seen through.
  void look_for_mirror(std::span<const mjvGeom> shapes) {
    for (const mjvGeom& shape : shapes) {
      const bool box = shape.type == mjGEOM_BOX;
      if (!(box || shape.type == mjGEOM_PLANE) || shape.reflectance <= 0 || shape.rgba[3] < 0.995f) continue;
      for (std::size_t i = 0; i < 3; ++i) normal_[i] = shape.mat[3 * i + 2];
      on_mirror_ = place(shape, {0, 0, box ? shape.size[2] : 0.0});
      const Point way{at_[0] - on_mirror_[0], at_[1] - on_mirror_[1], at_[2] - on_mirror_[2]};
      // A plane's back is drawn as one that is seen through, so that the next one may be the mirror.
      const bool behind = dot(way, normal_) < 0;
      if (behind && !box) continue;
      if (behind) return;
      mirror_ = true;
      portal_ = picture_;
      if (box || (shape.size[0] > 0 && shape.size[1] > 0)) look_through(shape, box ? shape.size[2] : 0);
      return;
    }
  }
  /// The part of the picture on which a box's upper side is, or a plane that ends.
  void look_through(const mjvGeom& mirror, double height) {
    std::array<Point, 4> side{};
    for (std::size_t i = 0; i < 4; ++i)
      side[i] = place(
          mirror, {(i % 2 == 0 ? -1 : 1) * mirror.size[0], (i / 2 == 0 ? -1 : 1) * mirror.size[1], height});
    mirror_ = within(side, picture_);
    Window seen{HUGE_VAL, -HUGE_VAL, HUGE_VAL, -HUGE_VAL};
    for (const Point& corner : side) {
      const auto [x, y, z] = from_camera(corner);
      if (z < near_) return;  // it reaches behind the camera: the whole picture
      seen = {std::min(seen.left, x / z), std::max(seen.right, x / z), std::min(seen.bottom, y / z),
              std::max(seen.top, y / z)};
    }
    const double more = 0.01 * (picture_.right - picture_.left);
    portal_ = {std::max(picture_.left, seen.left - more), std::min(picture_.right, seen.right + more),
               std::max(picture_.bottom, seen.bottom - more), std::min(picture_.top, seen.top + more)};
  }
  std::array<Point, 8> mirrored(std::array<Point, 8> points) const {
    for (Point& point : points) {
      const Point way{point[0] - on_mirror_[0], point[1] - on_mirror_[1], point[2] - on_mirror_[2]};
      const double height = dot(way, normal_);
      for (std::size_t i = 0; i < 3; ++i) point[i] -= 2 * height * normal_[i];
    }
    return points;
  }

  bool perspective_ = false, mirror_ = false;
  Point at_{}, forward_{}, up_{}, right_{}, normal_{}, on_mirror_{};
  double near_ = 0, far_ = 0;
  Window picture_{}, portal_{};
};

}  // namespace dvla::detail
