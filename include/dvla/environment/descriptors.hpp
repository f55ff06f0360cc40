// Environments that a pipeline can name. Descriptors only: no simulator, no torch; each one's machinery
// stands in its own header. Paper: simulators on the rollout side (ManiSkill in all figures, LIBERO in the
// abstract).
#pragma once

#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"
#include "dvla/environment/libero_knobs.hpp"
#include "dvla/environment/mujoco_knobs.hpp"
#include "dvla/environment/python/knobs.hpp"
#include "dvla/environment/toy_knobs.hpp"

namespace dvla {

template <>
inline constexpr auto knob_docs<MujocoKnobs> = std::to_array<KnobDoc>({
    {"environments", "environments stepped at once; a multiple of the group", 1, 65536},
    {"horizon", "longest episode", 1, 10000, "control steps"},
    {"camera_pixels", "side of the square 'top' camera; 0 = no camera, else at least 16", 0, 512, "pixels"},
    {"dense_reward", "shaped reward on every step instead of 1 on success"},
});

/// Rules beyond ranges; found by validate(config).
inline void check(const MujocoKnobs& knobs) {
  if (knobs.camera_pixels > 0 && knobs.camera_pixels < 16)
    throw ConfigError("environment.camera_pixels is " + std::to_string(knobs.camera_pixels) +
                      "; it must be 0 for no camera, or from 16 to 512");
}

// Tasks of the MuJoCo environment.
struct Push;
struct Reach;
struct PickAndPlace;

/// A manipulation task in MuJoCo: Push, Reach or PickAndPlace.
template <class Task>
struct MuJoCo {
  using slot = environment_slot;
  using knobs = MujocoKnobs;
  static constexpr std::string_view name = type_name<MuJoCo>;
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: MuJoCo<Task> is named but its machinery is not included: add #include "
                  "<dvla/environment/mujoco.hpp>");
  };
};

/// Arithmetic instead of physics: for tests and benches.
struct Toy {
  using slot = environment_slot;
  using knobs = ToyKnobs;
  static constexpr std::string_view name = "Toy";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Toy is named but its machinery is not included: add #include "
                  "<dvla/environment/toy.hpp>");
  };
};

/// ManiSkill's tasks (SAPIEN, PhysX).
struct ManiSkill {
  using slot = environment_slot;
  using knobs = ManiSkillKnobs;
  static constexpr std::string_view name = "ManiSkill";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: ManiSkill is named but its machinery is not included: add #include "
                  "<dvla/environment/maniskill.hpp>");
  };
};

/// LIBERO's tasks in native MuJoCo.
struct LIBERO {
  using slot = environment_slot;
  using knobs = LiberoKnobs;
  static constexpr std::string_view name = "LIBERO";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: LIBERO is named but its machinery is not included: add #include "
                  "<dvla/environment/libero.hpp>");
  };
};

/// Any environment with Gymnasium's interface.
struct Gymnasium {
  using slot = environment_slot;
  using knobs = GymnasiumKnobs;
  static constexpr std::string_view name = "Gymnasium";
  template <bool Never>
  struct missing {
    static_assert(Never,
                  "dvla: Gymnasium is named but its machinery is not included: add #include "
                  "<dvla/environment/gymnasium.hpp>");
  };
};

}  // namespace dvla

template <std::same_as<dvla::MujocoKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::environments, &K::horizon, &K::camera_pixels, &K::dense_reward> {};
