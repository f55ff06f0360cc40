// How far the C++ LIBERO is from the original: plays a record that scripts/record_libero has made in Python. docs/libero.md lists
// a record's tensors and how to make one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory_resource>
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
  std::string suite, motion, mujoco, gl;
  int task = 0, state = 0, pixels = 0;
};

/// Largest differences over a record.
struct Agreement {
  int steps = 0;            ///< control steps
  double positions = 0;     ///< of a joint, m or rad; for a free body's quaternion its numbers
  double speeds = 0;        ///< m/s or rad/s
  double observed = 0;      ///< of what LIBERO's users are given
  int first_apart = 0;      ///< control step in which positions are first further apart than 1e-4; 0: none
  int successes = 0;        ///< steps in which the original's goal holds
  int other_successes = 0;  ///< steps in which only one of both says so
  int images = 0;           ///< of both cameras
  double pixels = 0;        ///< mean difference of an image, the worst, of 255
  double pixels_near = 1;   ///< share of an image's numbers that are within 2 of 255, the worst
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
      object.read("motion", about.motion);
      object.read("mujoco", about.mujoco);
      object.read("task", about.task);
      object.read("state", about.state);
      object.read("pixels", about.pixels);
      if (about.pixels < 16 || about.pixels > 1024)
        throw FormatError("its field 'pixels' is ", about.pixels, "; it must be from 16 to 1024");
      if (object.has("gl")) object.object("gl").read("version", about.gl);
    } catch (const FormatError& error) {
      throw FormatError("'", path.string(), "': ", error.what());
    }
  }

  RecordAbout about;

  /// Plays the record's actions in the scene of its task. Images are drawn where it has some and `draw`.
  Agreement compare(const Scene& scene, std::pmr::memory_resource& pool, bool draw = true) const {
    const auto positions = rows("qpos", scene.model->nq), speeds = rows("qvel", scene.model->nv),
               asked = rows("action", actions);
    const auto start_positions = file_.span<double>("start.qpos"),
               start_speeds = file_.span<double>("start.qvel");
    const std::span<const double> fixtures =
        file_.contains("fixture_poses") ? file_.span<double>("fixture_poses") : std::span<const double>{};
    const std::span<const std::uint8_t> success = file_.span<std::uint8_t>("success");
    if (positions.size() != speeds.size() || positions.size() != asked.size() ||
        positions.size() != success.size() ||
        start_positions.size() != static_cast<std::size_t>(scene.model->nq) ||
        start_speeds.size() != static_cast<std::size_t>(scene.model->nv) ||
        fixtures.size() != 7 * scene.fixtures.size())
      throw FormatError("'", file_.path().string(), "' has tensors of other sizes than its task");

    Agreement found;
    Simulation simulation(scene, pool, 1);
    std::vector<double> state{0};
    state.insert(state.end(), start_positions.begin(), start_positions.end());
    state.insert(state.end(), start_speeds.begin(), start_speeds.end());
    guarded([&] { simulation.begin(state, fixtures, 0); });
    observed(simulation, 0, found);
    MujocoRenderer renderer(*scene.model, pool, LiberoBatch::look({.frames = LiberoFrames::libero}));
    drawn(simulation, renderer, 0, draw, found);
    for (std::size_t i = 0; i < asked.size(); ++i) {
      guarded([&] { simulation.control(asked[i]); });
      ++found.steps;
      const double apart = distance({simulation.data().qpos, positions[i].size()}, positions[i]);
      found.positions = std::max(found.positions, apart);
      found.speeds = std::max(found.speeds, distance({simulation.data().qvel, speeds[i].size()}, speeds[i]));
      if (!(apart <= 1e-4) && found.first_apart == 0) found.first_apart = found.steps;
      found.successes += success[i];
      found.other_successes += simulation.solved() != (success[i] != 0);
      observed(simulation, i + 1, found);
      drawn(simulation, renderer, found.steps, draw, found);
    }
    return found;
  }

 private:
  using Rows = std::vector<std::span<const double>>;

  template <class Call>
  static void guarded(Call call) {
    if (!detail::MujocoGuard::run(call)) throw Error("MuJoCo says '", detail::MujocoGuard::error(), "'");
  }
  Rows rows(const char* name, std::int64_t width) const {
    const std::span<const double> all = file_.span<double>(name);
    const auto size = static_cast<std::size_t>(width);
    if (all.size() % size != 0)
      throw FormatError("'", file_.path().string(), "' has ", all.size(), " numbers of ", name,
                        ", of which a step has ", width);
    Rows rows;
    for (std::size_t at = 0; at < all.size(); at += size) rows.push_back(all.subspan(at, size));
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
  static double distance(std::span<const double> ours, std::span<const double> theirs) {
    double most = 0;
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      const double apart = std::abs(ours[i] - theirs[i]);
      most = std::isnan(apart) ? HUGE_VAL : std::max(most, apart);
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
    found.observed = std::max(found.observed, distance(ours, theirs));
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
