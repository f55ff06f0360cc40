// What one process recorded, as values: to be sent to another process, and merged there into one picture.
// Times are of the wall clock, so that processes of several machines share an axis as well as their clocks
// agree.
#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <deque>
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
process snapshot(const AnyRecorder& recorder, std::string name, std::size_t most = std::size_t{1} << 16) {
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

/// Numbers and texts, each text with its length before it.
inline std::string serialise(const process& from) {
  std::string out = "dvla-trace 1";
  const auto number = [&](std::int64_t value) { out += ' ' + std::to_string(value); };
  const auto text = [&](std::string_view value) {
    number(static_cast<std::int64_t>(value.size()));
    out += ' ';
    out += value;
  };
  std::map<std::string_view, std::int64_t> places;
  std::vector<std::string_view> names;
  const auto place = [&](std::string_view name) {
    const auto [found, fresh] = places.try_emplace(name, std::ssize(names));
    if (fresh) names.push_back(name);
    return found->second;
  };
  for (const span_record& span : from.spans) place(span.name), place(span.category);
  text(from.name);
  number(from.dropped);
  number(std::ssize(from.rows));
  for (const std::string& row : from.rows) text(row);
  number(std::ssize(names));
  for (const std::string_view name : names) text(name);
  number(std::ssize(from.spans));
  for (const span_record& span : from.spans)
    for (const std::int64_t value : {place(span.name), place(span.category), span.batch, span.begin_ns,
                                     span.end_ns - span.begin_ns, std::int64_t{span.row}})
      number(value);
  return out;
}

/// What `serialise` wrote. Throws FormatError for any other text, never anything else.
inline process parse_process(std::string_view from) {
  constexpr std::string_view head = "dvla-trace 1";
  const auto refuse = [](const char* what) {
    throw FormatError(std::string("trace of another process: ") + what +
                      "; the ranks' programs differ, or the text was cut");
  };
  if (!from.starts_with(head)) refuse("this text is none");
  from.remove_prefix(head.size());
  const auto number = [&] {
    std::int64_t value = 0;
    if (from.empty() || from.front() != ' ') refuse("a number is missing");
    from.remove_prefix(1);
    const auto [end, error] = std::from_chars(from.data(), from.data() + from.size(), value);
    if (error != std::errc{}) refuse("a number is missing or too large");
    from.remove_prefix(static_cast<std::size_t>(end - from.data()));
    return value;
  };
  const auto count = [&] {  // of things that each take two characters at least
    const std::int64_t value = number();
    if (value < 0 || static_cast<std::size_t>(value) > from.size()) refuse("it has fewer parts than it says");
    return static_cast<std::size_t>(value);
  };
  const auto text = [&] {
    const std::size_t size = count();
    if (from.size() < size + 1 || from.front() != ' ') refuse("a text is cut");
    std::string value(from.substr(1, size));
    from.remove_prefix(size + 1);
    return value;
  };
  process read;
  read.name = text();
  read.dropped = number();
  for (std::size_t rows = count(); rows-- > 0;) read.rows.push_back(text());
  auto texts = std::make_shared<std::deque<std::string>>();
  for (std::size_t names = count(); names-- > 0;) texts->push_back(text());
  const auto name = [&] {
    const std::int64_t place = number();
    if (place < 0 || place >= std::ssize(*texts)) refuse("a span has no such name");
    return (*texts)[static_cast<std::size_t>(place)].c_str();
  };
  for (std::size_t spans = count(); spans-- > 0;) {
    span_record span;
    span.name = name();
    span.category = name();
    span.batch = number();
    span.begin_ns = number();
    const std::int64_t took = number();
    const std::int64_t row = number();
    constexpr std::int64_t most = std::int64_t{1} << 62;
    if (span.begin_ns < 0 || span.begin_ns > most || took < 0 || took > most)
      refuse("a span lies outside of time");
    if (row < 0 || row >= std::ssize(read.rows)) refuse("a span has no such row");
    span.end_ns = span.begin_ns + took;
    span.row = static_cast<std::int32_t>(row);
    read.spans.push_back(span);
  }
  if (!from.empty()) refuse("something follows its last span");
  read.texts = std::move(texts);
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
