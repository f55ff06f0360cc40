// What a user tunes in LIBERO's environments: a plain struct without MuJoCo, so that compositions can be named, printed and
// read from a file without the simulator's headers.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

/// Which way up frames are. rotated: the original's turned by 180 degrees, as openpi, OpenVLA-OFT and lerobot turn them; libero: as the
/// original's environment gives them, row 0 the lowest; upright: row 0 on top.
enum class LiberoFrames { rotated, libero, upright };
template <>
inline constexpr std::array<std::string_view, 3> enum_names<LiberoFrames>{"rotated", "libero", "upright"};
/// original: multisampling, shadow map and reflections as the original's scenes ask for; fast: none of them.
enum class LiberoRendering { original, fast };
template <>
inline constexpr std::array<std::string_view, 2> enum_names<LiberoRendering>{"original", "fast"};

struct LiberoKnobs {
  int environments = 8;
  std::string converted = "libero";
  std::string suite = "spatial";
  std::string tasks{};
  int horizon = 0;
  int settling = 10;
  int held_out = 0;
  int placement_seed = 7;
  int camera_pixels = 0;
  LiberoFrames frames = LiberoFrames::rotated;
  LiberoRendering rendering = LiberoRendering::original;
  int drawn_at_once = 1;
};

template <>
inline constexpr auto knob_docs<LiberoKnobs> = std::to_array<KnobDoc>({
    {"environments", "environments stepped at once; a multiple of the group", 1, 4096},
    {"converted", "the folder that scripts/convert_libero wrote"},
    {"suite", "spatial, object, goal, 10 or 90"},
    {"tasks", "numbers of the suite's tasks, as 0,3; empty = all"},
    {"horizon", "longest episode, settling apart; 0 = the suite's", 0, 10000, "control steps"},
    {"settling", "before an episode, in which nothing is asked for", 0, 1000, "control steps"},
    {"held_out", "of each task's 50 initial states, the last so many, which training does not begin from", 0,
     49},
    {"placement_seed", "of the resets that place fixtures: 7 as openpi's evaluations, 0 as OpenVLA-OFT's", 0,
     7},
    {"camera_pixels", "side of both cameras' frames; 0 = no camera, else at least 16", 0, 1024, "pixels"},
    {"frames",
     "rotated by 180 degrees as the published fine-tunes want them, libero as the original gives them, or "
     "upright"},
    {"rendering", "original, or fast: without multisampling, shadows and reflections"},
    {"drawn_at_once",
     "rows whose frames are drawn at once, on so many of the threads; each takes another half GiB a task, "
     "outside the "
     "pools",
     1, 256},
});

/// The numbers in LiberoKnobs::tasks. Throws ConfigError where it lists anything else, or one twice.
inline std::vector<int> libero_tasks(const LiberoKnobs& knobs) {
  std::vector<int> tasks;
  const std::string_view text = knobs.tasks;
  for (std::size_t from = 0; from < text.size();) {
    const std::size_t to = std::min(text.find(',', from), text.size());
    const std::string_view word = text.substr(from, to - from);
    int number = -1;
    const auto [end, wrong] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (wrong != std::errc{} || end != word.data() + word.size() || number < 0 ||
        std::find(tasks.begin(), tasks.end(), number) != tasks.end() || to + 1 == text.size())
      throw ConfigError("environment.tasks is '", knobs.tasks,
                        "'; it must be numbers of tasks, each once, as 0,3");
    tasks.push_back(number);
    from = to + 1;
  }
  return tasks;
}

/// Rules beyond ranges; found by validate(config).
inline void check(const LiberoKnobs& knobs) {
  (void)libero_tasks(knobs);
  if (knobs.camera_pixels > 0 && knobs.camera_pixels < 16)
    throw ConfigError("environment.camera_pixels is ", knobs.camera_pixels,
                      "; it must be 0 for no camera, or from 16 to 1024");
  if (knobs.placement_seed != 0 && knobs.placement_seed != 7)
    throw ConfigError("environment.placement_seed is ", knobs.placement_seed,
                      "; it must be 0 or 7, of which the folder has poses");
}

}  // namespace dvla

template <std::same_as<dvla::LiberoKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::environments, &K::converted, &K::suite, &K::tasks, &K::horizon, &K::settling,
                    &K::held_out, &K::placement_seed, &K::camera_pixels, &K::frames, &K::rendering,
                    &K::drawn_at_once> {};
