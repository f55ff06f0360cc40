// What record.py wrote, played again through a machinery: the same bits, or where they differ.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "dvla/core/record.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/io/child_process.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "test/io/temporary_folder.hpp"

namespace dvla_test {

/// The interpreter that scripts/setup makes for this simulator; empty: it is not there.
inline std::string simulator_python(const std::string& kind) {
  const std::string python = DVLA_TEST_DIR "/../.venv-" + kind + "/bin/python";
  return std::filesystem::exists(python) &&
                 std::filesystem::exists(DVLA_TEST_DIR "/../.venv-" + kind + "/dvla-setup")
             ? python
             : "";
}

struct Recording {
  std::int64_t rows = 0, steps = 0, A = 0, P = 0, F = 0, horizon = 0;
  std::vector<char> bytes{};
};

/// Throws Error with what the script says, where it fails.
inline Recording record(const std::string& kind, const std::string& name, std::vector<std::string> more,
                        const std::filesystem::path& folder) {
  const std::string out = (folder / "record").string();
  std::vector<std::string> command{simulator_python(kind), DVLA_TEST_DIR "/environment/record.py", kind, name,
                                   out};
  command.insert(command.end(), more.begin(), more.end());
  const auto done = dvla::io::run_child(command, {}, std::chrono::minutes(5));
  if (done.exit_code != 0) throw dvla::Error("record.py ", name, ": ", done.out, done.err);
  std::ifstream file(out, std::ios::binary);
  Recording all;
  file >> all.rows >> all.steps >> all.A >> all.P >> all.F >> all.horizon;
  file.get();
  all.bytes.assign(std::istreambuf_iterator<char>(file), {});
  return all;
}

/// What a replay has compared, and how far it was from what was recorded.
struct Agreement {
  std::vector<std::string> wrong{};                 ///< sentences, the first few; empty: every bit agrees
  std::int64_t numbers = 0, pixels = 0, flags = 0;  ///< compared: float32, bytes of pictures, steps' flags
  std::int64_t other_numbers = 0, other_pixels = 0;
  double furthest_number = 0;
  int furthest_pixel = 0;
  std::int64_t episodes = 0, solved = 0, failed = 0, cut = 0;  ///< begun; and how they ended

  std::string text() const {
    return std::to_string(episodes) + " episodes, " + std::to_string(solved) + " solved, " +
           std::to_string(failed) + " failed, " + std::to_string(cut) + " cut off; " +
           std::to_string(other_numbers) + " of " + std::to_string(numbers) + " numbers and " +
           std::to_string(other_pixels) + " of " + std::to_string(pixels) +
           " bytes of pictures differ, by at most " + std::to_string(furthest_number) + " and " +
           std::to_string(furthest_pixel) + "; " + std::to_string(flags) + " steps' flags";
  }
};

/// Plays it with chunks of one control step, in episodes to learn from where `training`.
template <class Machinery, class Knobs>
Agreement replay(const Recording& recorded, Knobs knobs, bool training = false) {
  Agreement agreed;
  const auto say = [&](const std::string& what) {
    if (agreed.wrong.size() < 5) agreed.wrong.push_back(what);
  };
  knobs.environments = static_cast<int>(recorded.rows);
  dvla::EnvironmentPool pool(std::size_t{8} << 20);
  Machinery environment(knobs, pool);
  std::int64_t bytes_of_frames = 0;
  for (const dvla::CameraSpec& camera : environment.observation_spec().cameras)
    bytes_of_frames += std::int64_t{3} * camera.height * camera.width;
  if (environment.observation_spec().proprioception != recorded.P || bytes_of_frames != recorded.F ||
      environment.action_spec().dimensions != recorded.A || environment.horizon() != recorded.horizon) {
    say("other extents than recorded");
    return agreed;
  }
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                              {.decisions = 1, .episodes = recorded.rows, .chunk = 1}),
      pool);
  const auto seen = dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  dvla::Arena arena;
  dvla::RowFailures failures(recorded.rows);
  const char* next = recorded.bytes.data();
  const std::int64_t of_numbers = recorded.P * std::int64_t{sizeof(float)},
                     of_shown = of_numbers + recorded.F;
  const auto facts_at = [](const char* at) {
    std::array<float, 4> facts;  // reward, terminated, truncated, success
    std::memcpy(facts.data(), at, sizeof facts);
    return facts;
  };
  const auto compare = [&](std::int64_t row, const std::string& where) {
    const float* shown = recorded.P > 0 ? seen.proprioception.at(row).data() : nullptr;
    for (std::int64_t i = 0; i < recorded.P; ++i) {
      float told;
      std::memcpy(&told, next + i * std::int64_t{sizeof(float)}, sizeof told);
      ++agreed.numbers;
      if (std::memcmp(&shown[i], &told, sizeof told) == 0) continue;
      ++agreed.other_numbers;
      agreed.furthest_number = std::max(agreed.furthest_number, std::abs(double{shown[i]} - told));
      say(where + ": number " + std::to_string(i) + " is " + std::to_string(shown[i]) + ", recorded " +
          std::to_string(told));
    }
    const char* picture = next + of_numbers;
    for (const auto& frames : seen.frames) {
      if (frames.absent()) continue;
      for (const std::uint8_t pixel : frames.at(row).span()) {
        const int off = std::abs(int{pixel} - int{static_cast<std::uint8_t>(*picture++)});
        ++agreed.pixels;
        if (off == 0) continue;
        ++agreed.other_pixels;
        agreed.furthest_pixel = std::max(agreed.furthest_pixel, off);
        say(where + ": a byte of its pictures is off by " + std::to_string(off));
      }
    }
    next += of_shown;
  };
  std::vector<std::int64_t> episodes(static_cast<std::size_t>(recorded.rows), 0);
  const auto reset = [&](std::int64_t row) {
    const std::vector<std::int64_t> one{row};
    const std::vector<dvla::Start> starts{
        {.seed = static_cast<std::uint64_t>(1000 * episodes[static_cast<std::size_t>(row)]++ + row),
         .training = training}};
    dvla::Rows of(one, arena, failures);
    environment.reset(of, starts, seen);
    ++agreed.episodes;
    compare(row, "row " + std::to_string(row) + " at a reset");
  };
  std::vector<std::int64_t> everybody;
  for (std::int64_t row = 0; row < recorded.rows; ++row) {
    everybody.push_back(row);
    reset(row);
  }
  for (std::int64_t t = 0; t < recorded.steps; ++t) {
    const char* from = next;
    std::vector<bool> ended;
    for (std::int64_t row = 0; row < recorded.rows; ++row) {
      const auto of_action = static_cast<std::size_t>(recorded.A) * sizeof(float);
      std::memcpy(all->action.at(0).at(row).data(), from, of_action);
      from += static_cast<std::int64_t>(of_action) + of_shown;
      const auto facts = facts_at(from);
      ended.push_back(facts[1] + facts[2] + facts[3] > 0);
      from += sizeof facts + (ended.back() ? static_cast<std::size_t>(of_shown) : 0);
    }
    dvla::Rows of(everybody, arena, failures);
    environment.step(of, all->action.at(0),
                     {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen});
    for (std::int64_t row = 0; row < recorded.rows; ++row) {
      const std::string where = "row " + std::to_string(row) + " after step " + std::to_string(t);
      if (failures.has(row)) {
        say(where + ": " + failures.why(row));
        return agreed;
      }
      next += recorded.A * std::int64_t{sizeof(float)};
      compare(row, where);
      const auto facts = facts_at(next);
      const bool success = facts[3] > 0, terminated = facts[1] > 0 || success;  // where it is solved, it ends
      const bool cut = facts[2] > 0 && !terminated;
      ++agreed.numbers;
      ++agreed.flags;
      if (std::memcmp(&all->reward[row], &facts[0], sizeof(float)) != 0) {
        ++agreed.other_numbers;
        agreed.furthest_number =
            std::max(agreed.furthest_number, std::abs(double{all->reward[row]} - facts[0]));
        say(where + ": its reward is " + std::to_string(all->reward[row]) + ", recorded " +
            std::to_string(facts[0]));
      }
      if ((all->terminated[row] == 1) != terminated || (all->truncated[row] == 1) != cut ||
          environment.succeeded(row) != success)
        say(where + ": flags or success differ");
      agreed.solved += success;
      agreed.failed += terminated && !success;
      agreed.cut += cut;
      next += sizeof facts;
      if (ended[static_cast<std::size_t>(row)]) reset(row);
    }
  }
  if (next != recorded.bytes.data() + recorded.bytes.size()) say("it goes on");
  return agreed;
}

/// What main() returns of a test that needs this simulator: skipped where it is not there.
inline int run_with(const std::string& kind, int argc, char** argv) {
  if (!simulator_python(kind).empty()) return doctest::Context(argc, argv).run();
  std::printf("skipped: .venv-%s is not there; scripts/setup %s makes it\n", kind.c_str(), kind.c_str());
  return 77;
}

}  // namespace dvla_test
