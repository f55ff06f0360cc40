// What a model throws, put into one sentence: which model, which call, how many rows, the extents of the
// observation that it was given, and the first line of what was thrown: torch's own words for a wrong shape
// name neither model nor call, and a backtrace follows them. Whoever calls a model calls it through this. An
// Error of the library, or a model's own, says what it has to say and passes.
#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/record.hpp"
#include "dvla/core/type_name.hpp"

namespace dvla {

namespace detail {

/// "frames [64, 32, 32, 3], proprioception [64, 4], instruction [64]".
inline std::string extents_text(const Observation& observation) {
  std::string text;
  for_each_field(observation, [&](const char* name, const auto& field) {
    text += (text.empty() ? "" : ", ") + std::string(name) + " [";
    for (int i = 0; i < field.extents().rank(); ++i)
      text += (i > 0 ? ", " : "") + std::to_string(field.extents()[i]);
    text += ']';
  });
  return text;
}

template <class Model>
constexpr std::string_view name_of_model() {
  if constexpr (requires { std::string_view(Model::name); })
    return Model::name;
  else
    return type_name<Model>;
}

[[noreturn]] inline void throw_from_model(std::string_view model, std::string_view function, std::size_t rows,
                                          const Observation& observation) {
  const std::string why = error_text(std::current_exception());
  std::throw_with_nested(Error("the model " + std::string(model) + " failed in " + std::string(function) +
                               " of " + std::to_string(rows) + (rows == 1 ? " row" : " rows") + " of " +
                               extents_text(observation) + ": " + why.substr(0, why.find('\n'))));
}

}  // namespace detail

/// call(), which calls `function` of a Model for so many rows of `observation`.
template <class Model, class Call>
decltype(auto) in_model(std::string_view function, std::size_t rows, const Observation& observation,
                        Call call) {
  try {
    return call();
  } catch (const Error&) {
    throw;
  } catch (...) {
    detail::throw_from_model(detail::name_of_model<Model>(), function, rows, observation);
  }
}

}  // namespace dvla
