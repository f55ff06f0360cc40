// What record.py wrote, played again through a machinery: the same bits, or where they differ.
#pragma once

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
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
  std::int64_t rows = 0, steps = 0, A = 0, P = 0, horizon = 0;
  std::vector<float> numbers{};
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
  file >> all.rows >> all.steps >> all.A >> all.P >> all.horizon;
  file.get();
  for (float number; file.read(reinterpret_cast<char*>(&number), sizeof number);)
    all.numbers.push_back(number);
  return all;
}

/// Plays it with chunks of one control step. Returns sentences; empty: every bit agrees.
template <class Machinery, class Knobs>
std::vector<std::string> replay(const Recording& recorded, Knobs knobs) {
  std::vector<std::string> wrong;
  knobs.environments = static_cast<int>(recorded.rows);
  dvla::EnvironmentPool pool(std::size_t{8} << 20);
  Machinery environment(knobs, pool);
  if (environment.observation_spec().proprioception != recorded.P ||
      environment.action_spec().dimensions != recorded.A || environment.horizon() != recorded.horizon)
    return {"other extents than recorded"};
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                              {.decisions = 1, .episodes = recorded.rows, .chunk = 1}),
      pool);
  const auto seen = dvla::cut_record(all->observation, [](auto field) { return field.at(0); });
  dvla::Arena arena;
  dvla::RowFailures failures(recorded.rows);
  const float* next = recorded.numbers.data();
  const auto compare = [&](const float* shown, std::int64_t count, const std::string& what) {
    for (std::int64_t i = 0; i < count; ++i)
      if (std::memcmp(&shown[i], &next[i], sizeof(float)) != 0 && wrong.size() < 5)
        wrong.push_back(what + ": number " + std::to_string(i) + " is " + std::to_string(shown[i]) +
                        ", recorded " + std::to_string(next[i]));
    next += count;
  };
  std::vector<std::int64_t> episodes(static_cast<std::size_t>(recorded.rows), 0);
  const auto reset = [&](std::int64_t row) {
    const std::vector<std::int64_t> one{row};
    const std::vector<dvla::Start> starts{
        {.seed = static_cast<std::uint64_t>(1000 * episodes[static_cast<std::size_t>(row)]++ + row)}};
    dvla::Rows of(one, arena, failures);
    environment.reset(of, starts, seen);
    compare(seen.proprioception.at(row).data(), recorded.P, "row " + std::to_string(row) + " at a reset");
  };
  std::vector<std::int64_t> everybody;
  for (std::int64_t row = 0; row < recorded.rows; ++row) {
    everybody.push_back(row);
    reset(row);
  }
  for (std::int64_t t = 0; t < recorded.steps && wrong.empty(); ++t) {
    const float* from = next;
    std::vector<bool> ended;
    for (std::int64_t row = 0; row < recorded.rows; ++row) {
      std::copy_n(from, recorded.A, all->action.at(0).at(row).data());
      const float* facts = from + recorded.A + recorded.P;
      ended.push_back(facts[1] + facts[2] + facts[3] > 0);
      from = facts + 4 + (ended.back() ? recorded.P : 0);
    }
    dvla::Rows of(everybody, arena, failures);
    environment.step(of, all->action.at(0),
                     {all->reward.at(0), all->terminated.at(0), all->truncated.at(0), seen});
    for (std::int64_t row = 0; row < recorded.rows; ++row) {
      const std::string where = "row " + std::to_string(row) + " after step " + std::to_string(t);
      if (failures.has(row)) return {where + ": " + failures.why(row)};
      next += recorded.A;
      compare(seen.proprioception.at(row).data(), recorded.P, where);
      const bool success = next[3] > 0, terminated = next[1] > 0 || success;  // where it is solved, it ends
      if (all->reward[row] != next[0] || (all->terminated[row] == 1) != terminated ||
          (all->truncated[row] == 1) != (next[2] > 0 && !terminated) || environment.succeeded(row) != success)
        wrong.push_back(where + ": reward, flags or success differ");
      next += 4;
      if (ended[static_cast<std::size_t>(row)]) reset(row);
    }
  }
  if (wrong.empty() && next != recorded.numbers.data() + recorded.numbers.size())
    wrong.push_back("it goes on");
  return wrong;
}

}  // namespace dvla_test
