// dvla-test: io
// Environments in this process's own Python: the same bits as workers show, what they raise, how the interpreter begins
// and ends. The environments are python_stub.py's, which wants NumPy alone.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "dvla/environment/gymnasium.hpp"
#include "dvla/environment/python/embedded.hpp"
#include "dvla/handoff/signals.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/world.hpp"

namespace {
using World = dvla_test::World<dvla::GymnasiumEnvironment>;

dvla::GymnasiumKnobs stub(const std::string& name, int environments = 4,
                          const std::string& arguments = "{}") {
  dvla::GymnasiumKnobs knobs;
  knobs.environments = environments;
  knobs.embedded = true;
  knobs.python = DVLA_TEST_DIR "/../.venv/bin/python";
  knobs.factory = "python_stub:" + name;
  knobs.arguments = arguments;
  return knobs;
}

/// Where worker.py, in this process, has the proprioception of row 0 of the last step.
std::uintptr_t seen_by_python() {
  std::promise<std::uintptr_t> where;
  dvla::EmbeddedPython::post([&] {
    const dvla::EmbeddedPython::Object names(PyDict_New());
    PyDict_SetItemString(names.get(), "__builtins__", PyEval_GetBuiltins());
    const dvla::EmbeddedPython::Object done(
        PyRun_String("import gc\n"
                     "worker = [each for each in gc.get_objects() if type(each).__name__ == 'Worker'][-1]\n"
                     "where = [view.ctypes.data for (_, dtype, extents), view in worker.views.items() if "
                     "extents == (2,) and "
                     "view.dtype == 'float32'][-1]\n",
                     Py_file_input, names.get(), names.get()));
    where.set_value(done ? PyLong_AsSize_t(PyDict_GetItemString(names.get(), "where")) : 0);
  });
  return where.get_future().get();
}
}  // namespace

TEST_CASE("Embedded environments keep the promises of an environment, and show the bits that workers show") {
  {
    dvla::EnvironmentPool pool(std::size_t{4} << 20);
    dvla::GymnasiumEnvironment environment(stub("Many", 10), pool);
    CHECK(environment.processes().empty());
    for (const auto& wrong :
         dvla::testing::check_environment(environment, {.rows = 6, .largest_proprioception = 9}))
      FAIL_CHECK(wrong);
  }
  dvla::GymnasiumKnobs apart = stub("Many");
  apart.embedded = false;
  apart.workers = 2;
  World here(stub("Many")), there(apart);
  REQUIRE(there.environment.processes().size() == 2);
  for (World* each : {&here, &there}) {
    each->reset();
    for (std::int64_t i = 0; i < std::ssize(each->all->action.span()); ++i)
      each->all->action[i] = i % 4 == 0 ? 0.03F * static_cast<float>(i) : static_cast<float>(i % 4 == 1);
    each->step(each->everybody);
  }
  for (std::int64_t i = 0; i < std::ssize(here.seen().proprioception.span()); ++i)
    CHECK(here.seen().proprioception[i] == there.seen().proprioception[i]);
  for (std::int64_t i = 0; i < 8; ++i) CHECK(here.all->reward[i] == there.all->reward[i]);
}

TEST_CASE("Python writes into the very memory that the pipeline reads") {
  World world(stub("Point"), 1);
  world.reset();
  world.step(world.everybody);
  CHECK(seen_by_python() == reinterpret_cast<std::uintptr_t>(world.seen().proprioception.data()));
}

TEST_CASE("Several at once, from several threads") {
  std::vector<std::thread> threads;
  std::atomic<int> made = 0;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      World world(stub("Point", 3));
      for (int k = 0; k < 20; ++k) {
        world.reset(static_cast<std::uint64_t>(k));
        made += static_cast<int>(world.step(world.everybody));
      }
    });
  for (std::thread& each : threads) each.join();
  CHECK(made > 3 * 20 * 3);
}

TEST_CASE("What a row raises costs its row; an interrupt is a SIGINT; what ends Python ends no program") {
  World faulty(stub("Faulty", 6));
  faulty.reset();
  for (float& value : faulty.all->action.span()) value = 0.001F;
  faulty.step(faulty.everybody);
  faulty.step(faulty.everybody);
  REQUIRE_FALSE(faulty.failed().empty());
  CHECK(faulty.failed().size() < 6);
  CHECK(faulty.failures.why(faulty.failed()[0]).find("RuntimeError: the gripper fell off (python_stub.py:") ==
        0);
  faulty.reset();
  CHECK(faulty.failed().empty());

  for (const bool embedded : {true, false}) {
    CAPTURE(embedded);
    dvla::stop_flag stop;
    const dvla::signal_guard guard(stop);
    dvla::GymnasiumKnobs knobs = stub("Interrupted", 4);
    knobs.embedded = embedded;
    World interrupted(knobs);
    interrupted.reset();
    interrupted.step(interrupted.everybody);
    CHECK_FALSE(stop.stop_requested());
    interrupted.step(interrupted.everybody);
    CHECK(stop.stop_requested());
    CHECK(interrupted.failures.why(3).find("KeyboardInterrupt: (python_stub.py:") == 0);
    for (int again = 0; again < 3; ++again) {  // a third SIGINT would end the process at once
      interrupted.reset();
      interrupted.step(interrupted.everybody);
      interrupted.step(interrupted.everybody);
    }
  }

  World leaving(stub("Interrupted", 2, R"({"way": "exit"})"));
  leaving.reset();
  leaving.step(leaving.everybody);
  leaving.step(leaving.everybody);
  CHECK(leaving.failures.why(0).find(
            "an embedded environment fails: RuntimeError: SystemExit: 3 (python_stub.py:") == 0);
  leaving.reset();
  CHECK(leaving.failed().empty());
}

TEST_CASE("A picture's context and what a thread keeps for itself stay: Python has one thread") {
  World world(stub("Threaded"));  // it raises where another thread steps it than made it
  std::thread([&] { world.reset(); }).join();
  CHECK(world.failed().empty());
  std::thread([&] { world.step(world.everybody); }).join();
  CHECK(world.failed().empty());
}

TEST_CASE("What cannot be embedded is one sentence") {
  const auto& refuses = dvla_test::refuses<dvla::GymnasiumEnvironment, dvla::GymnasiumKnobs>;
  refuses(stub("unbounded"), "dimension 0 of its actions lies in [-inf, inf]; dvla takes finite bounds");
  dvla::GymnasiumKnobs knobs = stub("Point");
  knobs.workers = 2;
  refuses(knobs, "environment.workers is 2, and environment.embedded is true: an interpreter is one");
  knobs = stub("Point");
  knobs.python = "python3";
  refuses(knobs, "this process has begun its one interpreter with '");
}

/// A program of its own: steps until it is told to stop, throws, or leaves from the midst of it.
int child(const std::string& way) {
  dvla::stop_flag stop;
  const dvla::signal_guard guard(stop);
  if (way == "hangs") {  // late as a worker, and the program ends all the same
    dvla::GymnasiumKnobs knobs = stub("Faulty", 6, R"({"fault": "hang"})");
    knobs.worker_step_s = 1;
    World hanging(knobs);
    hanging.reset();
    hanging.step(hanging.everybody);
    hanging.step(hanging.everybody);
    std::fprintf(stderr, "%s\n", hanging.failures.why(0).c_str());
    return 5;
  }
  World world(stub("Point"));
  std::fputs("it steps\n", stderr);
  for (int k = 0; !stop.stop_requested(); ++k) {
    world.reset();
    world.step(world.everybody);
    if (way == "throws" && k == 5) throw dvla::Error("enough");
    if (way == "exits" && k == 5) std::exit(4);
  }
  return 0;
}

TEST_CASE("The interpreter ends with its program: told to, by an error, or from the midst of it") {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string late =
      "its process did not come back from a step within 1000 ms (worker 0), 2 control steps into its "
      "episode\n";
  for (const auto& [way, code, said] : {std::tuple<std::string, int, std::string>{"told", 0, "it steps\n"},
                                        {"throws", 1, "it steps\nerror: enough\n"},
                                        {"exits", 4, "it steps\n"},
                                        {"hangs", 5, late}}) {
    CAPTURE(way);
    const auto done = dvla::io::run_child({"timeout", "--foreground", "--preserve-status", "-s", "TERM",
                                           way == "told" ? "3" : "60", self, "--child", way},
                                          {}, std::chrono::seconds(60));
    CHECK(done.exit_code == code);
    CHECK(done.err == said);
  }
}

int main(int argc, char** argv) {
  ::setenv("PYTHONPATH", DVLA_TEST_DIR "/environment", 1);
  if (argc == 3 && std::string(argv[1]) == "--child") {
    try {
      return child(argv[2]);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
      return 1;
    }
  }
  return doctest::Context(argc, argv).run();
}
