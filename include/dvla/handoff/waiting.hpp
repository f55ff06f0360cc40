// What every wait of the library has in common: a limit, and a sentence that says who waited for whom.
// Design: "Every wait has a deadline". Waiting itself is done by semaphore.hpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"

namespace dvla {

/// Who waits, for what, from whom, for which batch. Views only: turned into text when a wait runs out.
struct wait_reason {
  std::string_view waiter = "somebody";  ///< the waiting lane
  std::string_view what = "a token";     ///< what it waits for: "a batch", "new weights", ...
  std::string_view whom = "somebody";    ///< the lane that should deliver
  std::int64_t batch = -1;               ///< the batch concerned; -1: none
};

namespace detail {

inline std::string seconds_text(std::chrono::nanoseconds duration) {
  return printed("%g s", std::chrono::duration<double>(duration).count());
}

/// Of a limit as knobs give it.
inline std::chrono::nanoseconds nanoseconds(double seconds) {
  return std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * 1e9));
}

/// Now plus `limit`, or the end of time where that does not fit.
inline std::chrono::steady_clock::time_point deadline_after(std::chrono::nanoseconds limit) {
  using clock = std::chrono::steady_clock;
  const auto now = clock::now();
  return limit >= clock::time_point::max() - now ? clock::time_point::max() : now + limit;
}

}  // namespace detail

/// The error of a wait that ran out.
inline DeadlineError deadline_error(const wait_reason& reason, std::chrono::nanoseconds limit) {
  std::string text = "lane '" + std::string(reason.waiter) + "' waited " + detail::seconds_text(limit) +
                     " for " + std::string(reason.what) + " from lane '" + std::string(reason.whom) + "'";
  if (reason.batch >= 0) text += " (batch " + std::to_string(reason.batch) + ")";
  return DeadlineError(text);
}

}  // namespace dvla
