// dvla-test: core
// Denormals read and written as 0, thread by thread, and what AdamW then leaves behind.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <thread>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/denormals.hpp"

namespace {

/// By bits: a comparison of floats takes a denormal for 0 in a thread that flushes.
std::ptrdiff_t denormals(const std::vector<float>& values) {
  return std::count_if(values.begin(), values.end(), [](float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU;
    return bits != 0 && bits < 0x00800000U;
  });
}

/// Denormals among parameters and moments after 50 steps with gradients of 0 on small first moments, at every
/// place of a vectorised block and of its rest.
std::ptrdiff_t left_by_adamw() {
  std::vector<float> parameter(70, 1.0F), first(70), second(70, 1.0F), gradient(70, 0.0F);
  for (std::size_t i = 0; i < first.size(); ++i) first[i] = (i % 2 == 0 ? 3e-37F : -2e-36F);
  dvla::AdamWState state{parameter, first, second};
  for (int step = 0; step < 50; ++step) dvla::adamw_update(state, gradient, {});
  return denormals(parameter) + denormals(first) + denormals(second);
}

bool flushes() {
  volatile float denormal = 1e-39F;
  return denormal * 1.0F == 0;
}

}  // namespace

TEST_CASE("flush_denormals sets the calling thread's flag, and that of threads started from it") {
  bool before = true, after = false, started = false;
  std::thread([&] {
    before = flushes();
    dvla::flush_denormals();
    after = flushes();
    std::thread([&] { started = flushes(); }).join();
  }).join();
  CHECK(!before);
  CHECK(after);
  CHECK(started);
  CHECK(!flushes());  // this thread is as it was
}

TEST_CASE("AdamW leaves denormal moments in an ordinary thread, and none in one that flushes") {
  std::ptrdiff_t ordinary = 0, flushing = -1;
  std::thread([&] { ordinary = left_by_adamw(); }).join();
  std::thread([&] {
    dvla::flush_denormals();
    flushing = left_by_adamw();
  }).join();
  CHECK(ordinary > 0);
  CHECK(flushing == 0);
}
