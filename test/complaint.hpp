// What a call is refused with, for tests of sentences.
#pragma once

#include <string>

#include "dvla/core/error.hpp"

namespace dvla_test {

/// The ConfigError's sentence, or "none".
template <class Call>
std::string complaint(Call call) {
  try {
    call();
  } catch (const dvla::ConfigError& error) {
    return error.what();
  }
  return "none";
}

}  // namespace dvla_test
