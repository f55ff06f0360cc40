// The main of tests that need a GPU: where there is none they say so and return 77, which ctest prints as
// skipped.
#pragma once

#define DOCTEST_CONFIG_IMPLEMENT
#define DOCTEST_CONFIG_NO_SHORT_MACRO_NAMES
#include <doctest/doctest.h>

#include <cstdio>
#include <string>

#include "dvla/memory/cuda.hpp"

int main(int argc, char** argv) {
  if (const std::string why = dvla::cuda_form.load()->missing(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
