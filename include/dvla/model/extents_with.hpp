// Extents of a record's field: the leading dimensions of a batch followed by those of one decision.
#pragma once

#include "dvla/core/field.hpp"

namespace dvla {

/// `leading` followed by `rest`.
inline Extents extents_with(const Extents& leading, Extents rest) {
  for (int i = leading.rank() - 1; i >= 0; --i) rest = rest.prepend(leading[i]);
  return rest;
}

}  // namespace dvla
