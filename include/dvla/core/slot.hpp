// The nine places in a pipeline. A policy says which one it fills: `using slot = dvla::environment_slot;`.
// Design: "Slots". Folder = slot.
#pragma once

#include <string_view>
#include <type_traits>

#include "dvla/core/compiler.hpp"

namespace dvla {

struct environment_slot {
  static constexpr std::string_view name = "environment";
};
struct model_slot {
  static constexpr std::string_view name = "model";
};
struct algorithm_slot {
  static constexpr std::string_view name = "algorithm";
};
struct sharding_slot {
  static constexpr std::string_view name = "sharding";
};
struct data_plane_slot {
  static constexpr std::string_view name = "data_plane";
};
struct control_plane_slot {
  static constexpr std::string_view name = "control_plane";
};
struct memory_slot {
  static constexpr std::string_view name = "memory";
};
struct placement_slot {
  static constexpr std::string_view name = "placement";
};
struct schedule_slot {
  static constexpr std::string_view name = "schedule";
};

/// A type that fills some slot.
template <class Type>
concept Policy = requires {
  typename Type::slot;
}
&&requires { Type::slot::name; };

/// A type that fills `Slot`.
template <class Type, class Slot>
concept PolicyFor = Policy<Type> && std::is_same_v<typename Type::slot, Slot>;

namespace detail {

template <class... Types>
struct list {};

/// False, for a static_assert in a branch that is a mistake; the compiler prints its arguments, the culprits.
template <class...>
inline constexpr bool never = false;

using all_slots = list<environment_slot, model_slot, algorithm_slot, sharding_slot, data_plane_slot,
                       control_plane_slot, memory_slot, placement_slot, schedule_slot>;

}  // namespace detail

}  // namespace dvla
