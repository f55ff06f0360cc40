// What a type needs to fill the algorithm slot. Checked when a pipeline is composed.
#pragma once

#include <concepts>

#include "dvla/core/machinery.hpp"

namespace dvla {

/// `max_staleness`: the largest number of versions that the weights behind its data may be old. Optional:
/// `needs_values`: the model must have a value head.
template <class Type>
concept AlgorithmPolicy = NamedPolicyFor<Type, algorithm_slot> && requires {
  { Type::max_staleness } -> std::convertible_to<int>;
};

}  // namespace dvla
