// main() of a program that runs as one process or as a job of many, started by torchrun, mpirun, srun or a
// user's own shells (placement/launch.hpp). Dear to compile, as placement/c10d.hpp is. CMake: dvla::dvla.
#pragma once

#include <filesystem>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>

#include "dvla/pipeline/experiment.hpp"
#include "dvla/placement/c10d.hpp"
#include "dvla/placement/launch.hpp"

namespace dvla {

namespace detail {
/// What a job that torchrun started again goes on from: its own newest complete checkpoint, or the beginning.
template <class P>
void go_on(Config<P>& config) {
  if (!config.run.resume.empty()) return;
  const std::filesystem::path folder = std::filesystem::path(config.run.folder) / config.run.name;
  if (io::CheckpointFolder(folder / "checkpoint").latest().checkpoint)
    config.run.resume = folder.string();
  else
    config.run.overwrite = true;
}
}  // namespace detail

/// As experiment_main, on every rank of the job that the environment tells of. The exit code is 1 on every
/// rank where one refuses or fails. `--help` answers on rank 0 only. Where torchrun starts the job again
/// after a failure (--max-restarts), it goes on from the newest complete checkpoint in its folder.
template <class P>
int job_main(int argc, const char* const* argv, const Config<P>& defaults = {}) {
  std::string who;
  try {
    const Launch launch = Launch::from_environment();
    if (launch.world > 1) who = "rank " + std::to_string(launch.rank) + ": ";
    std::ostringstream nowhere;
    const auto config = parse_command_line<P>(argc, argv, defaults, launch.rank == 0 ? std::cout : nowhere);
    if (!config) return 0;
    if constexpr (buildable<P>()) {
      if (launch.world == 1) {
        run_experiment<P>(*config);
      } else {
        const auto limit =
            std::chrono::nanoseconds(static_cast<std::int64_t>(config->schedule.deadline_s * 1e9));
        C10dCluster cluster(launch, limit);
        run_experiment<P>(*config, cluster);
      }
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << ("error: " + who + error.what() + "\n") << std::flush;
    return 1;
  }
}

}  // namespace dvla
