// Threads of OpenMP that wait for each other sleep instead of spinning. A pool that spins in its barriers takes
// the core from the thread that it waits for as soon as there are more threads than free cores: two lanes, or a
// stranger on a shared machine (docs/numbers.md). libgomp reads its policy once, when the program is loaded.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace dvla {

/// To be called first in main(). Starts the program again, in its own process and with the same arguments, with
/// OMP_WAIT_POLICY=passive, unless somebody has chosen a policy. Returns where that has happened, or cannot be,
/// and where `argv` is not main()'s.
inline void wait_passively(char** argv) {
  if (argv[0] != ::program_invocation_name) return;
  for (const char* chosen : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    if (std::getenv(chosen) != nullptr) return;
  if (::setenv("OMP_WAIT_POLICY", "passive", 1) == 0) ::execv("/proc/self/exe", argv);
}

}  // namespace dvla
