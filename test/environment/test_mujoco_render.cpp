// dvla-test: mujoco
// Frames and pictures without a screen. The back end is the one that MUJOCO_GL names, or the first that
// works.
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory_resource>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/random.hpp"
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

TEST_CASE("where EGL cannot draw, OSMesa does, and it is said") {
  // In a program of its own: a process keeps its back end.
  const std::string command = "env -u MUJOCO_GL __EGL_VENDOR_LIBRARY_FILENAMES=/dev/null '" +
                              std::filesystem::canonical("/proc/self/exe").string() +
                              "' '--test-case=pictures of any size*' 2>&1";
  std::FILE* const run = popen(command.c_str(), "r");
  REQUIRE(run != nullptr);
  std::string said;
  for (char piece[256]; std::fgets(piece, sizeof piece, run) != nullptr;) said += piece;
  CAPTURE(said);
  CHECK(pclose(run) == 0);
  CHECK(said.find("OSMesa draws, on the CPU, because EGL does not") != said.npos);
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

TEST_CASE("what no camera sees is not drawn, and no pixel is another for it; rows may be drawn at once") {
  // A mirror, things around the camera on all sides, before and behind each other, some of them glass.
  enum { plain_room, off_centre, shadows, plane } kind = plain_room;
  SUBCASE("a box is the mirror") {}
  SUBCASE("the camera looks past its middle") { kind = off_centre; }
  SUBCASE("a light casts shadows") { kind = shadows; }
  SUBCASE("a plane is the mirror, where it is not seen from behind") { kind = plane; }
  std::string text =
      R"(<mujoco><visual><quality offsamples="4" shadowsize="256"/></visual>
    <asset><material name="mirror" reflectance="0.5"/>
    <texture type="skybox" builtin="gradient" rgb1="0.3 0.5 0.7" rgb2="0 0 0" width="64" height="64"/></asset>
    <worldbody><light pos="0 0 3" castshadow=")" +
      std::string(kind == shadows ? "true" : "false") + R"("/>
    <body mocap="true"><camera name="eye" )" +
      (kind == off_centre
           ? R"(focal="0.01 0.01" sensorsize="0.01 0.01" principal="0.003 -0.002" resolution="48 48")"
           : R"(fovy="50")") +
      "/></body>" +
      (kind == plane
           ? R"(<geom type="plane" size="0.6 0.5 0.1" pos="0.1 0 -0.45" euler="8 5 0" material="mirror"/>)"
           : "") +
      R"(<geom type="box" size="0.3 0.4 0.02" pos="0.2 0.3 -0.5" material="mirror"/>
    <geom type="box" size="0.5 0.5 0.02" pos="-0.7 -0.5 -0.6" material="mirror"/>)";
  SplitMix64 random(7);
  const auto between = [&](float low, float high) { return std::to_string(random.uniform(low, high)); };
  constexpr std::array<const char*, 5> kinds = {"box", "sphere", "capsule", "cylinder", "ellipsoid"};
  for (int i = 0; i < 60; ++i)
    text += std::string("<geom type=\"") + kinds[static_cast<std::size_t>(i) % 5] + "\" size=\"" +
            between(0.02f, 0.1f) + " " + between(0.02f, 0.1f) + " " + between(0.02f, 0.1f) + "\" pos=\"" +
            between(-1, 1) + " " + between(-1, 1) + " " + between(-1, 1) + "\" euler=\"" + between(0, 180) +
            " " + between(0, 180) + " 0\" rgba=\"" + between(0, 1) + " " + between(0, 1) + " " +
            between(0, 1) + (i % 7 == 0 ? " 0.4" : " 1") + "\"/>";
  text += "</worldbody></mujoco>";
  const auto model = detail::load_mujoco_model("a room", text, heap());
  constexpr int pixels = 48, views = 40;
  std::vector<detail::MujocoPointer<mjData>> states;
  for (int i = 0; i < views; ++i) {
    states.push_back(detail::make_mujoco_data(*model, heap(), 1));
    mjData& data = *states.back();
    for (int k = 0; k < 3; ++k) data.mocap_pos[k] = random.uniform(-0.4f, 0.4f);
    for (int k = 0; k < 4; ++k) data.mocap_quat[k] = random.uniform(-1.0f, 1.0f);
    mju_normalize4(data.mocap_quat);
    mj_kinematics(model.get(), &data);
    mj_comPos(model.get(), &data);
    mj_camlight(model.get(), &data);
  }
  constexpr std::size_t frame = std::size_t{pixels} * pixels * 3;
  std::vector<std::uint8_t> plain(views * frame), alone(views * frame), beside(views * frame);
  {
    const detail::GlContext gl = detail::gl_context();
    gl(true);
    mjModel look = *model;
    look.vis.global.offwidth = look.vis.global.offheight = pixels;
    mjvScene scene;
    mjrContext context;
    mjvOption option;
    mjvCamera camera;
    mjv_defaultScene(&scene);
    mjr_defaultContext(&context);
    mjv_defaultOption(&option);
    mjv_defaultCamera(&camera);
    camera.type = mjCAMERA_FIXED;
    camera.fixedcamid = 0;
    mjv_makeScene(model.get(), &scene, 200);
    mjr_makeContext(&look, &context, mjFONTSCALE_100);
    mjr_setBuffer(mjFB_OFFSCREEN, &context);
    int of_all = 0, seen = 0, mirrors = 0;
    for (std::size_t i = 0; i < views; ++i) {
      mjv_updateScene(model.get(), states[i].get(), &option, nullptr, &camera, mjCAT_ALL, &scene);
      const std::span<const mjvGeom> shapes(scene.geoms, static_cast<std::size_t>(scene.ngeom));
      const detail::MujocoInView view(scene, shapes, pixels, pixels);
      for (const mjvGeom& shape : shapes) seen += view.sees(*model, shape);
      of_all += scene.ngeom;
      mirrors += view.sees_mirror();
      mjr_render({0, 0, pixels, pixels}, &scene, &context);
      mjr_readPixels(plain.data() + i * frame, nullptr, {0, 0, pixels, pixels}, &context);
    }
    MESSAGE("in view: " << seen << " of " << of_all << " shapes; the mirror in " << mirrors << " of "
                        << views);
    CHECK((kind == shadows ? seen == of_all : seen < of_all / 2));
    CHECK(mirrors > 2);
    CHECK((kind == shadows || mirrors < views - 2));
    mjr_freeContext(&context);
    mjv_freeScene(&scene);
    gl(false);
  }
  MujocoRenderer renderer(*model, heap(),
                          {.cameras = {"eye"}, .as_the_model = true, .rows_up = true, .at_once = 2});
  const auto draw = [&](std::vector<std::uint8_t>& into, int threads) {
    const Field<std::uint8_t> all(Extents{views, pixels, pixels, 3}, into.data());
    std::vector<std::jthread> drawing;
    for (int thread = 0; thread < threads; ++thread)
      drawing.emplace_back([&, thread] {
        for (int i = thread; i < views; i += threads)
          renderer.frames(i, pixels, std::span(&all, 1), *model, *states[static_cast<std::size_t>(i)]);
      });
  };
  draw(alone, 1);
  draw(beside, 3);
  CHECK(alone == plain);
  CHECK(beside == plain);
}
