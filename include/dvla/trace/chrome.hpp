// Writes a trace as Chrome trace-event JSON: ui.perfetto.dev and chrome://tracing open it. A block of rows a
// process.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/trace/process.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

/// A block of rows a process, a row a thread. Time 0 is the first span's begin. "dropped" at the top level
/// says how many spans are missing. Names may hold anything: bytes that are no UTF-8 become U+FFFD.
inline void write_chrome(std::ostream& out, const std::vector<process>& job) {
  using nlohmann::json;
  std::int64_t origin = std::numeric_limits<std::int64_t>::max(), dropped = 0;
  for (const process& each : job) {
    dropped += each.dropped;
    for (const auto& span : each.spans()) origin = std::min(origin, span.begin_ns);
  }
  out << "{\"displayTimeUnit\":\"ms\",\"dropped\":" << std::to_string(dropped) << ",\"traceEvents\":[";
  const char* comma = "\n";
  const auto write = [&](const json& event) {
    out << comma << event.dump(-1, ' ', true, json::error_handler_t::replace);
    comma = ",\n";
  };
  const auto microseconds = [](std::int64_t ns) {
    return static_cast<double>(std::max<std::int64_t>(0, ns)) / 1e3;
  };
  for (std::size_t place = 0; place < job.size(); ++place) {
    const process& each = job[place];
    const auto meta = [&](const char* what, std::size_t row, const json& arguments) {
      write({{"ph", "M"}, {"name", what}, {"pid", place + 1}, {"tid", row}, {"args", arguments}});
    };
    meta("process_name", 0, {{"name", each.name}});
    if (job.size() > 1) meta("process_sort_index", 0, {{"sort_index", place}});
    for (std::size_t row = 0; row < each.rows.size(); ++row) {
      meta("thread_name", row, {{"name", each.rows[row]}});
      meta("thread_sort_index", row, {{"sort_index", row}});
    }
    for (const auto& span : each.spans())
      write({{"ph", "X"},
             {"name", span.name},
             {"cat", span.category},
             {"ts", microseconds(span.begin_ns - origin)},
             {"dur", microseconds(span.end_ns - span.begin_ns)},
             {"pid", place + 1},
             {"tid", span.row},
             {"args", {{"batch", span.batch}}}});
  }
  out << "\n]}\n";
}

/// The same into a file. Throws Error if it cannot be written, and leaves none then.
inline void write_chrome_file(const std::string& path, const std::vector<process>& job) {
  std::ofstream file(path, std::ios::binary);
  write_chrome(file, job);
  file.close();
  if (file) return;
  std::remove(path.c_str());  // half of it is no JSON
  throw Error("trace: cannot write '" + path + "'; check that its folder exists and has room");
}

}  // namespace dvla::trace
