// dvla-test: io long
// Tasks of ManiSkill through worker processes show, bit for bit, what they show in Python alone. Prints what was
// compared. Skipped where scripts/setup maniskill has not been run.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "test/environment/played.hpp"
#include "test/environment/recorded.hpp"

TEST_CASE("Tasks from states show the same bits as in Python alone, however their episodes end") {
  dvla_test::play_tasks(false);
}

TEST_CASE("Under fast resets the same history shows the same bits as in Python alone") {
  dvla_test::play_fast_resets(false);
}

TEST_CASE("Pictures are the same bytes as in Python alone") { dvla_test::play_pictures(false); }

int main(int argc, char** argv) { return dvla_test::run_with("maniskill", argc, argv); }
