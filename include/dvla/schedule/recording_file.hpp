// A recording as a file: one line of JSON, with a checksum. What is not the very text that a run wrote is
// refused, and so is what no run can have done.
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/schedule/recording.hpp"

namespace dvla {

/// Without the hand-overs in a rollout that failed.
inline std::string to_text(Recording recording) {
  std::erase_if(recording.hand_overs, [end = recording.first_batch + recording.batches](const HandOver& one) {
    return one.batch >= end;
  });
  return sealed_text(recording);
}

/// Throws FormatError, one sentence that opens with `name`, unless `text` is whole and could be of a run.
inline Recording parse_recording(std::string_view text, const std::string& name) {
  const std::string opening = "'" + name + "' is no recording of hand-overs that can be replayed";
  Recording recording = parse_sealed<Recording>(text, opening);
  if (const std::string flaw = detail::flaw_of(recording); !flaw.empty())
    throw FormatError(opening, ": ", flaw);
  return recording;
}

/// From a file. Throws ConfigError if it cannot be read, FormatError as parse_recording.
inline Recording read_recording(const std::string& path) {
  if (path.empty())
    throw ConfigError("schedule.recording is empty: name the hand_overs.json of a recorded run");
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!(text << file.rdbuf())) throw ConfigError("schedule.recording is '", path, "', which cannot be read");
  return parse_recording(text.str(), path);
}

}  // namespace dvla
