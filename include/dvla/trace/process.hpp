// What one process recorded, as values: to be sent to another process, and merged there into one picture.
// Times are of the wall clock, so that processes of several machines share an axis as well as their clocks
// agree.
#pragma once

#include <algorithm>
#include <array>
#include <boost/hana.hpp>
#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

/// A reflected struct, so that it has a text form.
struct process {
  std::string name;
  std::vector<std::string> rows, names;
  std::vector<std::array<std::int64_t, 6>>
      packed;  ///< places in `names` of name and category, batch, begin, duration, row
  std::int64_t dropped = 0;

  void add(const span_record& span) {
    const auto place = [&](std::string_view text) -> std::int64_t {
      const std::int64_t at = std::find(names.begin(), names.end(), text) - names.begin();
      if (at == std::ssize(names)) names.emplace_back(text);
      return at;
    };
    const std::int64_t called = place(span.name), category = place(span.category);
    packed.push_back({called, category, span.batch, span.begin_ns, span.end_ns - span.begin_ns, span.row});
  }

  /// Valid while this lives. Throws FormatError where it came from a text that no process is.
  std::vector<span_record> spans() const {
    const auto expect = [](bool sound, const char* what) {
      if (!sound) throw FormatError(std::string("trace of another process: ") + what);
    };
    constexpr std::int64_t most = std::int64_t{1} << 62;
    std::vector<span_record> all;
    for (const auto& [called, category, batch, begin, took, row] : packed) {
      for (const std::int64_t place : {called, category})
        expect(place >= 0 && place < std::ssize(names), "a span has no such name");
      expect(begin >= 0 && begin <= most && took >= 0 && took <= most, "a span lies outside of time");
      expect(row >= 0 && row < std::ssize(rows), "a span has no such row");
      all.push_back({names[static_cast<std::size_t>(called)].c_str(),
                     names[static_cast<std::size_t>(category)].c_str(), batch, begin, begin + took,
                     static_cast<std::int32_t>(row)});
    }
    return all;
  }
};

/// The newest `most` spans of a recorder; those before them count as dropped.
template <class AnyRecorder>
process snapshot(const AnyRecorder& recorder, std::string name,
                 std::size_t most = std::numeric_limits<std::size_t>::max()) {
  std::vector<span_record> spans = recorder.spans();
  process taken{std::move(name), recorder.rows(), {}, {}, recorder.dropped()};  // rows are never fewer later
  if (spans.size() > most) {
    const auto older = static_cast<std::ptrdiff_t>(spans.size() - most);
    std::nth_element(spans.begin(), spans.begin() + older, spans.end(),
                     [](const auto& a, const auto& b) { return a.end_ns < b.end_ns; });
    spans.erase(spans.begin(), spans.begin() + older);
    taken.dropped += older;
  }
  const std::int64_t wall = std::chrono::duration_cast<std::chrono::nanoseconds>(
                                std::chrono::system_clock::now().time_since_epoch())
                                .count() -
                            now_ns();
  for (span_record& span : spans) {
    span.begin_ns += wall;
    span.end_ns += wall;
    taken.add(span);
  }
  return taken;
}

/// The lane spans of a job as of one process: of each batch and lane, the span that ended last, which is the
/// one that the others waited for.
inline std::vector<span_record> slowest(const std::vector<process>& job) {
  std::map<std::pair<std::int64_t, std::string_view>, span_record> last;
  for (const process& each : job)
    for (const span_record& span : each.spans()) {
      if (std::string_view(span.category) != "lane") continue;
      const auto [found, fresh] = last.try_emplace({span.batch, span.name}, span);
      if (!fresh && span.end_ns > found->second.end_ns) found->second = span;
    }
  std::vector<span_record> all;
  for (const auto& [key, span] : last) all.push_back(span);
  return all;
}

}  // namespace dvla::trace

BOOST_HANA_ADAPT_STRUCT(dvla::trace::process, name, rows, names, packed, dropped);
