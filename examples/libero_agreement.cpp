// dvla-example: mujoco io
// How far LIBERO in C++ is from the original: plays episodes that scripts/record_libero has recorded in Python (any task, seed, length
// and motion), and says a line for each. The exit code is 1 where a position is further off than 1e-4 within the first 100
// control steps, success differs, or an image is further off than 0.5 of 255 in its mean, or 2 in 1 of 1000 of its numbers.
//
// --any-mujoco before the folder: although this is built with another MuJoCo than it was converted with, to see what that changes.
//
//   .venv-libero/bin/python scripts/record_libero /tmp/spatial_0 --suite spatial --task 0
//   build/libero/examples/libero_agreement libero /tmp/spatial_0
#include <cstdio>
#include <exception>
#include <memory_resource>
#include <string>
#include <string_view>

#include "dvla/environment/libero.hpp"
#include "dvla/environment/libero/agreement.hpp"

int main(int count, char** words) {
  try {
    bool any = false;
    if (count > 1 && std::string_view(words[1]) == "--any-mujoco") {
      any = true;
      --count, ++words;
    }
    if (count < 3)
      throw dvla::ConfigError(
          "libero_agreement wants a folder of scripts/convert_libero, and records of scripts/record_libero");
    dvla::libero::Manifest manifest = dvla::libero::read_manifest(words[1]);
    if (any) manifest.mujoco = mj_versionString();
    std::pmr::memory_resource& pool = *std::pmr::new_delete_resource();
    bool agrees = true;
    std::printf("%-12s %-5s %-6s %-10s %-10s %-10s %-6s %-12s %-7s %-9s %-8s %s\n", "task", "state", "steps",
                "positions", "speeds", "observed", "apart", "success", "images", "mean/255", "within 2",
                "motion");
    for (int i = 2; i < count; ++i) {
      const dvla::libero::Record record(words[i]);
      const dvla::libero::Scene scene =
          dvla::libero::Scene::open(words[1], manifest, record.about.suite, record.about.task, 7, pool);
      const dvla::libero::Agreement found = record.compare(scene, pool);
      const bool near = (found.first_apart == 0 || found.first_apart > 100) && found.other_successes == 0 &&
                        found.pixels <= 0.5 && found.pixels_near >= 0.999;
      agrees = agrees && near;
      std::printf("%-12s %-5d %-6d %-10.2e %-10.2e %-10.2e %-6s %d, %d other %-7d %-9.4f %-8.5f %s\n",
                  (record.about.suite + " " + std::to_string(record.about.task)).c_str(), record.about.state,
                  found.steps, found.positions, found.speeds, found.observed,
                  found.first_apart == 0 ? "-" : std::to_string(found.first_apart).c_str(), found.successes,
                  found.other_successes, found.images, found.pixels, found.pixels_near,
                  record.about.motion.substr(0, 60).c_str());
    }
    return agrees ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "libero_agreement: %s\n", error.what());
    return 1;
  }
}
