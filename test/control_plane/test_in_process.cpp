// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <memory>
#include <thread>
#include <vector>

#include "dvla/control_plane/in_process.hpp"
#include "dvla/testing/control_plane.hpp"

using dvla::InProcessWeightPlane;

using dvla::WeightUnit;
using dvla::testing::detail::one_unit;

namespace {
/// A trainer's weights and the plane that is made of them.
struct Trained {
  explicit Trained(std::size_t bytes, std::int64_t verify_every = 1)
      : values(bytes), units(one_unit(values)), plane(units, verify_every) {}
  std::int64_t latest() const { return plane.latest(); }
  template <class Write>
  void publish(std::int64_t version, Write write) {
    if (version > plane.latest()) write(std::span(values));
    plane.publish(version);
  }
  std::int64_t receive(const std::vector<WeightUnit>& to, std::int64_t at_least,
                       std::chrono::nanoseconds limit) {
    return plane.receive(to, at_least, limit);
  }
  void close() { plane.close(); }
  std::vector<std::byte> values;
  std::vector<WeightUnit> units;
  InProcessWeightPlane plane;
};
}  // namespace

TEST_CASE("The in-process plane conforms") {
  auto make = [&](std::size_t bytes) { return std::make_unique<Trained>(bytes); };
  for (const auto& violation : dvla::testing::check_control_plane(make)) FAIL_CHECK(violation);
}

TEST_CASE("Each install writes exactly the trainable bytes, and every 16th version is hashed on both sides") {
  Trained trained(1000, 16);
  std::vector<std::byte> copy(1000);
  for (std::int64_t version = 0; version < 40; ++version) {
    trained.publish(version,
                    [&](std::span<std::byte> bytes) { dvla::testing::detail::pack(bytes, version); });
    CHECK(trained.receive(one_unit(copy), version, std::chrono::seconds(1)) == version);
    CHECK(copy == trained.values);
  }
  const auto report = trained.plane.report();
  CHECK(report.published == 40);
  CHECK(report.installed == 40);
  CHECK(report.installed_bytes == 40 * 1000);
  CHECK(report.verified == 3);  // 0, 16, 32
}

TEST_CASE("What is newest, and what was done, may be asked for in any thread meanwhile") {
  constexpr std::int64_t last = 200;
  Trained trained(1000);
  const std::jthread asking([&](std::stop_token end) {
    while (!end.stop_requested()) {
      CHECK(trained.plane.latest() <= last);
      CHECK(trained.plane.report().installed <= last);
    }
  });
  std::jthread distribution;
  std::vector<std::byte> copy(1000);
  for (std::int64_t version = 1; version <= last; ++version) {
    distribution = std::jthread([&, version] { trained.plane.publish(version); });
    CHECK(trained.receive(one_unit(copy), version, std::chrono::seconds(60)) == version);
  }
}

TEST_CASE("The trainer's own model receives without a copy, and units of other extents are refused") {
  Trained trained(1000);
  trained.publish(0, [](std::span<std::byte> bytes) { dvla::testing::detail::pack(bytes, 0); });
  CHECK(trained.receive(trained.units, 0, std::chrono::seconds(1)) == 0);
  CHECK(trained.plane.report().installed_bytes == 0);
  std::vector<std::byte> copy(1000);
  std::vector<WeightUnit> halves = one_unit(std::span(copy).first(500));
  halves.push_back(one_unit(std::span(copy).last(500)).front());
  CHECK_THROWS_WITH_AS(
      trained.receive(halves, 0, std::chrono::seconds(1)),
      "weights: 1000 trainable bytes do not fit into 1000; trainer and sampler must have the "
      "same model",
      dvla::Error);
}

TEST_CASE("A wait that runs out says who waited for which version") {
  Trained trained(64);
  trained.plane.publish(1);
  std::vector<std::byte> copy(64);
  CHECK_THROWS_WITH_AS(
      trained.receive(one_unit(copy), 2, std::chrono::milliseconds(1)),
      "control plane: weight reception waited 0.001 s for version 2 from weight distribution; the "
      "latest is 1; is the training lane behind?",
      dvla::DeadlineError);
}

TEST_CASE("close() wakes a receiver that waits") {
  Trained trained(64);
  bool threw = false;
  {
    std::jthread receiver([&] {
      std::vector<std::byte> copy(64);
      try {
        trained.receive(one_unit(copy), 0, std::chrono::hours(1));
      } catch (const dvla::Error&) {
        threw = true;
      }
    });
    trained.close();
  }
  CHECK(threw);
}
