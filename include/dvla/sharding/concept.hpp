// What a type needs to fill the sharding slot. Checked when a pipeline is composed.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"

namespace dvla {

/// Optional: `spans_processes`: the model is spread over several processes.
template <class Type>
concept ShardingPolicy = NamedPolicyFor<Type, sharding_slot>;

}  // namespace dvla
