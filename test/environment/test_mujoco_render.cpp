// dvla-test: mujoco
// Frames and pictures without a screen. The back end is the one that MUJOCO_GL names, or the first that
// works.
#include <doctest/doctest.h>

#include <cstdlib>
#include <memory_resource>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dvla/environment/mujoco.hpp"
#include "dvla/environment/mujoco_render.hpp"
#include "dvla/testing/environment.hpp"

using namespace dvla;

namespace {

std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }
MujocoKnobs with_camera(int environments, int pixels) {
  MujocoKnobs knobs;
  knobs.environments = environments;
  knobs.camera_pixels = pixels;
  return knobs;
}

}  // namespace

TEST_CASE(
    "an unknown MUJOCO_GL is one sentence, and tells what is known") {  // first: before a back end is chosen
  const char* const before = std::getenv("MUJOCO_GL");
  const std::string kept = before == nullptr ? "" : before;
  setenv("MUJOCO_GL", "glide", 1);
  MujocoBatch<Push> environment(with_camera(1, 0), heap());
  std::vector<std::uint8_t> rgb(64 * 64 * 3);
  std::string said;
  try {
    environment.render(0, 64, 64, rgb);
  } catch (const ConfigError& error) {
    said = error.what();
  }
  CHECK(said.find("glide") != std::string::npos);
  CHECK(said.find("egl or osmesa") != std::string::npos);
  if (before == nullptr) {
    unsetenv("MUJOCO_GL");
  } else {
    setenv("MUJOCO_GL", kept.c_str(), 1);
  }
}

TEST_CASE_TEMPLATE("a task with its camera conforms to the environment concept", Task, Push, Reach,
                   PickAndPlace) {
  MujocoBatch<Task> environment(with_camera(6, 32), heap());
  REQUIRE(environment.observation_spec().cameras.size() == 1);
  CHECK(environment.observation_spec().cameras[0].name == "top");
  testing::EnvironmentCheck check;
  check.rows = 2;
  for (const std::string& sentence : testing::check_environment(environment, check)) FAIL_CHECK(sentence);
}

TEST_CASE("frames show the targets' colours, differ between seeds, and have the far side on top") {
  constexpr int n = 8, pixels = 64;
  MujocoBatch<Push> environment(with_camera(n, pixels), heap());
  Arena arena(2);
  Observation next = observation_layout(environment.observation_spec(), {n});
  std::vector<std::uint8_t> frames(next.frames[0].bytes());
  std::vector<float> proprioception(static_cast<std::size_t>(next.proprioception.count()));
  std::vector<std::int32_t> instruction(n);
  next.frames[0].place(frames.data());
  next.proprioception.place(proprioception.data());
  next.instruction.place(instruction.data());
  std::vector<Start> starts;
  std::vector<std::int64_t> indices;
  for (int i = 0; i < n; ++i) {
    starts.push_back({mix_seed(3, i)});
    indices.push_back(i);
  }
  RowFailures failures(n);
  Rows rows(indices, arena, failures);
  environment.reset(rows, starts, next);
  std::set<std::vector<std::uint8_t>> different;
  for (int i = 0; i < n; ++i) {
    const auto frame = next.frames[0].at(i).span();
    different.emplace(frame.begin(), frame.end());
    double red_y = 0, red = 0, blue = 0, yellow_y = 0, yellow = 0;
    for (int y = 0; y < pixels; ++y) {
      for (int x = 0; x < pixels; ++x) {
        const std::uint8_t* p = frame.data() + 3 * (y * pixels + x);
        if (p[0] > 150 && p[1] < 90 && p[2] < 90) red += 1, red_y += y;
        if (p[2] > 150 && p[0] < 90) blue += 1;
        if (p[0] > 150 && p[1] > 100 && p[2] < 90) yellow += 1, yellow_y += y;
      }
    }
    CHECK(red > 5);
    CHECK(blue > 5);
    CHECK(yellow > 20);
    CHECK(red_y / red < yellow_y / yellow);  // targets lie behind the cube: nearer to row 0
  }
  CHECK(different.size() == n);
}

TEST_CASE("pictures of any size, from any thread, and a clear error when the buffer does not fit") {
  MujocoBatch<Reach> environment(with_camera(1, 0), heap());
  Arena arena(1);
  std::vector<std::uint8_t> small(120 * 80 * 3), large(400 * 300 * 3), again(400 * 300 * 3);
  environment.render(0, 120, 80, small);
  std::thread([&] { environment.render(0, 400, 300, large); }).join();
  environment.render(0, 400, 300, again);
  CHECK(large == again);
  CHECK(std::set<std::uint8_t>(small.begin(), small.end()).size() > 20);
  CHECK_THROWS_WITH_AS(environment.render(0, 400, 300, small), doctest::Contains("wants width x height x 3"),
                       Error);
  CHECK_THROWS_WITH_AS(environment.render(0, 5000, 1, small), doctest::Contains("1 .. 4096"), Error);
}

TEST_CASE("drawing gives all of its memory back to the environment pool") {
  class Ledger : public std::pmr::memory_resource {
   public:
    std::size_t held = 0, most = 0;

   private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
      most = std::max(most, held += size);
      return heap().allocate(size, alignment);
    }
    void do_deallocate(void* data, std::size_t size, std::size_t alignment) override {
      held -= size;
      heap().deallocate(data, size, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
  } pool;
  {
    MujocoBatch<Push> environment(with_camera(1, 0), pool);
    const std::size_t without = pool.held;
    std::vector<std::uint8_t> rgb(64 * 64 * 3);
    environment.render(0, 64, 64, rgb);
    CHECK(pool.held > without);
  }
  CHECK(pool.held == 0);
}
