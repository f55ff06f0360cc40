// dvla-example: mujoco io
// How far LIBERO in C++ is from the original: plays episodes that scripts/record_libero has recorded in Python (any task, seed, length
// and motion), and says a line for each (docs/libero.md, agreement). The exit code is 0 where at least nine of ten stay within 1e-4 in all positions
// over their first 100 control steps, and in all of them success, the goal's atoms and burners are the same in every step, the
// controller makes the same goals and torques of the same numbers, and images differ by 0.5 of 255 in the mean at most, and by more
// than 2 in 1 of 1000 numbers at most.
//
// --any-mujoco before the folder: although this is built with another MuJoCo than it was converted with, to see what that changes.
//
//   .venv-libero/bin/python scripts/record_libero /tmp/spatial_0 --suite spatial --task 0
//   build/libero/examples/libero_agreement libero-tasks /tmp/spatial_0
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <memory_resource>
#include <string>
#include <string_view>

#include "dvla/environment/libero.hpp"
#include "dvla/environment/libero/agreement.hpp"

namespace {
using dvla::libero::Agreement;

std::string number(const char* form, double value) {
  char text[32];
  std::snprintf(text, sizeof text, form, value);
  return text;
}
/// Whether something was seen true, and seen false.
struct Seen {
  bool yes = false, no = false;
};
std::string listed(const std::map<std::string, Seen>& predicates, bool both) {
  std::string text;
  for (const auto& [word, seen] : predicates)
    if ((seen.yes && seen.no) == both) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : text;
}

/// In a few words: part, step, how far it is off alone.
std::string began(const Agreement& found) {
  if (found.began == Agreement::Part::none) return "";
  constexpr const char* parts[] = {"", "controller", "contact", "integrator"};
  std::string text = parts[static_cast<int>(found.began)];
  if (found.began_at > 0)
    text += ", step " + std::to_string(found.began_at) + number(": %.1e", found.began_by);
  if (found.itself > 0) text += number(", %.1e from itself", found.itself);
  return text;
}
}  // namespace

int main(int count, char** words) {
  try {
    const bool any = count > 1 && std::string_view(words[1]) == "--any-mujoco";
    const int first = any ? 2 : 1;
    if (count < first + 2)
      throw dvla::ConfigError(
          "libero_agreement wants a folder of scripts/convert_libero, and records of scripts/record_libero");
    dvla::libero::Manifest manifest = dvla::libero::read_manifest(words[first]);
    if (any) manifest.mujoco = mj_versionString();
    std::pmr::memory_resource& pool = *std::pmr::new_delete_resource();
    int near = 0, otherwise = 0;
    std::map<std::string, Seen> predicates;
    std::puts(
        "| record | state | steps | qpos | qvel | ctrl | observed | first step beyond 1e-4 | one step alone "
        "| "
        "controller alone | success | other | images: mean of 255; within 2 | what is beyond began in |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (int i = first + 1; i < count; ++i) {
      const dvla::libero::Record record(words[i]);
      const auto& about = record.about;
      if (about.mujoco != manifest.mujoco && !any)
        throw dvla::ConfigError("'", words[i], "' was made with MuJoCo ", about.mujoco,
                                ", and the folder with ", manifest.mujoco,
                                "; --any-mujoco compares them nevertheless");
      const dvla::libero::Scene scene =
          dvla::libero::Scene::open(words[first], manifest, about.suite, about.task, 7, pool);
      const Agreement found = record.compare(scene, pool);
      near += found.first_apart == 0 || found.first_apart > 100;
      const int other = found.other_successes + found.other_atoms + (found.burners > 0);
      otherwise += other > 0 || !found.controller_agrees() || !found.images_agree();
      for (std::size_t atom = 0; atom < found.atoms.size(); ++atom) {
        Seen& seen = predicates[about.goal[atom].front()];
        seen.yes = seen.yes || found.atoms[atom] > 0;
        seen.no = seen.no || found.atoms[atom] < found.steps;
      }
      std::printf("| %s | %d | %d | %.2e | %.1e | %.1e | %.2e | %s | %.1e | %.1e | %d | %d | %s | %s |\n",
                  std::filesystem::path(words[i]).stem().c_str(), about.state, found.steps, found.positions,
                  found.speeds, found.controls, found.observed,
                  found.first_apart == 0 ? "" : std::to_string(found.first_apart).c_str(), found.alone,
                  std::max({found.aimed, found.measured, found.torques}), found.successes, other,
                  found.images == 0
                      ? "none"
                      : (number("%.4f; ", found.pixels) + number("%.5f", found.pixels_near)).c_str(),
                  began(found).c_str());
      std::fflush(stdout);
    }
    const int records = count - first - 1;
    std::printf(
        "\n%d of %d stay within 1e-4 over their first 100 steps; %d differ in success, atoms, burners, the "
        "controller "
        "alone or images; "
        "predicates seen true and false: %s; only one of both: %s\n",
        near, records, otherwise, listed(predicates, true).c_str(), listed(predicates, false).c_str());
    return 10 * near >= 9 * records && otherwise == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "libero_agreement: %s\n", error.what());
    return 1;
  }
}
