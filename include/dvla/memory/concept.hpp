// What a type needs to fill the memory slot. Checked when a pipeline is composed.
#pragma once

#include "dvla/core/machinery.hpp"

namespace dvla {

/// Nothing beyond what every policy brings.
template <class Type>
concept MemoryPolicy = NamedPolicyFor<Type, memory_slot>;

}  // namespace dvla
