// A recording as a file: one line of JSON, with a checksum. What is not the very text that a run wrote is
// refused, and so is what no run can have done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include "dvla/core/checksum.hpp"
#include "dvla/core/json.hpp"
#include "dvla/schedule/recording.hpp"

namespace dvla {

namespace detail {
struct SealedRecording {
  Recording recording{};
  std::uint64_t checksum = 0;  ///< of the recording's text
};
}  // namespace detail

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::detail::SealedRecording, recording, checksum);

namespace dvla {

namespace detail {
inline std::string sealed_text(const Recording& recording) {
  const std::string text = json_text(recording);
  const std::uint64_t sum = checksum(std::as_bytes(std::span<const char>(text)));
  return json_text(SealedRecording{recording, sum}) + "\n";
}
}  // namespace detail

/// Without the hand-overs in a rollout that failed.
inline std::string to_text(Recording recording) {
  std::erase_if(recording.hand_overs, [end = recording.first_batch + recording.batches](const HandOver& one) {
    return one.batch >= end;
  });
  return detail::sealed_text(recording);
}

/// Throws FormatError, one sentence that opens with `name`, unless `text` is whole and could be of a run.
inline Recording parse_recording(std::string_view text, const std::string& name) {
  const std::string opening = "'" + name + "' is no recording of hand-overs that can be replayed";
  Recording recording = parse_json<detail::SealedRecording>(text, opening).recording;
  std::string flaw = detail::sealed_text(recording) == text
                         ? detail::flaw_of(recording)
                         : "it was damaged or edited: its checksum is of another text";
  if (!flaw.empty()) throw FormatError(opening + ": " + flaw);
  return recording;
}

/// From a file. Throws ConfigError if it cannot be read, FormatError as parse_recording.
inline Recording read_recording(const std::string& path) {
  if (path.empty())
    throw ConfigError("schedule.recording is empty: name the hand_overs.json of a recorded run");
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char part[1 << 14];
  while (file.read(part, sizeof part), file.gcount() > 0)
    text.append(part, static_cast<std::size_t>(file.gcount()));
  if (!file.eof()) throw ConfigError("schedule.recording is '" + path + "', which cannot be read");
  return parse_recording(text, path);
}

}  // namespace dvla
