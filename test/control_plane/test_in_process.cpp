// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <memory>

#include "dvla/control_plane/in_process.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/control_plane.hpp"

using dvla::InProcessWeightPlane;

TEST_CASE("The in-process plane conforms") {
  dvla::EnvironmentPool pool(std::size_t{4} << 20);
  auto make = [&](std::size_t bytes) { return std::make_unique<InProcessWeightPlane>(bytes, pool); };
  for (const auto& violation : dvla::testing::check_control_plane(make)) FAIL_CHECK(violation);
  CHECK(pool.report().live == 0);
}

TEST_CASE("Weights lie in the pool, 64-byte aligned, in two buffers by turns") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  InProcessWeightPlane plane(1000, pool);
  const std::byte* first = plane.begin(0).data();
  plane.publish(0);
  const std::byte* second = plane.begin(1).data();
  plane.publish(1);
  CHECK(first != second);
  CHECK(plane.begin(2).data() == first);
  for (const std::byte* payload : {first, second}) {
    CHECK(pool.contains(payload));
    CHECK(reinterpret_cast<std::uintptr_t>(payload) % 64 == 0);
  }
}

TEST_CASE("A write after publish is found by its checksum") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  InProcessWeightPlane plane(1000, pool);
  const std::span<std::byte> weights = plane.begin(5);
  dvla::testing::detail::pack(weights, 5);
  plane.publish(5);
  weights[500] ^= std::byte{1};
  std::vector<std::byte> copy(1000);
  CHECK_THROWS_WITH_AS(
      plane.receive(copy, 0, std::chrono::seconds(1)),
      "weights: version 5 does not match its checksum: it is torn or damaged; nobody may write "
      "to a sealed buffer",
      dvla::Error);
}

TEST_CASE("A wait that runs out says who waited for which version") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  InProcessWeightPlane plane(64, pool);
  plane.begin(1);
  plane.publish(1);
  std::vector<std::byte> copy(64);
  CHECK_THROWS_WITH_AS(
      plane.receive(copy, 2, std::chrono::milliseconds(1)),
      "control plane: weight reception waited 0.001 s for version 2 from weight distribution; the "
      "latest is 1; is the training lane behind?",
      dvla::DeadlineError);
}

TEST_CASE("close() wakes a receiver that waits") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  InProcessWeightPlane plane(64, pool);
  bool threw = false;
  {
    std::jthread receiver([&] {
      std::vector<std::byte> copy(64);
      try {
        plane.receive(copy, 0, std::chrono::hours(1));
      } catch (const dvla::Error&) {
        threw = true;
      }
    });
    plane.close();
  }
  CHECK(threw);
}
