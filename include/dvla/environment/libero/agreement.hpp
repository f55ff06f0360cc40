// How far the C++ LIBERO is from the original: plays a record that scripts/record_libero has made in Python. docs/libero.md lists
// a record's tensors and how to make one.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/environment/libero/batch.hpp"
#include "dvla/environment/libero/simulation.hpp"
#include "dvla/io/safetensors.hpp"

namespace dvla::libero {

/// What a record says of itself.
struct RecordAbout {
  std::string suite, mujoco;
  int task = 0, state = 0, pixels = 0;
  std::int64_t seed = 0, resets = 1;           ///< of env.seed, and how many env.reset() before the episode
  std::vector<std::string> set;                ///< joints that were set by hand
  std::vector<std::vector<std::string>> goal;  ///< atoms
};

/// Largest differences over a record. Its actions are played twice: freely, from its start to its end, which says how far the C++
/// gets; and alone, each step from what the record has behind the one before, which says what of the C++ is off, if anything.
struct Agreement {
  static constexpr double near = 1e-4;   ///< of positions: an episode that went alike
  static constexpr double exact = 1e-9;  ///< of what is made of the same numbers
  static constexpr double nudge = 1e-12;

  int steps = 0;         ///< control steps
  double positions = 0;  ///< of a joint, m or rad; for a free body's quaternion its numbers
  double speeds = 0;     ///< m/s or rad/s
  double observed = 0;   ///< of what LIBERO's users are given
  double controls = 0;  ///< in the last physics step of a control step: torques, N m, and fingers' targets, m
  double burners = 0;   ///< alphas
  int first_apart = 0;  ///< control step in which positions are first further apart than `near`; 0: none
  int successes = 0;    ///< steps in which the original's goal holds
  int other_successes = 0;  ///< steps in which only one of both says so
  std::vector<int> atoms;   ///< of the goal: steps in which each holds in the original
  int other_atoms = 0;      ///< as other_successes, summed over the atoms

  double alone = 0;  ///< positions behind a step alone
  double aimed =
      0;  ///< behind a step alone: goals of position (m) and orientation (a matrix's numbers), fingers' targets
  int substeps = 0;     ///< physics steps that are recorded, each played alone
  double measured = 0;  ///< what the controller has before one: poses, speeds, Jacobian, mass matrix, bias
  double torques = 0;   ///< what it makes of that, N m
  double moved = 0;     ///< positions behind one, with the record's torques

  int images = 0;          ///< of both cameras, behind a step alone
  double pixels = 0;       ///< mean difference of an image, the worst, of 255
  double pixels_near = 1;  ///< share of an image's numbers that are within 2 of 255, the worst

  /// In what positions that leave `near` began. Controller: goals, measurements or torques alone are off by more than `exact`. Contact: they
  /// are not, and no step alone is either, or the one that is furthest off ends as far from itself (a tenth will do) when its
  /// positions are nudged or its solver starts from nothing: it has no better defined end. Integrator: else.
  enum class Part { none, controller, contact, integrator };
  Part began = Part::none;
  int began_at = 0;     ///< control step
  double began_by = 0;  ///< how far it is off alone
  double itself = 0;    ///< how far it ends from itself

  bool controller_agrees() const { return aimed <= exact && measured <= exact && torques <= exact; }
  bool images_agree() const { return pixels <= 0.5 && pixels_near >= 0.999; }
};

class Record {
 public:
  /// Throws Error or FormatError, which name the file.
  explicit Record(const std::filesystem::path& path) : file_(path) {
    const auto& metadata = file_.metadata();
    const auto text = metadata.find("record");
    if (text == metadata.end())
      throw FormatError("'", path.string(), "' is no record of scripts/record_libero");
    try {
      const nlohmann::json json = nlohmann::json::parse(text->second, nullptr, false);
      const JsonObject object(json, {});
      object.read("suite", about.suite);
      object.read("mujoco", about.mujoco);
      object.read("task", about.task);
      object.read("state", about.state);
      object.read("pixels", about.pixels);
      object.read("seed", about.seed);
      if (object.has("resets")) object.read("resets", about.resets);
      object.read("set", about.set);
      object.read("goal", about.goal);
      for (const auto& atom : about.goal)
        if (atom.empty()) throw FormatError("its goal has an atom without a predicate");
      if (about.pixels < 16 || about.pixels > 1024)
        throw FormatError("its field 'pixels' is ", about.pixels, "; it must be from 16 to 1024");
    } catch (const FormatError& error) {
      throw FormatError("'", path.string(), "': ", error.what());
    }
  }

  RecordAbout about;

  /// What the episode began in: positions and speeds [nq + nv], fixtures' poses [fixtures, 7].
  std::vector<double> start() const {
    std::vector<double> state;
    for (const char* name : {"start.qpos", "start.qvel"})
      for (const double each : file_.span<double>(name)) state.push_back(each);
    return state;
  }
  std::span<const double> fixtures() const { return given("fixture_poses"); }

  /// Plays the record's actions in the scene of its task. Images are drawn where it has some and `draw`. Throws Error or FormatError.
  Agreement compare(const Scene& scene, std::pmr::memory_resource& pool, bool draw = true) const {
    if (scene.suite != about.suite || scene.task != about.task)
      throw Error("'", file_.path().string(), "' is of task ", about.task, " of the suite ", about.suite,
                  ", and the scene of ", scene.task, " of ", scene.suite);
    const Steps theirs(*this, scene);
    const std::span<const std::uint8_t> success = file_.span<std::uint8_t>("success"),
                                        atoms = file_.span<std::uint8_t>("goal_atoms");
    const std::size_t steps = theirs.action.count(), burners = scene.burners.size();
    const std::span<const float> alphas =
        burners > 0 ? file_.span<float>("burner_alpha") : std::span<const float>{};
    if (success.size() != steps || atoms.size() != steps * scene.goal.size() ||
        about.goal.size() != scene.goal.size() || alphas.size() != steps * burners)
      throw other_sizes();

    Agreement found;
    found.atoms.resize(scene.goal.size());
    Simulation simulation(scene, pool, 2), alone(scene, pool, 2);
    begin(simulation);
    begin(alone);
    observed(simulation, 0, found);
    MujocoRenderer renderer(*scene.model, pool, LiberoBatch::look({.frames = LiberoFrames::libero}));
    drawn(alone, renderer, 0, draw, found);
    int wrong_at = physics_steps(alone, pool, found);  // the controller
    for (std::size_t i = 0; i < steps; ++i) {
      const bool together = found.first_apart == 0;
      guarded([&] { simulation.control(theirs.action[i]); });
      ++found.steps;
      const double apart = distance(simulation.data().qpos, theirs.positions[i]);
      found.positions = std::max(found.positions, apart);
      found.speeds = std::max(found.speeds, distance(simulation.data().qvel, theirs.speeds[i]));
      found.controls = std::max(found.controls, distance(simulation.data().ctrl, theirs.controls[i]));
      if (together && !(apart <= Agreement::near)) found.first_apart = found.steps;
      found.successes += success[i];
      found.other_successes += simulation.solved() != (success[i] != 0);
      for (std::size_t atom = 0; atom < found.atoms.size(); ++atom) {
        const bool holds = atoms[i * found.atoms.size() + atom] != 0;
        found.atoms[atom] += holds;
        found.other_atoms += scene.goal.holds(atom, simulation.data()) != holds;
      }
      for (std::size_t burner = 0; burner < burners; ++burner)
        found.burners = std::max<double>(found.burners,
                                         std::abs(simulation.lit()[burner] - alphas[i * burners + burner]));
      observed(simulation, i + 1, found);

      if (i > 0) alone.put(theirs.behind(i - 1));
      guarded([&] { alone.control(theirs.action[i]); });
      const double off = distance(alone.data().qpos, theirs.positions[i]);
      const double aimed = std::max({distance(alone.arm().goal_position.data(), theirs.goal_position[i]),
                                     distance(alone.arm().goal_orientation.data(), theirs.orientation[i]),
                                     distance(alone.fingers().data(), theirs.fingers[i])});
      found.alone = std::max(found.alone, off);
      if (together && off > found.began_by) found.began_by = off, found.began_at = found.steps;
      if (aimed > Agreement::exact && (wrong_at == 0 || found.steps < wrong_at)) wrong_at = found.steps;
      found.aimed = std::max(found.aimed, aimed);
      drawn(alone, renderer, found.steps, draw, found);
    }
    judge(alone, theirs, wrong_at, found);
    return found;
  }

 private:
  /// A tensor [count, width].
  struct Rows {
    std::span<const double> all;
    std::size_t width;
    std::size_t count() const { return all.size() / width; }
    std::span<const double> operator[](std::size_t i) const { return all.subspan(i * width, width); }
  };
  /// What the record has behind each control step.
  struct Steps {
    Steps(const Record& record, const Scene& scene)
        : action(record.rows("action", actions)),
          positions(record.rows("qpos", scene.model->nq)),
          speeds(record.rows("qvel", scene.model->nv)),
          controls(record.rows("ctrl", scene.model->nu)),
          goal_position(record.rows("goal_pos", 3)),
          orientation(record.rows("goal_mat", 9)),
          fingers(record.rows("finger_action", Fingers::count)),
          accelerations{record.given("qacc_warmstart"), static_cast<std::size_t>(scene.model->nv)} {
      for (const Rows* each : {&positions, &speeds, &controls, &goal_position, &orientation, &fingers})
        if (each->count() != action.count()) throw record.other_sizes();
      if ((!accelerations.all.empty() && accelerations.all.size() != speeds.all.size()) ||
          record.start().size() != positions.width + speeds.width ||
          record.fixtures().size() != 7 * scene.fixtures.size())
        throw record.other_sizes();
    }
    Simulation::Behind behind(std::size_t i) const {
      return {.positions = positions[i],
              .speeds = speeds[i],
              .controls = controls[i],
              .accelerations = accelerations.all.empty() ? accelerations.all : accelerations[i],
              .orientation = orientation[i],
              .fingers = fingers[i]};
    }
    Rows action, positions, speeds, controls, goal_position, orientation, fingers;
    Rows accelerations;  ///< the solver's next start; empty in older records
  };

  template <class Call>
  static void guarded(Call call) {
    if (!detail::MujocoGuard::run(call)) throw Error("MuJoCo says '", detail::MujocoGuard::error(), "'");
  }
  FormatError other_sizes() const {
    return FormatError("'", file_.path().string(), "' has tensors of other sizes than its task");
  }
  std::span<const double> given(const std::string& name) const {
    return file_.contains(name) ? file_.span<double>(name) : std::span<const double>{};
  }
  Rows rows(const std::string& name, std::int64_t width) const {
    const Rows rows{file_.span<double>(name), static_cast<std::size_t>(width)};
    if (rows.all.size() % rows.width != 0)
      throw FormatError("'", file_.path().string(), "' has ", rows.all.size(), " numbers of ", name,
                        ", of which a step has ", width);
    return rows;
  }
  /// Row i of a tensor that has one more than there are steps.
  std::span<const double> row(const char* name, std::size_t i, std::size_t width) const {
    const std::span<const double> all = file_.span<double>(name);
    if (all.size() < (i + 1) * width)
      throw FormatError("'", file_.path().string(), "' has ", all.size(), " numbers of ", name,
                        ", too few for step ", i);
    return all.subspan(i * width, width);
  }
  /// NaN counts as infinitely far.
  static double distance(const double* ours, std::span<const double> theirs) {
    double most = 0;
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      const double apart = std::abs(ours[i] - theirs[i]);
      most = std::isnan(apart) ? HUGE_VAL : std::max(most, apart);
    }
    return most;
  }

  void begin(Simulation& simulation, double nudge = 0) const {
    std::vector<double> state = start();
    for (auto each = state.begin(); each != state.begin() + simulation.model().nq; ++each) *each += nudge;
    state.insert(state.begin(), 0);  // time
    guarded([&] { simulation.begin(state, fixtures(), 0); });
  }

  /// Each recorded physics step alone, in a simulation that has just begun. Returns the first control step in which the controller is off
  /// by more than `exact`, or 0.
  int physics_steps(const Simulation& begun, std::pmr::memory_resource& pool, Agreement& found) const {
    const Scene& scene = begun.scene();
    const mjModel& model = begun.model();
    if (!file_.contains("substep.ctrl")) return 0;
    const Rows controls = rows("substep.ctrl", model.nu), positions = rows("substep.qpos", model.nq),
               speeds = rows("substep.qvel", model.nv), bias = rows("substep.bias", OscPose::joints);
    if (bias.count() != controls.count() || positions.count() != controls.count() ||
        speeds.count() != controls.count())
      throw other_sizes();
    const detail::MujocoPointer<mjData> data = detail::make_mujoco_data(model, pool, 1);
    std::copy_n(begun.data().qpos, model.nq, data->qpos);
    std::copy_n(begun.data().qvel, model.nv, data->qvel);
    OscPose::State arm = scene.rest;  // which is what the first torque is made of
    const auto part = [&](auto& numbers, const char* name) {
      const Rows all = rows(std::string("substep.") + name, std::ssize(numbers));
      if (all.count() != controls.count()) throw other_sizes();
      return all[static_cast<std::size_t>(found.substeps)];
    };
    int wrong_at = 0;
    for (std::size_t i = 0; i < controls.count(); ++i, ++found.substeps) {
      std::ranges::copy(part(arm.goal_position, "goal_pos"), arm.goal_position.begin());
      std::ranges::copy(part(arm.goal_orientation, "goal_mat"), arm.goal_orientation.begin());
      guarded([&] {
        mj_forward(&model, data.get());
        scene.arm.drive(model, *data, arm);
      });
      const auto off = [&](auto& numbers, const char* name) {
        return distance(numbers.data(), part(numbers, name));
      };
      double measured = std::max({off(arm.position, "eef_pos"), off(arm.orientation, "eef_mat"),
                                  off(arm.velocity, "eef_pos_vel"), off(arm.turning, "eef_ori_vel"),
                                  off(arm.angles, "joint_pos"), off(arm.speeds, "joint_vel"),
                                  off(arm.jacobian, "jacobian"), off(arm.mass, "mass_matrix")});
      double torques = 0;
      for (int joint = 0; joint < OscPose::joints; ++joint) {
        const auto motor = static_cast<std::size_t>(scene.arm.motor(joint));
        measured = std::max(measured, distance(data->qfrc_bias + scene.arm.freedom(joint),
                                               bias[i].subspan(static_cast<std::size_t>(joint), 1)));
        torques = std::max(torques, distance(data->ctrl + motor, controls[i].subspan(motor, 1)));
      }
      if (wrong_at == 0 && std::max(measured, torques) > Agreement::exact)
        wrong_at = 1 + found.substeps / scene.substeps;
      found.measured = std::max(found.measured, measured);
      found.torques = std::max(found.torques, torques);

      std::ranges::copy(controls[i], data->ctrl);
      guarded([&] { mj_step(&model, data.get()); });
      found.moved = std::max(found.moved, distance(data->qpos, positions[i]));
      std::ranges::copy(positions[i], data->qpos);
      std::ranges::copy(speeds[i], data->qvel);
    }
    return wrong_at;
  }

  /// `began_at` is the step that is furthest off alone while positions are near, `wrong_at` the first in which the controller is.
  void judge(Simulation& alone, const Steps& theirs, int wrong_at, Agreement& found) const {
    if (found.first_apart == 0) {
      found.began_at = 0;
      found.began_by = 0;
    } else if (wrong_at != 0 && wrong_at <= found.first_apart) {
      found.began = Agreement::Part::controller;
      found.began_at = wrong_at;
      found.began_by = std::max({found.aimed, found.measured, found.torques});
    } else {
      if (found.began_at > 0)
        found.itself = from_itself(alone, theirs, static_cast<std::size_t>(found.began_at - 1));
      const bool undefined = found.began_by <= Agreement::exact || 10 * found.itself >= found.began_by;
      found.began = undefined ? Agreement::Part::contact : Agreement::Part::integrator;
    }
  }
  /// How far step i ends from where it ends, when it begins a nudge away, or without the solver's start.
  double from_itself(Simulation& alone, const Steps& theirs, std::size_t i) const {
    std::vector<double> end;
    double most = 0;
    for (const double nudge : {0.0, Agreement::nudge, -Agreement::nudge})
      for (const bool cold : {false, true}) {
        if (i == 0) {
          begin(alone, nudge);
        } else {
          Simulation::Behind behind = theirs.behind(i - 1);
          std::vector<double> positions(behind.positions.begin(), behind.positions.end());
          for (double& each : positions) each += nudge;
          behind.positions = positions;
          if (cold) behind.accelerations = {};
          alone.put(behind);
        }
        guarded([&] { alone.control(theirs.action[i]); });
        const std::span<const double> now(alone.data().qpos, theirs.positions.width);
        if (end.empty()) end.assign(now.begin(), now.end());
        most = std::max(most, distance(end.data(), now));
      }
    return most;
  }

  void observed(const Simulation& simulation, std::size_t i, Agreement& found) const {
    const std::span<const double> position = row("observed.eef_pos", i, 3),
                                  turn = row("observed.eef_quat", i, 4),
                                  fingers = row("observed.gripper_qpos", i, 2);
    // robosuite's quaternions are xyzw, and LIBERO's users give their axis times angle.
    const mjtNum quaternion[4] = {turn[3], turn[0], turn[1], turn[2]};
    std::array<double, proprioception> theirs{}, ours{};
    std::ranges::copy(position, theirs.begin());
    axis_angle(quaternion, theirs.data() + 3);
    std::copy_n(fingers.begin(), 2, theirs.begin() + 6);
    std::ranges::copy(simulation.felt(), ours.begin());
    found.observed = std::max(found.observed, distance(ours.data(), theirs));
  }

  void drawn(Simulation& simulation, MujocoRenderer& renderer, int step, bool draw, Agreement& found) const {
    if (!draw || !file_.contains("image_step")) return;
    const std::span<const std::int32_t> steps = file_.span<std::int32_t>("image_step");
    const auto at = std::find(steps.begin(), steps.end(), step);
    if (at == steps.end()) return;
    const std::size_t size =
        static_cast<std::size_t>(about.pixels) * static_cast<std::size_t>(about.pixels) * 3;
    std::vector<std::uint8_t> ours(2 * size);
    const Extents extents{1, about.pixels, about.pixels, 3};
    const std::array<Field<std::uint8_t>, 2> frames{Field<std::uint8_t>(extents, ours.data()),
                                                    Field<std::uint8_t>(extents, ours.data() + size)};
    renderer.frames(0, about.pixels, frames, simulation.model(), simulation.seen());
    for (std::size_t camera = 0; camera < 2; ++camera) {
      const std::span<const std::uint8_t> all =
          file_.span<std::uint8_t>(camera == 0 ? "image.agentview" : "image.robot0_eye_in_hand");
      if (all.size() != steps.size() * size)
        throw FormatError("'", file_.path().string(), "' has ", all.size(), " bytes of images, and ",
                          steps.size(), " of ", about.pixels, " pixels are ", steps.size() * size);
      const auto theirs = all.subspan(static_cast<std::size_t>(at - steps.begin()) * size, size);
      std::int64_t sum = 0, near = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const int apart = std::abs(ours[camera * size + i] - theirs[i]);
        sum += apart;
        near += apart <= 2;
      }
      ++found.images;
      found.pixels = std::max(found.pixels, static_cast<double>(sum) / static_cast<double>(size));
      found.pixels_near = std::min(found.pixels_near, static_cast<double>(near) / static_cast<double>(size));
    }
  }

  io::SafetensorsFile file_;
};

}  // namespace dvla::libero
