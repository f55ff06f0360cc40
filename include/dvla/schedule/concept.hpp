// What a type needs to fill the schedule slot. Checked when a pipeline is composed.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"

namespace dvla {

/// `max_staleness`: the largest number of versions that it lets weights be old. Optional: `default_knobs()`.
template <class Type>
concept SchedulePolicy = NamedPolicyFor<Type, schedule_slot> && requires {
  { Type::max_staleness } -> std::convertible_to<int>;
};

}  // namespace dvla
