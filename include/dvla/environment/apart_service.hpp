// What answers in a worker's place in this process (environment/apart.hpp).
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace dvla {

/// One message, one answer. A call that is late cannot be ended.
class ApartService {
 public:
  virtual ~ApartService() = default;
  virtual void send(const std::string& text) = 0;
  /// Nothing if none comes before `until`. Throws Error where there is none.
  virtual std::optional<std::string> receive(std::chrono::steady_clock::time_point until) = 0;
};

}  // namespace dvla
