// Threads of OpenMP that wait for each other sleep instead of spinning. A pool that spins in its barriers takes
// the core from the thread that it waits for as soon as there are more threads than free cores: two lanes, or a
// stranger on a shared machine (docs/numbers.md). libgomp reads its policy once, when the program is loaded.
#pragma once

#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace dvla {

/// To be called first in main(). Starts the program again, in its own process and with the arguments that it was
/// started with, and OMP_WAIT_POLICY=passive, unless somebody has chosen a policy. Returns where that has
/// happened, or cannot be, and where argv[0] is not main()'s: then the program may be in the midst of its work.
inline void wait_passively(const char* const* argv) {
  if (argv[0] != ::program_invocation_name) return;
  ::prctl(PR_SET_NAME, ::program_invocation_short_name);  // "exe" after the start below
  for (const char* chosen : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    if (std::getenv(chosen) != nullptr) return;
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};  // each argument ends with a 0
  std::vector<char*> arguments;
  for (std::size_t at = 0; at < text.size(); at = text.find('\0', at) + 1) arguments.push_back(&text[at]);
  arguments.push_back(nullptr);
  if (arguments.size() > 1 && ::setenv("OMP_WAIT_POLICY", "passive", 1) == 0)
    ::execv("/proc/self/exe", arguments.data());
}

}  // namespace dvla
