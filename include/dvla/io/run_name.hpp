// What a run may be called: its name becomes a folder's.
#pragma once

#include <string>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"

namespace dvla::io {

/// Throws ConfigError unless `name` has 1 to 100 letters, digits, '.', '_' or '-' and begins with a letter or
/// digit. `field` names it in the sentence.
inline void check_run_name(const std::string& name, const std::string& field = "run.name") {
  const std::string letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  if (!name.empty() && name.size() <= 100 && letters.find(name[0]) != name.npos &&
      name.find_first_not_of(letters + "._-") == name.npos)
    return;
  throw ConfigError(field + " is '" + dvla::detail::one_line(name, 40) + "'" +
                    "; it must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit: it "
                    "becomes a folder's name");
}

}  // namespace dvla::io
