// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <memory>
#include <thread>

#include "dvla/data_plane/in_process.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/data_plane.hpp"

namespace {
struct TokensDecision {
  dvla::Field<std::int32_t> bins;
  dvla::Field<float> log_prob;
};
}  // namespace
BOOST_HANA_ADAPT_STRUCT(TokensDecision, bins, log_prob);

namespace {
using Plane = dvla::InProcessTrajectories<TokensDecision>;

dvla::Transition transition() {
  dvla::ObservationSpec observation;
  observation.cameras = {{"top", 8, 8}};
  observation.proprioception = 5;
  observation.instructions = {"go left", "go right"};
  return dvla::transition_layout(observation, {2}, {3, 4, 2});
}
TokensDecision decision() {
  return {dvla::Field<std::int32_t>({3, 4, 2, 2}), dvla::Field<float>({3, 4, 2, 2})};
}
}  // namespace

TEST_CASE("The in-process plane conforms") {
  dvla::EnvironmentPool pool(std::size_t{4} << 20);
  auto make = [&] { return std::make_unique<Plane>(transition(), decision(), 2, pool); };
  for (const auto& violation : dvla::testing::check_data_plane(make)) FAIL_CHECK(violation);
  CHECK(pool.report().live == 0);
}

TEST_CASE("A trajectory is one contiguous block in the environment pool, every field on a 64-byte line") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  Plane plane(transition(), decision(), 3, pool);
  CHECK(pool.report().live == 3);
  for (std::int32_t buffer = 0; buffer < 3; ++buffer) {
    const auto& trajectory = plane.produce({.batch = buffer, .buffer = buffer});
    const std::byte* first =
        reinterpret_cast<const std::byte*>(trajectory.transition.observation.frames[0].data());
    int fields = 0;
    dvla::for_each_field(trajectory, [&](const char*, const auto& field) {
      const auto* start = reinterpret_cast<const std::byte*>(field.data());
      CHECK(reinterpret_cast<std::uintptr_t>(start) % 64 == 0);
      CHECK(start >= first);
      CHECK(start + field.bytes() <= first + dvla::record_bytes(trajectory));
      CHECK(pool.contains(start));
      ++fields;
    });
    CHECK(fields == 16);
  }
}

TEST_CASE("The trainer reads where the sampler wrote: same address, zero bytes copied") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  Plane plane(transition(), decision(), 1, pool);
  const dvla::Token token{.batch = 7, .buffer = 0};
  const float* written = plane.produce(token).transition.reward.data();
  plane.commit(token);
  CHECK(plane.consume(token).transition.reward.data() == written);
  CHECK(plane.report().payload_bytes_copied == 0);
}

TEST_CASE("What a buffer holds is seen by whoever finds it handed over, or free again: its state is enough") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  Plane plane(transition(), decision(), 1, pool);
  const auto until_it_is = [](auto call) {
    for (;;) {
      try {
        return call();
      } catch (const dvla::Error&) {
        std::this_thread::yield();
      }
    }
  };
  constexpr std::int64_t batches = 200;
  std::thread sampler([&] {
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      const dvla::Token token{.batch = batch, .buffer = 0};
      *until_it_is([&] { return plane.produce(token).transition.reward.data(); }) = static_cast<float>(batch);
      plane.commit(token);
    }
  });
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    const dvla::Token token{.batch = batch, .buffer = 0};
    float& first = *until_it_is([&] { return plane.consume(token).transition.reward.data(); });
    CHECK(first == static_cast<float>(batch));
    first = -1;  // ThreadSanitizer looks on
    if (batch % 2 == 0)
      plane.release(token);
    else
      plane.drop(token);
  }
  sampler.join();
}

TEST_CASE("A refusal names the buffer and both batches") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  Plane plane(transition(), decision(), 1, pool);
  plane.produce({.batch = 7, .buffer = 0});
  plane.commit({.batch = 7, .buffer = 0});
  CHECK_THROWS_WITH_AS(
      plane.produce({.batch = 8, .buffer = 0}),
      "data plane: buffer 0 cannot be filled with batch 8: it waits for the trainer with batch "
      "7; a buffer goes produce, commit, consume, release",
      dvla::Error);
}

TEST_CASE("A pool that is too small for the buffers says so and keeps nothing") {
  dvla::EnvironmentPool pool(4096);
  CHECK_THROWS_AS(Plane(transition(), decision(), 100, pool), dvla::Error);
  CHECK(pool.report().live == 0);
  CHECK_THROWS_AS(Plane(transition(), decision(), 0, pool), dvla::ConfigError);
}
