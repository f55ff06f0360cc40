// Writes a trace as Chrome trace-event JSON: ui.perfetto.dev and chrome://tracing open it. A row a thread.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <ostream>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
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

/// Time 0 is the first span's begin. "dropped" at the top level says how many spans are missing.
template <class AnyRecorder>
void write_chrome(std::ostream& out, const AnyRecorder& recorder, std::string_view process = "dvla",
                  int pid = 1) {
  const auto spans = recorder.spans();
  const auto rows = recorder.rows();
  std::int64_t origin = std::numeric_limits<std::int64_t>::max();
  for (const auto& span : spans) origin = std::min(origin, span.begin_ns);
  const std::string prefix = "\"pid\":" + std::to_string(pid);
  out << "{\"displayTimeUnit\":\"ms\",\"dropped\":" << recorder.dropped() << ",\"traceEvents\":[\n"
      << R"({"ph":"M","name":"process_name",)" << prefix << R"(,"args":{"name":)" << detail::quoted(process)
      << "}}";
  for (std::size_t row = 0; row < rows.size(); ++row) {
    out << ",\n{\"ph\":\"M\",\"name\":\"thread_name\"," << prefix << ",\"tid\":" << row
        << ",\"args\":{\"name\":" << detail::quoted(rows[row]) << "}}"
        << ",\n{\"ph\":\"M\",\"name\":\"thread_sort_index\"," << prefix << ",\"tid\":" << row
        << ",\"args\":{\"sort_index\":" << row << "}}";
  }
  for (const auto& span : spans)
    out << ",\n{\"ph\":\"X\",\"name\":" << detail::quoted(span.name)
        << ",\"cat\":" << detail::quoted(span.category)
        << ",\"ts\":" << detail::microseconds(span.begin_ns - origin)
        << ",\"dur\":" << detail::microseconds(span.end_ns - span.begin_ns) << ',' << prefix
        << ",\"tid\":" << span.row << ",\"args\":{\"batch\":" << span.batch << "}}";
  out << "\n]}\n";
}

/// The same into a file. Throws Error if it cannot be written.
template <class AnyRecorder>
void write_chrome_file(const std::string& path, const AnyRecorder& recorder,
                       std::string_view process = "dvla") {
  std::ofstream file(path, std::ios::binary);
  write_chrome(file, recorder, process);
  file.close();
  if (!file) throw Error("trace: cannot write '" + path + "'; check that its folder exists and has room");
}

}  // namespace dvla::trace
