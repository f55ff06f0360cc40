// No trace: the recorder's interface with nothing behind it, so that untraced runs pay nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dvla/trace/span.hpp"

namespace dvla::trace {

struct Off {
  static constexpr bool enabled = false;
  struct scope {
    ~scope() {}  // a destructor, so that an unused `auto span` is no warning, here as with Recorder
  };
  [[nodiscard]] scope enter(const char*) noexcept { return {}; }
  [[nodiscard]] scope span(const char*, std::int64_t, const char* = "stage") noexcept { return {}; }
  void record(const char*, const char*, std::int64_t, std::int64_t, std::int64_t) noexcept {}
  std::vector<span_record> spans() const { return {}; }
  std::vector<std::string> rows() const { return {}; }
  std::int64_t dropped() const noexcept { return 0; }
  void clear() noexcept {}
};
inline Off off;

}  // namespace dvla::trace
