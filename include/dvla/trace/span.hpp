// What the trace is made of: one span per piece of work, as read back from the rings.
#pragma once

#include <chrono>
#include <cstdint>

namespace dvla::trace {

/// Names and categories are string literals (or live as long as the recorder); times are steady_clock
/// nanoseconds. Categories: "lane" (a lane's stage of one batch; the report reads these), "wait" (a lane that
/// waits), "stage" (a stage's own parts), "observer".
struct span_record {
  const char* name = "";
  const char* category = "";
  std::int64_t batch = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int32_t row = 0;  ///< which thread: index into rows()
};

inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace dvla::trace
