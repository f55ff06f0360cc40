// Errors of the library: one sentence that says what, where, and what to do about it.
// Design: "Errors are part of the interface". Nothing here allocates beyond its message; all types are
// copyable.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "dvla/core/compiler.hpp"

namespace dvla {

namespace detail {
/// Texts and whole numbers, one behind the other: how a message is put together.
template <class... Parts>
std::string concat(const Parts&... parts) {
  const auto text = [](const auto& part) {
    if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(part)>>)
      return std::to_string(part);
    else
      return std::string(part);
  };
  return (std::string() + ... + text(parts));
}
}  // namespace detail

/// Base of everything the library throws. Made from the parts of its sentence.
class Error : public std::runtime_error {
 public:
  template <class First, class... Parts>
  explicit Error(const First& first, const Parts&... parts)
      : std::runtime_error(detail::concat(first, parts...)) {}
};

/// A value that a user gave is wrong. Thrown before anything starts; names field, value and range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A wait ran out. Says who waited for whom, for what, and how long.
class DeadlineError : public Error {
 public:
  using Error::Error;
};

/// A file that was read is damaged or is not what it says it is.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A lane's exception on its way to the caller: carries the lane's name and its step (batch number).
class LaneError : public Error {
 public:
  LaneError(std::string lane, std::int64_t step, const std::string& why)
      : Error("lane '" + lane + "' failed at step " + std::to_string(step) + ": " + why),
        lane_(std::move(lane)),
        step_(step) {}
  const std::string& lane() const { return lane_; }
  std::int64_t step() const { return step_; }

 private:
  std::string lane_;
  std::int64_t step_;
};

namespace detail {
/// Of whatever was thrown.
inline std::string error_text(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    return known.what();
  } catch (...) {
    return "an exception that is not a std::exception";
  }
}
}  // namespace detail

}  // namespace dvla
