// Knobs of an environment that is made without a pipeline, which would have asked before whether they are in
// range. Apart from the descriptors, because every program would pay for the sentence's number.
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"
#include "dvla/core/text.hpp"

namespace dvla::detail {

/// Throws ConfigError, naming the first knob that is out of its range, and what check(knobs) throws.
template <class Knobs>
const Knobs& checked(const Knobs& knobs) {
  for_each_knob(knobs, [](std::string_view name, const auto& value, const KnobDoc& doc) {
    if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(value)>>) {
      const auto number = static_cast<double>(value);
      if (!(number >= doc.least && number <= doc.most))
        throw ConfigError(concat("environment.", name, " is ", number_text(number), "; it must be from ",
                                 number_text(doc.least), " to ", number_text(doc.most)));
    }
  });
  check(knobs);
  return knobs;
}

}  // namespace dvla::detail
