// dvla-test: io long
// Tasks of ManiSkill in this process's own Python show, bit for bit, what they show in Python alone. Prints what was
// compared. Skipped where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "dvla/environment/python/embedded.hpp"
#include "test/environment/played.hpp"
#include "test/environment/recorded.hpp"

TEST_CASE("Tasks from states show the same bits as in Python alone, however their episodes end") {
  dvla_test::play_tasks(true);
}

TEST_CASE("Under fast resets the same history shows the same bits as in Python alone") {
  dvla_test::play_fast_resets(true);
}

TEST_CASE("Pictures are the same bytes as in Python alone") { dvla_test::play_pictures(true); }

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
