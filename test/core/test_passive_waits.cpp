// A program that waits passively is started again once, with the policy and its arguments, and keeps one that
// was chosen.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "dvla/core/passive_waits.hpp"

namespace {
std::string policy() {
  const char* const chosen = std::getenv("OMP_WAIT_POLICY");
  return chosen == nullptr ? "" : chosen;
}
}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--expect") == 0) {  // the program that is tested
    const char* fewer[] = {argv[0], nullptr};  // as of a program that has taken its own arguments out
    dvla::wait_passively(fewer);
    std::string name;  // by which top and pkill know it
    std::getline(std::ifstream("/proc/self/comm"), name);
    const bool known = std::filesystem::path(argv[0]).filename().string().starts_with(name) && !name.empty();
    return policy() == argv[2] && known ? 0 : 1;
  }
  return doctest::Context(argc, argv).run();
}

TEST_CASE("The policy is passive where nobody chose one, and what was chosen where somebody did") {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  CHECK(std::system(("env -u OMP_WAIT_POLICY '" + program + "' --expect passive").c_str()) == 0);
  CHECK(std::system(("OMP_WAIT_POLICY=active '" + program + "' --expect active").c_str()) == 0);
  CHECK(std::system(("env -u OMP_WAIT_POLICY GOMP_SPINCOUNT=10 '" + program + "' --expect ''").c_str()) == 0);
}
