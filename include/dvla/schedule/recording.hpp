// What makes an asynchronous run irreproducible, written down: from which chunk boundary of which rollout on
// a weight version decided. All else follows from seeds and from the order of batches, which no lane changes.
// Paper: "weights are swapped at chunk boundaries". Replay repeats a recording. A plain struct and its text
// form; writes no files. Memory: 32 bytes a version that decided, so at most 32 bytes a batch.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// Weights handed over to the sampler: from this chunk boundary of this batch on they decide, until the next
/// hand-over.
struct HandOver {
  std::int64_t version = 0;
  std::int64_t batch = 0;
  std::int64_t boundary = 0;  ///< counted in the batch, from 0
  std::uint64_t weights = 0;  ///< checksum
  bool operator==(const HandOver&) const = default;
};

struct Recording {
  int staleness = 0;                             ///< K of the recorded run
  std::int64_t boundaries = 0;                   ///< chunk boundaries of each batch
  std::int64_t first_batch = 0;                  ///< also the version that the run began with
  std::int64_t batches = 0;                      ///< rollouts that came to their end
  std::vector<HandOver> hand_overs{};            ///< in order; the first is that of the weights at the start
  std::optional<std::uint64_t> final_weights{};  ///< checksum at the end; none if the run failed
  bool operator==(const Recording&) const = default;
};

namespace detail {

/// Writes one rollout down: what sample(token, boundaries) is given while a run records.
class recording_boundaries {
 public:
  recording_boundaries(Recording& into, std::int64_t batch) : into_(into), batch_(batch) {}

  void before(std::int64_t) {}
  template <class Checksum>
  void decides(std::int64_t boundary, std::int64_t version, const Checksum& weights_checksum) {
    auto& all = into_.hand_overs;
    if (boundary != passed_++ || (!all.empty() && version < all.back().version))
      throw Error("stage 'sample' tells of version " + std::to_string(version) + " at chunk boundary " +
                  std::to_string(boundary) + "; boundaries are counted from 0, and versions never fall");
    if (all.empty() || version > all.back().version)
      all.push_back({version, batch_, boundary, weights_checksum()});
  }
  /// The rollout is over.
  void end() {
    if (into_.batches == 0) into_.boundaries = passed_;
    if (passed_ == 0 || passed_ != into_.boundaries)
      throw Error(
          "stage 'sample' passed " + std::to_string(passed_) + " chunk boundaries; that must be " +
          (passed_ == 0 ? "1 or more" : std::to_string(into_.boundaries) + ", as in the first batch"));
    ++into_.batches;
  }

 private:
  Recording& into_;
  const std::int64_t batch_;
  std::int64_t passed_ = 0;
};

/// What no run can have done, in a sentence; empty: nothing.
inline std::string flaw_of(const Recording& recording) {
  const std::int64_t boundaries = recording.boundaries, first = recording.first_batch,
                     batches = recording.batches, bound = recording.staleness;
  const std::vector<HandOver>& all = recording.hand_overs;
  constexpr std::int64_t most = std::int64_t{1} << 53;
  if (bound < 0 || bound > 1024) return "its staleness is not 0 to 1024";
  if (first < 0 || first > most || batches < 0 || batches > most) return "it has no sound range of batches";
  if (batches == 0) return all.empty() ? "" : "it has hand-overs, but no batch";
  if (boundaries < 1 || boundaries > most) return "its batches have no chunk boundaries";
  if (all.empty() || all[0].version != first || all[0].batch != first || all[0].boundary != 0)
    return "it does not begin with the weights of its first batch";
  const auto too_old = [&](const HandOver& deciding, std::int64_t begun) {
    if (begun - deciding.version <= bound) return std::string();
    return "batch " + std::to_string(begun) + " begins with version " + std::to_string(deciding.version) +
           ", more than its staleness of " + std::to_string(bound) + " allows";
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    const HandOver& one = all[i];
    const auto but = [&](const char* what) {
      return "its hand-over of version " + std::to_string(one.version) + what;
    };
    if (one.batch < first || one.batch >= first + batches || one.boundary < 0 || one.boundary >= boundaries)
      return but(" lies in no rollout");
    if (one.version > one.batch) return but(" comes before those weights were made");
    if (i == 0) continue;
    const HandOver& earlier = all[i - 1];
    if (one.version <= earlier.version) return but(" is not of newer weights");
    if (std::tie(one.batch, one.boundary) <= std::tie(earlier.batch, earlier.boundary))
      return but(" is not later than the one before");
    if (std::string flaw = too_old(earlier, one.batch - (one.boundary == 0 ? 1 : 0)); !flaw.empty())
      return flaw;
  }
  return too_old(all.back(), first + batches - 1);
}

inline constexpr std::string_view recording_title = "dvla hand-overs 1";

inline std::string hex_text(std::uint64_t number) {
  char text[24];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

/// Takes words off a line, each followed by one space or the line's end; false once one does not fit.
class line_of_words {
 public:
  explicit line_of_words(std::string_view rest) : rest_(rest) {}
  bool word(std::string_view expected) { return next() == expected; }
  template <class Number>
  bool number(Number& into, int base = 10) {
    const std::string_view text = next();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), into, base);
    return !text.empty() && error == std::errc() && end == text.data() + text.size();
  }
  bool over() const { return over_; }

 private:
  std::string_view next() {
    if (over_) return {};
    const std::size_t space = rest_.find(' ');
    const std::string_view text = rest_.substr(0, space);
    over_ = space == rest_.npos;
    if (!over_) rest_ = rest_.substr(space + 1);
    return text;
  }
  std::string_view rest_;
  bool over_ = false;
};

}  // namespace detail

/// A line a hand-over; the last line ends in a checksum of all that stands before it.
inline std::string to_text(const Recording& recording) {
  std::string text = std::string(detail::recording_title) + "\nstaleness " +
                     std::to_string(recording.staleness) + " boundaries " +
                     std::to_string(recording.boundaries) + " first " +
                     std::to_string(recording.first_batch) + " batches " + std::to_string(recording.batches) +
                     "\nversion batch boundary weights\n";
  for (const HandOver& one : recording.hand_overs) {
    if (one.batch >= recording.first_batch + recording.batches) break;  // in a rollout that failed
    text += std::to_string(one.version) + " " + std::to_string(one.batch) + " " +
            std::to_string(one.boundary) + " " + detail::hex_text(one.weights) + "\n";
  }
  text += "end " + (recording.final_weights ? detail::hex_text(*recording.final_weights) : "failed") + " ";
  return text + detail::hex_text(checksum(std::as_bytes(std::span<const char>(text)))) + "\n";
}

/// Throws FormatError, one sentence that opens with `name`, unless `text` is whole and could be of a run.
inline Recording parse_recording(std::string_view text, const std::string& name) {
  const auto refuse = [&](const std::string& why) {
    throw FormatError("'" + name + "' is no recording of hand-overs that can be replayed: " + why);
  };
  std::string_view rest = text;
  std::int64_t number = 0;
  const auto line = [&] {
    const std::size_t end = rest.find('\n');
    if (end == rest.npos) refuse("it is cut off after line " + std::to_string(number));
    const std::string_view one = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    ++number;
    return detail::line_of_words(one);
  };
  const auto expect = [&](bool good) {
    if (!good) refuse("line " + std::to_string(number) + " is damaged");
  };
  if (text.substr(0, detail::recording_title.size() + 1) != std::string(detail::recording_title) + "\n")
    refuse("its first line must be '" + std::string(detail::recording_title) + "'");
  line();
  Recording recording;
  auto head = line();
  expect(head.word("staleness") && head.number(recording.staleness) && head.word("boundaries") &&
         head.number(recording.boundaries) && head.word("first") && head.number(recording.first_batch) &&
         head.word("batches") && head.number(recording.batches) && head.over());
  auto columns = line();
  expect(columns.word("version") && columns.word("batch") && columns.word("boundary") &&
         columns.word("weights") && columns.over());
  while (rest.substr(0, 4) != "end ") {
    auto words = line();
    HandOver one;
    expect(words.number(one.version) && words.number(one.batch) && words.number(one.boundary) &&
           words.number(one.weights, 16) && words.over());
    recording.hand_overs.push_back(one);
  }
  auto last = line();
  last.word("end");
  std::uint64_t weights = 0, sum = 0;
  if (auto words = last; words.word("failed")) {
    last = words;
  } else {
    expect(last.number(weights, 16));
    recording.final_weights = weights;
  }
  expect(last.number(sum, 16) && last.over());
  const std::string_view summed = text.substr(0, text.size() - rest.size() - 17);  // 16 digits, a line's end
  if (sum != checksum(std::as_bytes(std::span<const char>(summed)))) refuse("its checksum is wrong");
  if (!rest.empty()) refuse("something stands after its end");
  if (const std::string flaw = detail::flaw_of(recording); !flaw.empty()) refuse(flaw);
  return recording;
}

/// From a file. Throws ConfigError if it cannot be read, FormatError as parse_recording.
inline Recording read_recording(const std::string& path) {
  if (path.empty())
    throw ConfigError("schedule.recording is empty: name the hand_overs.txt of a recorded run");
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char part[1 << 14];
  while (file.read(part, sizeof part), file.gcount() > 0)
    text.append(part, static_cast<std::size_t>(file.gcount()));
  if (!file.eof()) throw ConfigError("schedule.recording is '" + path + "', which cannot be read");
  return parse_recording(text, path);
}

}  // namespace dvla
