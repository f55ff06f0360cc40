// What a run may be called: its name becomes a folder's.
#pragma once

#include <string>

#include "dvla/core/error.hpp"

namespace dvla::io {

/// Throws ConfigError unless `name` has 1 to 100 letters, digits, '.', '_' or '-' and begins with a letter or
/// digit. `field` names it in the sentence.
inline void check_run_name(const std::string& name, const std::string& field = "run.name") {
  const auto letter_or_digit = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  const auto allowed = [&](char c) { return letter_or_digit(c) || c == '.' || c == '_' || c == '-'; };
  bool fits = !name.empty() && name.size() <= 100 && letter_or_digit(name[0]);
  for (char c : name) fits = fits && allowed(c);
  if (fits) return;
  std::string shown = name.substr(0, 40);
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  throw ConfigError(field + " is '" + shown + (name.size() > 40 ? "...'" : "'") +
                    "; it must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit: it "
                    "becomes a folder's name");
}

}  // namespace dvla::io
