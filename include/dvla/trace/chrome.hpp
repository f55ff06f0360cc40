// Writes a trace as Chrome trace-event JSON: ui.perfetto.dev and chrome://tracing open it. A block of rows a
// process.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/trace/process.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

namespace detail {
/// A JSON string. Bytes outside ASCII become U+FFFD, so that the file is valid whatever a name holds.
inline std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(byte));
      out += code;
    } else {
      out += byte < 0x80 ? std::string(1, c) : "\\ufffd";
    }
  }
  return out + '"';
}

/// Microseconds with three decimals, which is what the format wants, without a rounding double.
inline std::string microseconds(std::int64_t ns) {
  ns = std::max<std::int64_t>(0, ns);
  char text[40];
  std::snprintf(text, sizeof text, "%lld.%03d", static_cast<long long>(ns / 1000),
                static_cast<int>(ns % 1000));
  return text;
}
}  // namespace detail

/// A block of rows a process, a row a thread. Time 0 is the first span's begin. "dropped" at the top level
/// says how many spans are missing.
inline void write_chrome(std::ostream& out, const std::vector<process>& job) {
  std::int64_t origin = std::numeric_limits<std::int64_t>::max(), dropped = 0;
  for (const process& each : job) {
    dropped += each.dropped;
    for (const auto& span : each.spans) origin = std::min(origin, span.begin_ns);
  }
  out << "{\"displayTimeUnit\":\"ms\",\"dropped\":" << dropped << ",\"traceEvents\":[";
  const char* comma = "\n";
  for (std::size_t place = 0; place < job.size(); ++place) {
    const process& each = job[place];
    const std::string prefix = "\"pid\":" + std::to_string(place + 1);
    const auto meta = [&](const char* what, const std::string& more, const std::string& argument) {
      out << comma << R"({"ph":"M","name":")" << what << "\"," << prefix << more << ",\"args\":{" << argument
          << "}}";
      comma = ",\n";
    };
    meta("process_name", "", "\"name\":" + detail::quoted(each.name));
    if (job.size() > 1) meta("process_sort_index", "", "\"sort_index\":" + std::to_string(place));
    for (std::size_t row = 0; row < each.rows.size(); ++row) {
      const std::string thread = ",\"tid\":" + std::to_string(row);
      meta("thread_name", thread, "\"name\":" + detail::quoted(each.rows[row]));
      meta("thread_sort_index", thread, "\"sort_index\":" + std::to_string(row));
    }
    for (const auto& span : each.spans)
      out << ",\n{\"ph\":\"X\",\"name\":" << detail::quoted(span.name)
          << ",\"cat\":" << detail::quoted(span.category)
          << ",\"ts\":" << detail::microseconds(span.begin_ns - origin)
          << ",\"dur\":" << detail::microseconds(span.end_ns - span.begin_ns) << ',' << prefix
          << ",\"tid\":" << span.row << ",\"args\":{\"batch\":" << span.batch << "}}";
  }
  out << "\n]}\n";
}

/// Of one process, all that its recorder has.
template <class AnyRecorder>
void write_chrome(std::ostream& out, const AnyRecorder& recorder, std::string_view name = "dvla") {
  write_chrome(out, {snapshot(recorder, std::string(name), std::numeric_limits<std::size_t>::max())});
}

/// The same into a file. Throws Error if it cannot be written.
inline void write_chrome_file(const std::string& path, const std::vector<process>& job) {
  std::ofstream file(path, std::ios::binary);
  write_chrome(file, job);
  file.close();
  if (!file) throw Error("trace: cannot write '" + path + "'; check that its folder exists and has room");
}
template <class AnyRecorder>
void write_chrome_file(const std::string& path, const AnyRecorder& recorder, std::string_view name = "dvla") {
  write_chrome_file(path, {snapshot(recorder, std::string(name), std::numeric_limits<std::size_t>::max())});
}

}  // namespace dvla::trace
