// Environments in Python as rows of a batch: worker processes (environment/apart.hpp) that run worker.py beside
// this file with the simulator's own interpreter, so this program links no Python, and the simulator may have any
// torch; or, by environment.embedded, an interpreter in this process (environment/python/embedded.hpp). What a space of Gymnasium becomes, stands in docs/slots/environment.md.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory_resource>
#include <string>
#include <string_view>
#include <utility>

#include "dvla/core/json.hpp"
#include "dvla/core/process_limits.hpp"
#include "dvla/environment/apart.hpp"
#include "dvla/environment/checked_knobs.hpp"
#include "dvla/environment/python/embedding.hpp"
#include "dvla/environment/python/knobs.hpp"
#include "dvla/environment/python/program.hpp"
#include "dvla/handoff/waiting.hpp"

namespace dvla {
/// Thread-safety, deadlines and what a worker's death costs: ApartBatch. The constructor throws ConfigError with the
/// simulator's own reason where an environment cannot be made. Experts and pictures are the simulator's to refuse,
/// in an Error, when they are asked for.
class PythonBatch : public ApartBatch {
 protected:
  /// `kind`: which of worker.py's classes, and what scripts/setup calls its interpreter.
  template <class Knobs>
  PythonBatch(std::string_view kind, const Knobs& knobs, std::pmr::memory_resource& pool)
      : ApartBatch(options(kind, detail::checked(knobs)), pool) {}

 private:
  template <class Knobs>
  static ApartOptions options(std::string_view kind, const Knobs& knobs) {
    const std::string setup = "scripts/setup " + std::string(kind),
                      own = ".venv-" + std::string(kind) + "/bin/python";
    const std::string python = knobs.python.empty() ? own : knobs.python;
    if (python.find('/') != python.npos && ::access(python.c_str(), X_OK) != 0)
      throw ConfigError(
          "environment.python is '" + python + "', and there is no such program: " + setup + " makes " + own +
          " in the folder that it is called in, or give an interpreter that has " + std::string(kind));
    auto told = json_of(knobs);
    told["kind"] = kind;
    const std::string text = told.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    ApartOptions options{
        .program = {python, "-c", std::string(detail::python_worker), text},
        .rows = knobs.environments,
        .workers = steps_together(knobs)
                       ? 1
                       : std::min(knobs.workers > 0 ? knobs.workers : usable_cores(), knobs.environments)};
    if (knobs.embedded) {
      if (detail::embed_python == nullptr)
        throw ConfigError(
            "environment.embedded is true, and this program has no Python: include "
            "dvla/environment/python/embedded.hpp in it and link dvla::python, or leave it to workers");
      options.program.clear();
      options.workers = 1;
      options.service = [python, text](std::span<std::byte> pool) {
        return detail::embed_python({python, text, pool});
      };
    }
    const auto limit = [](double seconds) {
      return std::chrono::duration_cast<std::chrono::milliseconds>(detail::nanoseconds(seconds));
    };
    options.step_deadline = limit(knobs.worker_step_s);
    options.reset_deadline = limit(knobs.worker_reset_s);
    options.start_deadline = limit(knobs.worker_start_s);
    return options;
  }
};

}  // namespace dvla
