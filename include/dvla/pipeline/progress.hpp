// The progress line of a run: success, env_steps/s, overlap and staleness. On a terminal one line that is
// redrawn, elsewhere a line every tenth of the run. Thread-safe.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <mutex>
#include <optional>
#include <string>

#include "dvla/core/text.hpp"
#include "dvla/pipeline/history.hpp"
#include "dvla/trace/report.hpp"

namespace dvla {

class ProgressLine {
 public:
  /// `all_lanes`: this process runs all four, so that its trace knows how they overlap.
  ProgressLine(std::int64_t iterations, bool quiet, bool all_lanes = true)
      : iterations_(iterations),
        quiet_(quiet),
        all_lanes_(all_lanes),
        terminal_(::isatty(STDERR_FILENO) == 1) {}

  template <class Trace>
  void show(const Iteration& iteration, const Trace& trace) {
    if (quiet_) return;
    const std::scoped_lock lock(mutex_);
    const std::int64_t done = iteration.batch + 1;
    if (!first_) first_ = iteration;
    const std::int64_t tenth = std::max<std::int64_t>(iterations_ / 10, 1);
    if (!terminal_ && done % tenth != 0 && done != iterations_) return;
    // Reading the trace takes a core for a while, which the lanes want: at most a few times a second.
    const auto now = std::chrono::steady_clock::now();
    if (terminal_ && done != iterations_ && now - drawn_ < std::chrono::milliseconds(250)) return;
    drawn_ = now;
    std::string overlap;
    if (all_lanes_) {  // of the last `window` batches, from the trace
      auto spans = trace.spans();
      std::erase_if(spans,
                    [&](const trace::span_record& span) { return span.batch <= iteration.batch - window; });
      overlap = printed("  overlap %.0f %%", trace::make_report(spans).overlap);
    }
    std::string tasks;  // of a few
    std::size_t played = 0;
    for (const auto& [episodes, solved] : iteration.update.tasks)
      if (episodes > 0) tasks += printed(played++ == 0 ? "%.2f" : ", %.2f", solved / episodes);
    tasks = played > 1 && played <= 4 ? " (" + tasks + ")" : "";
    // env_steps/s since the first batch seen.
    const double seconds = iteration.elapsed_s - first_->elapsed_s;
    const double rate =
        seconds > 0 ? static_cast<double>(iteration.counts.env_steps - first_->counts.env_steps) / seconds
                    : 0;
    const double left = seconds > 0 ? seconds / static_cast<double>(iteration.batch - first_->batch) *
                                          static_cast<double>(iterations_ - done)
                                    : 0;
    constexpr int width = 24;
    const int filled = static_cast<int>(width * done / std::max<std::int64_t>(iterations_, 1));
    std::string bar(static_cast<std::size_t>(filled), '#');
    bar.resize(width, '.');
    std::cerr << printed(
        "%s[%s] %lld/%lld  success %.2f%s  |gradient| %.2g  %.0f env_steps/s%s  staleness %lld  %.0f s left "
        "%s",
        terminal_ ? "\r" : "", bar.c_str(), static_cast<long long>(done), static_cast<long long>(iterations_),
        iteration.update.success_rate, tasks.c_str(), iteration.update.gradient_norm, rate, overlap.c_str(),
        static_cast<long long>(iteration.staleness), left, terminal_ ? "" : "\n");
  }

  /// A line between: a warning, so it is printed under `quiet` too.
  void say(const std::string& line) {
    const std::scoped_lock lock(mutex_);
    std::cerr << (terminal_ && !quiet_ ? "\r\033[K" : "") + line + "\n";
  }

  void finish() const {
    if (!quiet_ && terminal_) std::cerr << "\n";
  }

 private:
  static constexpr std::int64_t window = 10;
  std::int64_t iterations_;
  bool quiet_;
  bool all_lanes_;
  bool terminal_;
  std::mutex mutex_;
  std::optional<Iteration> first_;
  std::chrono::steady_clock::time_point drawn_{};
};

}  // namespace dvla
