// What one process recorded, as values: to be sent to another process, and merged there into one picture.
// Times are of the wall clock, so that processes of several machines share an axis as well as their clocks
// agree.
#pragma once

#include <algorithm>
#include <array>
#include <boost/hana.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

/// A plain value; the spans' names live in `texts` or are literals.
struct process {
  std::string name;
  std::vector<std::string> rows;
  std::vector<span_record> spans;
  std::int64_t dropped = 0;
  std::shared_ptr<const std::deque<std::string>> texts;
};

/// The newest `most` spans of a recorder; those before them count as dropped.
template <class AnyRecorder>
process snapshot(const AnyRecorder& recorder, std::string name,
                 std::size_t most = std::numeric_limits<std::size_t>::max()) {
  process taken{std::move(name), recorder.rows(), recorder.spans(), recorder.dropped(), {}};
  if (taken.spans.size() > most) {
    const auto older = static_cast<std::ptrdiff_t>(taken.spans.size() - most);
    std::nth_element(taken.spans.begin(), taken.spans.begin() + older, taken.spans.end(),
                     [](const auto& a, const auto& b) { return a.end_ns < b.end_ns; });
    taken.spans.erase(taken.spans.begin(), taken.spans.begin() + older);
    taken.dropped += older;
  }
  const std::int64_t wall = std::chrono::duration_cast<std::chrono::nanoseconds>(
                                std::chrono::system_clock::now().time_since_epoch())
                                .count() -
                            now_ns();
  for (span_record& span : taken.spans) {
    span.begin_ns += wall;
    span.end_ns += wall;
  }
  return taken;
}

/// The same for another process, as a reflected struct: a span's name and category are places in `names`.
struct packed_process {
  std::string name;
  std::vector<std::string> rows, names;
  std::vector<std::array<std::int64_t, 6>> spans;  ///< name, category, batch, begin, duration, row
  std::int64_t dropped = 0;
};

inline packed_process pack(const process& from) {
  packed_process packed{from.name, from.rows, {}, {}, from.dropped};
  std::map<std::string_view, std::int64_t> places;
  const auto place = [&](std::string_view name) {
    const auto [found, fresh] = places.try_emplace(name, std::ssize(packed.names));
    if (fresh) packed.names.emplace_back(name);
    return found->second;
  };
  for (const span_record& span : from.spans) {
    const std::int64_t name = place(span.name), category = place(span.category);
    packed.spans.push_back(
        {name, category, span.batch, span.begin_ns, span.end_ns - span.begin_ns, span.row});
  }
  return packed;
}

/// Throws FormatError for what no `pack` returns.
inline process unpack(packed_process from) {
  const auto expect = [](bool sound, const char* what) {
    if (!sound) throw FormatError(std::string("trace of another process: ") + what);
  };
  auto texts = std::make_shared<std::deque<std::string>>(from.names.begin(), from.names.end());
  const auto name = [&](std::int64_t place) {
    expect(place >= 0 && place < std::ssize(*texts), "a span has no such name");
    return (*texts)[static_cast<std::size_t>(place)].c_str();
  };
  constexpr std::int64_t most = std::int64_t{1} << 62;
  process read{std::move(from.name), std::move(from.rows), {}, from.dropped, texts};
  for (const auto& [own, category, batch, begin, took, row] : from.spans) {
    expect(begin >= 0 && begin <= most && took >= 0 && took <= most, "a span lies outside of time");
    expect(row >= 0 && row < std::ssize(read.rows), "a span has no such row");
    read.spans.push_back(
        {name(own), name(category), batch, begin, begin + took, static_cast<std::int32_t>(row)});
  }
  return read;
}

/// The lane spans of a job as of one process: of each batch and lane, the span that ended last, which is the
/// one that the others waited for.
inline std::vector<span_record> slowest(const std::vector<process>& job) {
  std::map<std::pair<std::int64_t, std::string_view>, span_record> last;
  for (const process& each : job)
    for (const span_record& span : each.spans) {
      if (std::string_view(span.category) != "lane") continue;
      const auto [found, fresh] = last.try_emplace({span.batch, span.name}, span);
      if (!fresh && span.end_ns > found->second.end_ns) found->second = span;
    }
  std::vector<span_record> all;
  for (const auto& [key, span] : last) all.push_back(span);
  return all;
}

}  // namespace dvla::trace

BOOST_HANA_ADAPT_STRUCT(dvla::trace::packed_process, name, rows, names, spans, dropped);
