// When a task of LIBERO is solved: all atoms of its goal hold. Reference: LIBERO's predicates (envs/object_states/base_object_states.py,
// envs/objects/site_object.py) with what they read; docs/libero.md. Asked of mjData as a physics step leaves it: joints behind the
// step, poses and contacts before it, as the reference asks.
#pragma once

#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/environment/libero/files.hpp"
#include "dvla/environment/mujoco/task.hpp"

namespace dvla::libero {

/// Whether joints of an object are where a word (open, turnon) wants them.
class JointsAre {
 public:
  /// `all` of them, or any.
  JointsAre(const mjModel& model, const std::vector<std::string>& joints, const Turn& turn, bool all)
      : turn_(turn), all_(all) {
    for (const std::string& joint : joints)
      positions_.push_back(model.jnt_qposadr[detail::mujoco_id(model, mjOBJ_JOINT, joint.c_str())]);
  }
  bool operator()(const mjData& data) const {
    for (const int position : positions_) {
      const mjtNum at = data.qpos[position];
      const bool holds = (turn_.above ? at > turn_.at : at < turn_.at) || (turn_.equal && at == turn_.at);
      if (holds != all_) return holds;
    }
    return all_;
  }

 private:
  std::vector<int> positions_;
  Turn turn_;
  bool all_;
};

class Goal {
 public:
  enum class Kind { on_object, on_region, in_region };
  struct Place {
    Kind kind;
    int thing = 0, other = 0;  ///< bodies, but for a region: there a site
    std::array<mjtNum, 3> size{};
    bool opens = false;  ///< it is a part of something that a joint moves, as a drawer
    std::vector<std::uint8_t>
        touches{};  ///< [geoms] 1: of the thing, 2: of what it is on; empty where nothing is to touch
  };

  /// Looks up what the task's goal reads. Throws FormatError where the file says what cannot be, Error where the model lacks it.
  Goal(const mjModel& model, const TaskFile& task) {
    for (const std::vector<std::string>& atom : task.goal) {
      const std::string& word = atom.front();
      const auto thing = [&](std::size_t i) -> const Thing& {
        for (const Thing& each : task.things)
          if (i < atom.size() && each.name == atom[i]) return each;
        throw FormatError("its goal '", word, "' speaks of what is not among its things");
      };
      if (word == "on" || word == "in") {
        atoms_.emplace_back(place_of(model, word, thing(1), thing(2)));
      } else {
        const Thing& of = thing(1);
        const auto turn = of.articulation.find(word);
        if (turn == of.articulation.end())
          throw FormatError("its goal '", word, " ", of.name, "' has no joint position to be decided by");
        atoms_.emplace_back(JointsAre(model, of.joints, turn->second, word == "close" || word == "turnoff"));
      }
    }
    if (task.goal.empty()) throw FormatError("it has no goal");
  }

  bool holds(const mjData& data) const {
    return std::ranges::all_of(atoms_, [&](const Atom& atom) { return holds(atom, data); });
  }
  /// Its atoms, in the order of the file.
  std::size_t size() const { return atoms_.size(); }
  bool holds(std::size_t atom, const mjData& data) const { return holds(atoms_[atom], data); }

  /// What is to be somewhere, and whether something is to be turned or slid besides.
  std::vector<Place> places() const {
    std::vector<Place> all;
    for (const Atom& atom : atoms_)
      if (const Place* const place = std::get_if<Place>(&atom)) all.push_back(*place);
    return all;
  }
  bool moves_joints() const {
    return std::ranges::any_of(atoms_,
                               [](const Atom& atom) { return std::holds_alternative<JointsAre>(atom); });
  }
  /// Whether a thing is there.
  static bool there(const Place& place, const mjData& data) {
    const mjtNum* const at = data.xpos + 3 * place.thing;
    switch (place.kind) {
      case Kind::on_object: {
        const mjtNum* const other = data.xpos + 3 * place.other;
        return other[2] <= at[2] && std::hypot(at[0] - other[0], at[1] - other[1]) < 0.03 &&
               touching(place, data);
      }
      case Kind::on_region: {
        mjtNum from[3], within[3];
        mju_sub3(from, at, data.site_xpos + 3 * place.other);
        mju_mulMatVec3(within, data.site_xmat + 9 * place.other, from);
        return place.size[2] - 0.005 < within[2] && within[2] < place.size[2] + 0.10 &&
               std::abs(within[0]) < place.size[0] && std::abs(within[1]) < place.size[1] &&
               (place.touches.empty() || touching(place, data));
      }
      case Kind::in_region: {
        const mjtNum* const centre = data.site_xpos + 3 * place.other;
        mjtNum half[3];
        mju_mulMatVec3(half, data.site_xmat + 9 * place.other, place.size.data());
        for (int i = 0; i < 3; ++i) {
          const mjtNum low = centre[i] - std::abs(half[i]) - (i == 2 ? 0.01 : 0);
          if (!(at[i] > low && at[i] < centre[i] + std::abs(half[i]))) return false;
        }
        return true;
      }
    }
    return false;
  }
  /// Whether it touches what it is to be on; never, where nothing is to touch.
  static bool touching(const Place& place, const mjData& data) {
    if (place.touches.empty()) return false;
    for (int i = 0; i < data.ncon; ++i) {
      const int first = data.contact[i].geom[0], second = data.contact[i].geom[1];
      if (first < 0 || second < 0) continue;  // a flexible body's
      const auto of = [&](int geom) { return place.touches[static_cast<std::size_t>(geom)]; };
      if (((of(first) & 1) != 0 && (of(second) & 2) != 0) || ((of(first) & 2) != 0 && (of(second) & 1) != 0))
        return true;
    }
    return false;
  }
  /// Where the root body or the site of the place is.
  static const mjtNum* position(const Place& place, const mjData& data) {
    return (place.kind == Kind::on_object ? data.xpos : data.site_xpos) + 3 * place.other;
  }

 private:
  using Atom = std::variant<JointsAre, Place>;

  static Place place_of(const mjModel& model, const std::string& word, const Thing& thing,
                        const Thing& other) {
    if (thing.region) throw FormatError("its goal has the region ", thing.name, " ", word, " something");
    Place place{other.region ? (word == "in" ? Kind::in_region : Kind::on_region) : Kind::on_object};
    if (word == "in" && !other.region)
      throw FormatError("its goal is in ", other.name, ", which is no region");
    place.thing = detail::mujoco_id(model, mjOBJ_BODY, thing.body.c_str());
    place.other = other.region ? detail::mujoco_id(model, mjOBJ_SITE, other.site.c_str())
                               : detail::mujoco_id(model, mjOBJ_BODY, other.body.c_str());
    place.size = other.size;
    place.opens = !other.joints.empty();
    if (place.kind != Kind::in_region && !(other.region && !other.has_parent)) {
      place.touches.resize(static_cast<std::size_t>(model.ngeom));
      for (const auto& [geoms, bit] : {std::pair(&thing.geoms, 1), std::pair(&other.geoms, 2)})
        for (const std::string& geom : *geoms)
          place.touches[static_cast<std::size_t>(detail::mujoco_id(model, mjOBJ_GEOM, geom.c_str()))] |=
              static_cast<std::uint8_t>(bit);
    }
    return place;
  }

  static bool holds(const Atom& atom, const mjData& data) {
    const JointsAre* const joints = std::get_if<JointsAre>(&atom);
    return joints != nullptr ? (*joints)(data) : there(std::get<Place>(atom), data);
  }

  std::vector<Atom> atoms_;
};

}  // namespace dvla::libero
