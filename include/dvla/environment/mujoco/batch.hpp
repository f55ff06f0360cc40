// MujocoBatch<Task>: N rows of one MuJoCo task behind the environment concept. One read-only mjModel, one
// mjData a row, all of it in the environment pool. Paper: the parallel environments of a rollout GPU; here on
// CPU cores. Rows are stepped by the caller's Arena; nothing is allocated after the constructor (but frames:
// a renderer is made on first use).
//
// Bit for bit: a row's trajectory depends on its seed and actions only, not on the row, the thread count or
// the row's past: a reset puts back the whole integration state of fresh data (positions, speeds, time,
// controls, forces, mocap poses, the solver's warm start), which is all that the next mj_step reads.
// (mj_resetData would do too, but also clears 150 KiB of solver statistics a row: a tenth of a short
// episode.)
//
// A row whose numbers go bad, or in which MuJoCo raises an error, has failed (reward 0, terminated, the model's
// default pose as observation), with the control step and the simulation's time in the reason.
//
// Legend: N rows, C control steps a chunk, A action dimensions, P proprioception.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory_resource>
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
#include "dvla/environment/mujoco/episode.hpp"
#include "dvla/environment/mujoco/model.hpp"
#include "dvla/environment/mujoco/task.hpp"
#include "dvla/environment/mujoco_render.hpp"

namespace dvla {

/// Satisfies EnvironmentMachinery, HasExpert and HasRender.
template <MujocoTask Task>
class MujocoBatch {
 public:
  /// Everything that stays comes from `environment_pool`, which must outlive the batch. Throws ConfigError on
  /// knobs out of range and Error if the pool is too small.
  MujocoBatch(const MujocoKnobs& knobs, std::pmr::memory_resource& environment_pool)
      : knobs_(detail::checked(knobs)),
        model_(detail::load_mujoco_model(Task::name, Task::mjcf, environment_pool)),
        task_(*model_),
        rows_(static_cast<std::size_t>(knobs.environments), &environment_pool),
        blank_(&environment_pool),
        renderer_(*model_, environment_pool),
        spec_(spec(knobs)) {
    for (Row& row : rows_) row.data = detail::make_mujoco_data(*model_, environment_pool, size());
    blank_.resize(static_cast<std::size_t>(mj_stateSize(model_.get(), mjSTATE_INTEGRATION)));
    mj_getState(model_.get(), rows_.front().data.get(), blank_.data(), mjSTATE_INTEGRATION);
  }
  static EnvironmentSpec spec(const MujocoKnobs& knobs) {
    EnvironmentSpec spec{{{}, Task::proprioception, {}}, {Task::actions}, knobs.horizon};
    for (const std::string_view sentence : Task::instructions)
      spec.observation.instructions.emplace_back(sentence);
    if (knobs.camera_pixels > 0)
      spec.observation.cameras.push_back({"top", knobs.camera_pixels, knobs.camera_pixels});
    spec.cases = initial_states * std::ssize(Task::instructions);
    return spec;
  }

  std::int64_t size() const { return knobs_.environments; }
  std::int64_t horizon() const { return spec_.horizon; }
  const ObservationSpec& observation_spec() const { return spec_.observation; }
  ActionSpec action_spec() const { return spec_.action; }

  /// Each instruction from so many initial states, the same for every one of them.
  static constexpr std::int64_t initial_states = 500;
  /// Case c: instruction c % instructions, initial state c / instructions.
  std::int64_t cases() const { return spec_.cases; }

  void reset(Rows& rows, std::span<const Start> starts, const Observation& next) {
    check(rows, next);
    rows.for_each([&](std::int64_t index, std::int64_t i) {
      begin(at(index), starts[static_cast<std::size_t>(i)]);
      observe(at(index), next, index);
    });
    name_failures(rows);
  }

  /// Actions outside of [-1, 1] are clamped.
  std::int64_t step(Rows& rows, Field<float> action, const Outcome& outcome) {
    detail::check_step(label, size(), Task::actions, action, outcome);
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

  bool succeeded(std::int64_t row) const { return at(checked_row(row)).episode.solved; }

  /// The scripted expert's action for the row's state.
  void expert(std::int64_t row, std::span<float> action) {
    check_action(action.size());
    const Row& of = at(checked_row(row));
    task_.expert(*model_, *of.data, of.goal, action.first(Task::actions));
  }

  /// A picture for people with the instruction below, rgb [height, width, 3], row 0 on top. Thread-safe, but
  /// not while the row is being stepped.
  void render(std::int64_t row, int width, int height, std::span<std::uint8_t> rgb) {
    Row& of = at(checked_row(row));
    const auto sentence = static_cast<std::size_t>(task_.instruction(of.goal));
    renderer_.picture(*model_, *of.data, width, height, rgb, spec_.observation.instructions[sentence]);
  }

 private:
  struct alignas(64) Row {
    detail::MujocoPointer<mjData> data;
    typename Task::Goal goal{};
    detail::MujocoEpisode episode;
  };

  static std::string label() { return "MuJoCo task '" + std::string(Task::name) + "'"; }
  Row& at(std::int64_t row) { return rows_[static_cast<std::size_t>(row)]; }
  const Row& at(std::int64_t row) const { return rows_[static_cast<std::size_t>(row)]; }

  std::int64_t checked_row(std::int64_t row) const {
    if (row >= 0 && row < size()) return row;
    throw Error(label() + ": there is no row " + std::to_string(row) + " among " + std::to_string(size()));
  }
  static void check_action(std::size_t room) {
    if (room >= static_cast<std::size_t>(Task::actions)) return;
    throw Error(label() + ": an action has " + std::to_string(Task::actions) + " numbers, the span only " +
                std::to_string(room));
  }
  void check(const Rows& rows, const Observation& next) const {
    rows.check(Task::name, size());
    const int pixels = knobs_.camera_pixels;
    if (next.proprioception.extents() != Extents({size(), Task::proprioception}) ||
        next.instruction.extents() != Extents({size()}) ||
        (pixels > 0 && next.frames[0].extents() != Extents({size(), pixels, pixels, 3}))) {
      throw Error(label() +
                  ": the observation's fields do not have the extents of observation_layout(spec, {" +
                  std::to_string(size()) + "})");
    }
  }

  /// Leaves a row that failed in the model's default pose.
  void clear(Row& row) {
    auto call = [&] {
      mj_resetData(model_.get(), row.data.get());
      mj_forward(model_.get(), row.data.get());
    };
    detail::MujocoGuard::run(call);
  }

  void begin(Row& row, const Start& start) {
    if (start.case_index >= cases())
      throw Error("there is no case " + std::to_string(start.case_index) + " among " +
                  std::to_string(cases()));
    constexpr auto instructions = std::ssize(Task::instructions);
    const bool listed = start.case_index >= 0;
    const std::uint64_t seed =
        listed ? mix_seed(std::uint64_t{0}, start.case_index / instructions) : start.seed;
    const auto instruction = static_cast<std::int32_t>(listed ? start.case_index % instructions : -1);
    detail::MujocoEpisode& episode = row.episode;
    episode.begin();
    auto call = [&] {
      SplitMix64 random(seed);
      mj_setState(model_.get(), row.data.get(), blank_.data(), mjSTATE_INTEGRATION);
      std::fill(std::begin(row.data->warning), std::end(row.data->warning), mjWarningStat{});
      row.goal = task_.reset(*model_, *row.data, random, instruction);
      mj_forward(model_.get(), row.data.get());
      episode.solved = task_.success(*row.data, row.goal);
    };
    if (!detail::MujocoGuard::run(call))
      episode.fail_from_mujoco(row.data->time);
    else if (const char* why = detail::mujoco_trouble(*row.data))
      episode.fail(why, row.data->time);
    if (episode.failure != nullptr) clear(row);
  }

  void advance(Row& row, Field<float> action, Field<float> reward, Field<std::uint8_t> terminated,
               Field<std::uint8_t> truncated) {
    row.episode.play(
        action, knobs_.horizon, reward, terminated, truncated,
        [&](std::span<const float> command) {
          task_.apply(*model_, *row.data, row.goal, command);
          for (int i = 0; i < Task::substeps; ++i) mj_step(model_.get(), row.data.get());
          const char* const wrong = detail::mujoco_trouble(*row.data);
          if (wrong == nullptr) mj_kinematics(model_.get(), row.data.get());
          return wrong;
        },
        [&] { return task_.success(*row.data, row.goal); },
        [&] {
          return knobs_.dense_reward  ? task_.dense_reward(*row.data, row.goal)
                 : row.episode.solved ? 1.0f
                                      : 0.0f;
        },
        [&] { return row.data->time; });
    if (row.episode.failure != nullptr) clear(row);
  }

  void observe(Row& row, const Observation& next, std::int64_t i) {
    task_.observe(*row.data, row.goal, next.proprioception.at(i).span());
    next.instruction[i] = task_.instruction(row.goal);
    if (knobs_.camera_pixels > 0)
      renderer_.frames(i, knobs_.camera_pixels, std::span(next.frames).first(1), *model_, *row.data);
  }

  void name_failures(const Rows& rows) const {
    for (const std::int64_t index : rows.indices())
      if (at(index).episode.failure != nullptr) rows.failures().add(index, at(index).episode.why());
  }

  MujocoKnobs knobs_;
  detail::MujocoPointer<mjModel> model_;
  Task task_;
  std::pmr::vector<Row> rows_;
  std::pmr::vector<mjtNum> blank_;  ///< the whole integration state of freshly made data
  MujocoRenderer renderer_;
  EnvironmentSpec spec_;
};

}  // namespace dvla
