// LiberoBatch: N rows of LIBERO's tasks behind the environment concept, without Python. A row plays an episode of one task
// (libero/simulation.hpp), whose model is compiled once and shared by all rows that play it.
//
// Bit for bit: an episode depends on its start and actions alone, not on the row, its past or the number of threads.
// Legend: N rows, C control steps a chunk.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/arena.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/checked_knobs.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/environment/descriptors.hpp"
#include "dvla/environment/libero/scene.hpp"
#include "dvla/environment/libero/simulation.hpp"
#include "dvla/environment/mujoco/episode.hpp"
#include "dvla/environment/mujoco_render.hpp"

namespace dvla {

/// Satisfies EnvironmentMachinery, HasCases, HasStaticSpec, HasConventions, HasOutsideBytes, HasExpert and HasRender.
class LiberoBatch {
 public:
  static constexpr std::array<const char*, 2> cameras = {"agentview", "robot0_eye_in_hand"};

  /// Everything that stays comes from `environment_pool`, which must outlive the batch. Throws ConfigError on knobs out of range, Error
  /// and FormatError on a folder that is none.
  LiberoBatch(const LiberoKnobs& knobs, std::pmr::memory_resource& environment_pool)
      : LiberoBatch(knobs, environment_pool, libero::read_manifest(detail::checked(knobs).converted)) {}
  static EnvironmentSpec spec(const LiberoKnobs& knobs) {
    return spec(knobs, libero::read_manifest(knobs.converted));
  }

  /// How frames are drawn under these knobs.
  static MujocoLook look(const LiberoKnobs& knobs) {
    const bool original = knobs.rendering == LiberoRendering::original;
    return {.cameras = {cameras.begin(), cameras.end()},
            .collision_shapes = false,
            .geometries = 1000,
            .as_the_model = original,
            .rows_up = knobs.frames == LiberoFrames::libero,
            .columns_back = knobs.frames == LiberoFrames::rotated,
            .at_once = std::min(knobs.drawn_at_once, knobs.environments)};
  }
  static Conventions conventions(const LiberoKnobs& knobs) {
    const libero::Manifest manifest = libero::read_manifest(knobs.converted);
    const int own = manifest.horizons.at(chosen(manifest, knobs).front().suite);
    Conventions all{
        {"simulator", "MuJoCo " + manifest.mujoco},
        {"settling", std::to_string(knobs.settling) + " control steps before an episode, of the original's " +
                         std::to_string(manifest.settling)},
        {"horizon", knobs.horizon == 0
                        ? std::to_string(own) + " control steps behind settling, the suite's"
                        : std::to_string(knobs.horizon) +
                              " control steps behind settling; the suite's: " + std::to_string(own)},
        {"gripper", "1 closes, -1 opens; of an action's last number only the sign counts"},
        {"fixtures", "placed as the original's resets with seed " + std::to_string(knobs.placement_seed)},
        {"frames", "none"}};
    if (knobs.camera_pixels > 0) {
      constexpr std::array<const char*, 3> ways = {"turned by 180 degrees",
                                                   "as the original gives them, row 0 the lowest", "upright"};
      all.back().second = ways[static_cast<std::size_t>(knobs.frames)];
      all.emplace_back("rendering", enum_name(knobs.rendering) + detail::drawn_by());
    }
    return all;
  }

  std::int64_t size() const { return knobs_.environments; }
  std::int64_t horizon() const { return spec_.horizon; }
  const ObservationSpec& observation_spec() const { return spec_.observation; }
  ActionSpec action_spec() const { return spec_.action; }

  /// Outside of the pools, about: what GL takes to draw frames of the tasks.
  std::size_t outside_bytes() const {
    std::size_t bytes = 0;
    for (const auto& renderer : renderers_) bytes += knobs_.camera_pixels > 0 ? renderer->drawing_bytes() : 0;
    return bytes;
  }

  static constexpr std::int64_t states_a_task = 50;
  /// Case c: task c % tasks, initial state c / tasks.
  std::int64_t cases() const { return spec_.cases; }

  void reset(Rows& rows, std::span<const Start> starts, const Observation& next) {
    check(rows, next);
    rows.for_each([&](std::int64_t index, std::int64_t i) {
      begin(at(index), starts[static_cast<std::size_t>(i)]);
      observe(at(index), next, index);
    });
    name_failures(rows);
  }

  /// Actions are clipped to [-1, 1]; of the last number only the sign counts.
  std::int64_t step(Rows& rows, Field<float> action, const Outcome& outcome) {
    detail::check_step([] { return std::string("LIBERO"); }, size(), libero::actions, action, outcome);
    check(rows, outcome.next);
    rows.for_each([&](std::int64_t index, std::int64_t) {
      advance(at(index), action.at(index), outcome.reward.at(index), outcome.terminated.at(index),
              outcome.truncated.at(index));
      observe(at(index), outcome.next, index);
    });
    std::int64_t made = 0;
    for (const std::int64_t index : rows.indices()) made += at(index).episode.made;
    name_failures(rows);
    return made;
  }

  /// The scripted expert's next action [7] (libero/expert.hpp). Throws ConfigError as check_expert() does.
  void expert(std::int64_t row, std::span<float> action) const {
    const Row& of = played(row);
    if (std::ssize(action) < libero::actions)
      throw Error("LIBERO: an action has ", libero::actions, " numbers, the span only ", action.size());
    if (!of.played->scene().expert->why_not().empty()) check_expert();
    auto call = [&] {
      of.played->scene().expert->act(of.played->model(), of.played->data(), action.first(libero::actions));
    };
    if (!detail::MujocoGuard::run(call))
      throw Error("LIBERO: the expert fails, since MuJoCo says '", detail::MujocoGuard::error(), "'");
  }
  /// Throws ConfigError where there is a task that the expert has no skill for.
  void check_expert() const {
    std::string without, why;
    for (const auto& scene : scenes_) {
      if (scene->expert->why_not().empty()) continue;
      if (without.empty()) why = ", '" + scene->instruction + "': " + scene->expert->why_not();
      without += (without.empty() ? "" : ", ") + std::to_string(scene->task);
    }
    if (!without.empty())
      throw ConfigError("LIBERO's scripted expert has no skill for these tasks of the suite ",
                        scenes_.front()->suite, ": ", without, " (the first", why,
                        "); choose others (environment.tasks), or run.demonstrations 0");
  }

  bool succeeded(std::int64_t row) const { return at(checked_row(row)).episode.solved; }

  /// Pictures for people have a square for each camera.
  static constexpr int views = std::tuple_size_v<decltype(cameras)>;
  /// What both cameras see, side by side, with the instruction below, rgb [height, width, 3], row 0 on top. Thread-safe, but not while the row is
  /// being stepped.
  void render(std::int64_t row, int width, int height, std::span<std::uint8_t> rgb) {
    const Row& of = played(row);
    const std::lock_guard lock(drawing_);
    renderers_[of.scene]->picture(of.played->model(), of.played->seen(), width, height, rgb,
                                  of.played->scene().instruction);
  }

 private:
  LiberoBatch(const LiberoKnobs& knobs, std::pmr::memory_resource& environment_pool,
              const libero::Manifest& manifest)
      : knobs_(knobs), pool_(environment_pool), spec_(spec(knobs, manifest)) {
    for (const libero::Listed& listed : chosen(manifest, knobs)) {
      scenes_.push_back(std::make_unique<const libero::Scene>(
          libero::Scene::open(knobs.converted, manifest, listed, knobs.placement_seed, pool_)));
      if (scenes_.back()->count != states_a_task)
        throw FormatError("'", knobs.converted, "/", listed.folder, "' has ", scenes_.back()->count,
                          " initial states; LIBERO has ", states_a_task);
      renderers_.push_back(std::make_unique<MujocoRenderer>(*scenes_.back()->model, pool_, look(knobs)));
    }
    rows_.resize(static_cast<std::size_t>(knobs.environments));
    for (Row& row : rows_) enter(row, 0);
    if (knobs.camera_pixels > 0) try_drawing();
  }
  static EnvironmentSpec spec(const LiberoKnobs& knobs, const libero::Manifest& manifest) {
    EnvironmentSpec spec{{{}, libero::proprioception, {}}, {libero::actions}, knobs.horizon};
    for (const libero::Listed& listed : chosen(manifest, knobs)) {
      spec.observation.instructions.push_back(listed.instruction);
      if (knobs.horizon == 0) spec.horizon = manifest.horizons.at(listed.suite);
    }
    if (knobs.camera_pixels > 0)
      for (const char* camera : cameras)
        spec.observation.cameras.push_back({camera, knobs.camera_pixels, knobs.camera_pixels});
    spec.cases = std::ssize(spec.observation.instructions) * states_a_task;
    return spec;
  }

  struct alignas(64) Row {
    std::size_t scene = 0;
    std::unique_ptr<libero::Simulation> played;
    detail::MujocoEpisode episode;
  };

  Row& at(std::int64_t row) { return rows_[static_cast<std::size_t>(row)]; }
  const Row& at(std::int64_t row) const { return rows_[static_cast<std::size_t>(row)]; }

  static std::vector<libero::Listed> chosen(const libero::Manifest& manifest, const LiberoKnobs& knobs) {
    std::vector<libero::Listed> tasks, all;
    std::string_view suite = knobs.suite;  // LIBERO's own names are libero_spatial, ...
    if (suite.starts_with("libero_")) suite.remove_prefix(std::string_view("libero_").size());
    std::string numbers;
    for (const libero::Listed& listed : manifest.tasks)
      if (listed.suite == suite) {
        all.push_back(listed);
        numbers += (numbers.empty() ? "" : ", ") + std::to_string(listed.task);
      }
    if (all.empty())
      throw ConfigError("environment.suite is '", knobs.suite, "', of which the folder '", knobs.converted,
                        "' has no task; it must be spatial, object, goal, 10 or 90, and converted "
                        "(scripts/convert_libero)");
    for (const int wanted : libero_tasks(knobs)) {
      const auto found = std::ranges::find(all, wanted, &libero::Listed::task);
      if (found == all.end())
        throw ConfigError("environment.tasks has ", wanted, ", and the folder '", knobs.converted,
                          "' has of the suite ", suite, ": ", numbers);
      tasks.push_back(*found);
    }
    if (const int whole = manifest.sizes.at(all.front().suite); tasks.empty() && std::ssize(all) < whole)
      throw ConfigError("environment.tasks is empty, which is the whole suite, and the folder '",
                        knobs.converted, "' has ", all.size(), " of the ", whole, " tasks of ", suite, ": ",
                        numbers, "; name those, or convert the others");
    return tasks.empty() ? all : tasks;
  }
  std::int64_t checked_row(std::int64_t row) const {
    if (row >= 0 && row < size()) return row;
    throw Error("LIBERO: there is no row ", row, " among ", size());
  }
  const Row& played(std::int64_t row) const {
    const Row& of = at(checked_row(row));
    if (of.played) return of;
    throw Error("LIBERO: row ", row, " has no simulation, since its last reset failed; reset it");
  }
  void check(const Rows& rows, const Observation& next) const {
    rows.check("LIBERO", size());
    const int pixels = knobs_.camera_pixels;
    bool fits = next.proprioception.extents() == Extents({size(), libero::proprioception}) &&
                next.instruction.extents() == Extents({size()});
    for (std::size_t c = 0; c < cameras.size() && pixels > 0; ++c)
      fits = fits && next.frames[c].extents() == Extents({size(), pixels, pixels, 3});
    if (!fits)
      throw Error("LIBERO: the observation's fields do not have the extents of observation_layout(spec, {",
                  size(), "})");
  }

  /// Makes the row one of a scene: in its default pose, ended.
  void enter(Row& row, std::size_t scene) {
    row.played.reset();
    row.scene = scene;
    row.played = std::make_unique<libero::Simulation>(*scenes_[scene], pool_, size());
  }

  /// Leaves a row that failed in the model's default pose.
  static void clear(Row& row) {
    auto call = [&] { row.played->clear(); };
    detail::MujocoGuard::run(call);
  }

  void begin(Row& row, const Start& start) {
    if (start.case_index >= cases()) throw Error("there is no case ", start.case_index, " among ", cases());
    const auto tasks = std::ssize(scenes_);
    SplitMix64 random(start.seed);
    const auto drawn = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(tasks)));
    // What is held out is what other episodes than training's begin from.
    const bool other = knobs_.held_out > 0 && !start.training;
    const std::int64_t first = other ? states_a_task - knobs_.held_out : 0,
                       states = other ? knobs_.held_out : states_a_task - knobs_.held_out;
    const auto from = first + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(states)));
    const std::int64_t task = start.case_index >= 0 ? start.case_index % tasks : drawn,
                       state = start.case_index >= 0 ? start.case_index / tasks : from;
    detail::MujocoEpisode& episode = row.episode;
    episode.begun = false;
    if (const auto number = static_cast<std::size_t>(task); number != row.scene || !row.played)
      enter(row, number);
    const libero::Scene& scene = *scenes_[row.scene];
    episode.begin();
    auto call = [&] {
      row.played->begin(scene.state(state), scene.placed(state), knobs_.settling);
      episode.solved = row.played->solved();
    };
    if (!detail::MujocoGuard::run(call))
      episode.fail_from_mujoco(row.played->data().time);
    else if (const char* why = detail::mujoco_trouble(row.played->data()))
      episode.fail(why, row.played->data().time);
    if (episode.failure != nullptr) clear(row);
  }

  void advance(Row& row, Field<float> action, Field<float> reward, Field<std::uint8_t> terminated,
               Field<std::uint8_t> truncated) {
    if (!row.played) throw Error("it has no simulation, since its last reset failed; reset it");
    row.episode.play(
        action, spec_.horizon, reward, terminated, truncated,
        [&](std::span<const float> command) {
          double wide[libero::actions];
          std::ranges::copy(command, wide);
          row.played->control(wide);
          return detail::mujoco_trouble(row.played->data());
        },
        [&] { return row.played->solved(); }, [&] { return row.episode.solved ? 1.0f : 0.0f; },
        [&] { return row.played->data().time; });
    if (row.episode.failure != nullptr) clear(row);
  }

  void observe(Row& row, const Observation& next, std::int64_t i) {
    std::ranges::copy(row.played->felt(), next.proprioception.at(i).span().begin());
    next.instruction[i] = static_cast<std::int32_t>(row.scene);
    if (knobs_.camera_pixels > 0) draw(row, next, i);
  }
  void draw(Row& row, const Observation& next, std::int64_t i) {
    renderers_[row.scene]->frames(i, knobs_.camera_pixels, std::span(next.frames).first(cameras.size()),
                                  row.played->model(), row.played->seen());
  }

  void name_failures(const Rows& rows) const {
    for (const std::int64_t index : rows.indices())
      if (at(index).episode.failure != nullptr) rows.failures().add(index, at(index).episode.why());
  }

  /// A frame of each camera, so that a driver that refuses does so before anything starts.
  void try_drawing() {
    const Extents extents{size(), knobs_.camera_pixels, knobs_.camera_pixels, 3};
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(extents.count()));
    Observation seen;
    for (std::size_t camera = 0; camera < cameras.size(); ++camera)
      seen.frames[camera] = Field<std::uint8_t>(extents, pixels.data());
    draw(rows_.front(), seen, 0);
  }

  LiberoKnobs knobs_;
  std::pmr::memory_resource& pool_;
  EnvironmentSpec spec_;
  std::vector<std::unique_ptr<const libero::Scene>> scenes_;
  std::vector<std::unique_ptr<MujocoRenderer>> renderers_;
  std::vector<Row> rows_;
  std::mutex drawing_;
};

}  // namespace dvla
