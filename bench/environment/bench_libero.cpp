// dvla-bench: io smoke=toy
// Control steps a second of LIBERO in C++, controller included, random actions, rows begun again where an episode ends.
// bench/environment/libero_peer.py runs it in turn with the original and says the ratios.
//
//   build/libero/bench/bench_environment_libero FOLDER SUITE TASKS ROWS THREADS SECONDS [PIXELS [original|fast [CHUNK]]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "bench/environment/stepping.hpp"
#include "dvla/environment/libero.hpp"
#include "dvla/memory/environment_pool.hpp"

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  try {
    if (given.size() < 6) {
      std::puts(
          "bench_environment_libero FOLDER SUITE TASKS ROWS THREADS SECONDS [PIXELS [original|fast "
          "[CHUNK]]]");
      return given.size() == 1 && given[0] == "toy" ? 0 : 1;
    }
    dvla::LiberoKnobs knobs;
    knobs.converted = given[0];
    knobs.suite = given[1];
    knobs.tasks = given[2];
    knobs.environments = std::atoi(given[3].c_str());
    if (given.size() > 6) knobs.camera_pixels = std::atoi(given[6].c_str());
    if (given.size() > 7 && given[7] == "fast") knobs.rendering = dvla::LiberoRendering::fast;
    knobs.drawn_at_once = std::max(std::atoi(given[4].c_str()), 1);
    dvla::EnvironmentPool pool(std::size_t{8} << 30);
    dvla::LiberoBatch environment(knobs, pool);
    bench::measure_steps(environment, pool, std::atoi(given[4].c_str()), std::atof(given[5].c_str()),
                         given.size() > 8 ? std::atoi(given[8].c_str()) : 1);
    std::printf("%.1f MiB in the pool, %.1f resident\n",
                static_cast<double>(pool.report().in_use) / (1 << 20),
                static_cast<double>(dvla::resident_bytes()) / (1 << 20));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
