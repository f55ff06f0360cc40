// dvla-bench: io smoke=toy
// Control steps a second of environments in Python through the bridge, random actions, rows begun again where an
// episode ends. bench/environment/python_peers.py runs it in turn with Python's own loops and says the ratios.
//
//   bench_environment_python gymnasium HalfCheetah-v5 8 2 3      kind, name, rows, workers (0: embedded), seconds
//   bench_environment_python maniskill PushCube-v1 8 2 3 pd_joint_delta_pos
//   bench_environment_python message 12000 1 1 3                 a stub: numbers of an observation instead of a name
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/environment/stepping.hpp"
#include "dvla/environment/gymnasium.hpp"
#include "dvla/environment/maniskill.hpp"
#include "dvla/environment/python/embedded.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace {
template <class Machinery, class Knobs>
void measure(Knobs knobs, int rows, int workers, double seconds) {
  knobs.environments = rows;
  knobs.workers = workers;
  knobs.embedded = workers == 0;
  dvla::EnvironmentPool pool(std::size_t{64} << 20);
  Machinery environment(knobs, pool);
  bench::measure_steps(environment, pool, 0, seconds);
}
}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  try {
    if (given.size() < 5) {
      std::puts(
          "bench_environment_python gymnasium|maniskill|message NAME ROWS WORKERS SECONDS [CONTROL_MODE]");
      return given.size() == 1 && given[0] == "toy" ? 0 : 1;
    }
    const int rows = std::atoi(given[2].c_str()), workers = std::atoi(given[3].c_str());
    const double seconds = std::atof(given[4].c_str());
    if (given[0] == "maniskill") {
      dvla::ManiSkillKnobs knobs;
      knobs.task = given[1];
      knobs.fast_reset = true;
      if (given.size() > 5) knobs.control_mode = given[5];
      measure<dvla::ManiSkillEnvironment>(knobs, rows, workers, seconds);
    } else {
      dvla::GymnasiumKnobs knobs;
      if (given[0] == "message") {
        knobs.factory = "python_stub:Wide";
        knobs.arguments = "{\"width\": " + given[1] + "}";
        knobs.python = ".venv/bin/python";
      } else {
        knobs.id = given[1];
      }
      measure<dvla::GymnasiumEnvironment>(knobs, rows, workers, seconds);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
