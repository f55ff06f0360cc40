// What a row of an environment in MuJoCo knows of its episode: how far it is, how it ended, what failed. Shared by MujocoBatch and
// LiberoBatch, which differ in what a control step is.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "dvla/core/error.hpp"
#include "dvla/core/field.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/environment/mujoco/guard.hpp"

namespace dvla::detail {

/// Throws Error, which begins with who(), where a step's fields have other extents than [rows, C, actions] and [rows, C].
template <class Who>
void check_step(Who who, std::int64_t rows, int actions, const Field<float>& action, const Outcome& outcome) {
  if (action.extents().rank() != 3 || action.extents()[0] != rows || action.extents()[2] != actions ||
      outcome.reward.extents() != Extents({rows, action.extents()[1]}) ||
      outcome.terminated.extents() != outcome.reward.extents() ||
      outcome.truncated.extents() != outcome.reward.extents())
    throw Error(who(), ": step wants action [N,C,", actions,
                "], reward, terminated and truncated [N,C], N = ", rows);
}

struct MujocoEpisode {
  std::int64_t steps = 0;  ///< control steps of this episode
  std::int64_t made = 0;   ///< of them in the last call
  bool begun = false, ended = true, solved = false;
  bool cut = false;               ///< ended by the horizon alone
  const char* failure = nullptr;  ///< set within one call; what went wrong
  double failed_at = 0;           ///< simulation time of it, seconds
  char text[128] = {};

  void begin() {
    steps = made = 0;
    begun = true;
    ended = solved = cut = false;
    failure = nullptr;
  }
  /// `why` must outlive the call.
  void fail(const char* why, double time) {
    failure = why;
    failed_at = time;
    ended = true;
  }
  /// Of what MuJoCo said last on this thread.
  void fail_from_mujoco(double time) {
    std::snprintf(text, sizeof text, "MuJoCo says '%.110s'", MujocoGuard::error());
    fail(text, time);
  }
  std::string why() const {
    return printed("control step %lld (%.3f s): %s", static_cast<long long>(steps), failed_at, failure);
  }

  /// A chunk, action [C, A]: `control(command)`, A floats that are finite and in [-1, 1], makes a control step and says what went wrong, or
  /// null; `is_solved()` and `reward_of_step()` are asked behind it. Writes reward, terminated and truncated [C]. `time()` is the
  /// simulation's. Where it failed, `failure` says so, and the caller clears the simulation.
  template <class Control, class Solved, class Reward, class Time>
  void play(Field<float> action, std::int64_t horizon, Field<float> reward, Field<std::uint8_t> terminated,
            Field<std::uint8_t> truncated, Control control, Solved is_solved, Reward reward_of_step,
            Time time) {
    constexpr std::int64_t most = 64;
    const std::int64_t chunk = action.extents()[0], dimensions = std::min(action.extents()[1], most);
    made = 0;
    failure = begun ? nullptr : "it was stepped before its first reset";
    std::fill_n(reward.data(), chunk, 0.0f);
    // What holds before the chunk, for an episode that has ended; the steps below write over it.
    std::fill_n(terminated.data(), chunk, std::uint8_t{ended && !cut});
    std::fill_n(truncated.data(), chunk, std::uint8_t{cut});
    std::int64_t step = 0;
    auto call = [&] {
      for (; step < chunk && !ended; ++step) {
        float command[most];
        for (std::int64_t i = 0; i < dimensions; ++i) {
          const float value = action[step * dimensions + i];
          if (!std::isfinite(value)) return fail("its action is not a finite number", time());
          command[i] = std::clamp(value, -1.0f, 1.0f);
        }
        if (const char* wrong =
                control(std::span<const float>(command, static_cast<std::size_t>(dimensions))))
          return fail(wrong, time());
        ++made;
        ++steps;
        solved = is_solved();
        cut = !solved && steps >= horizon;
        ended = solved || cut;
        reward[step] = reward_of_step();
        std::fill(terminated.data() + step, terminated.data() + chunk, std::uint8_t{solved});
        std::fill(truncated.data() + step, truncated.data() + chunk, std::uint8_t{cut});
      }
    };
    if (!MujocoGuard::run(call)) {
      reward[step] = 0.0f;
      fail_from_mujoco(time());
    }
    // A row that failed has ended at the step that was not finished.
    if (failure != nullptr) std::fill(terminated.data() + step, terminated.data() + chunk, std::uint8_t{1});
  }
};

}  // namespace dvla::detail
