// dvla-test: tsan asan
// Rows in processes of their own: that the promises of an environment hold, and that a worker that hangs, dies or
// talks nonsense costs its rows and nothing else. The workers are apart_stub.py.
#include <doctest/doctest.h>
#include <pthread.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "dvla/environment/apart.hpp"
#include "dvla/testing/environment.hpp"
#include "test/environment/world.hpp"
#include "test/io/temporary_folder.hpp"

namespace {
using dvla::ApartBatch;
using dvla::Field;

dvla::ApartOptions stub(std::int64_t rows, int workers, std::vector<std::string> arguments = {}) {
  dvla::ApartOptions options{
      .program = {"python3", DVLA_TEST_DIR "/environment/apart_stub.py"}, .rows = rows, .workers = workers};
  options.program.push_back("--camera");
  options.program.insert(options.program.end(), arguments.begin(), arguments.end());
  options.step_deadline = options.reset_deadline = std::chrono::milliseconds(1500);
  return options;
}
bool exists(pid_t process) { return ::kill(process, 0) == 0 || errno != ESRCH; }
bool has_no_children() { return ::waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD; }

struct World : dvla_test::World<ApartBatch> {
  explicit World(dvla::ApartOptions options, bool in_pool = true)
      : dvla_test::World<ApartBatch>(std::move(options), 2, in_pool) {
    for (float& value : all->action.span()) value = 9;
  }
  /// Row r from seed 100 + r.
  void reset(const std::vector<std::int64_t>& rows, bool training = false) {
    failures.clear();
    std::vector<dvla::Start> starts;
    for (const std::int64_t row : rows)
      starts.push_back({.seed = static_cast<std::uint64_t>(100 + row), .training = training});
    dvla::Rows of(rows, arena, failures);
    environment.reset(of, starts, seen());
  }
};
}  // namespace

TEST_CASE("Rows apart keep the promises of an environment, however many workers they have") {
  for (const int workers : {1, 3}) {
    dvla::EnvironmentPool pool(std::size_t{4} << 20);
    ApartBatch environment(stub(10, workers), pool);
    CHECK(std::ssize(environment.processes()) == workers);
    for (const auto& wrong : dvla::testing::check_environment(environment, {.chunk = 2, .rows = 6}))
      FAIL_CHECK(wrong);
  }
  CHECK(has_no_children());
}

TEST_CASE("What rows show is written where the caller keeps it: in the pool, or copied from there") {
  World in_pool(stub(6, 2)), elsewhere(stub(6, 2), false);
  const std::size_t taken = in_pool.pool.report().in_use, taken_elsewhere = elsewhere.pool.report().in_use;
  for (World* world : {&in_pool, &elsewhere}) {
    world->all->observation.proprioception[1] = -5;
    world->reset({1, 2, 3, 4, 5});
    CHECK(world->failed().empty());
    CHECK(world->step({2, 3, 4}) == 6);
    CHECK(world->all->observation.proprioception[1] == -5);  // row 0 is nobody's
    CHECK(world->all->observation.proprioception[3] == 0);   // row 1 has not moved
    CHECK(world->all->observation.proprioception[5] == doctest::Approx(2 / 6.0));
    CHECK(world->step({2, 3, 4}) == 6);
    CHECK(world->step({2, 3, 4}) == 6);
    for (const std::int64_t row : {2, 3, 4}) CHECK(world->all->truncated[2 * row + 1] == 1);
    CHECK(world->step({2}) == 0);
    world->all->action[2] = world->all->observation.proprioception[2];
    CHECK(world->step({1}) == 1);
    CHECK(world->environment.succeeded(1));
    CHECK(world->all->reward[2] == 1);
    CHECK_FALSE(world->environment.succeeded(2));
  }
  CHECK(in_pool.pool.report().in_use == taken);
  CHECK(elsewhere.pool.report().in_use == taken_elsewhere);
  for (std::int64_t i = 6 * 3; i < 6 * 6 * 3; ++i)
    CHECK(in_pool.all->observation.frames[0][i] == elsewhere.all->observation.frames[0][i]);
}

TEST_CASE(
    "A worker that hangs, dies or talks nonsense costs its rows; others go on, and a reset begins it anew") {
  const std::vector<std::pair<std::string, std::string>> faults{
      {"hang", "its process did not come back from a step within 1500 ms, and was killed"},
      {"crash", "its process ended by signal 11 (Segmentation fault)"},
      {"exit", "its process ended with exit code 3"},
      {"garbage", "its process gave an answer that is none: it is no JSON, or was cut off, and was killed"},
      {"other call", "its process answered call 3, not 4, and was killed"},
      {"flood", "its process answered with 300000 bytes, and was killed"}};
  for (const auto& [fault, why] : faults) {
    CAPTURE(fault);
    const dvla_test::TemporaryFolder folder;
    World world(
        stub(6, 3, {"--fault", fault, "--row", "3", "--step", "3", "--once", (folder / "once").string()}));
    const std::vector<pid_t> before = world.environment.processes();
    world.reset(world.everybody);
    CHECK(world.failed().empty());
    CHECK(world.step(world.everybody) == 12);
    CHECK(world.step({0, 1, 3, 4, 5}) == 8);  // row 2, of the same worker, waits for its turn
    CHECK(world.failed() == std::vector<std::int64_t>{3});
    CHECK(world.failures.why(3) == why + " (worker 1), 2 control steps into its episode");
    CHECK(world.environment.processes().size() == 3);  // another is begun
    CHECK(world.environment.processes()[1] != before[1]);
    CHECK_FALSE(exists(before[1]));  // no zombie either
    CHECK(world.step({2}) == 0);     // its episode went with the worker
    CHECK(world.failures.why(2) == why + " (worker 1), 2 control steps into its episode");
    world.reset({3});
    CHECK(world.failed().empty());
    CHECK(world.environment.processes().size() == 3);
    CHECK(world.step({0, 1, 2, 3}) == 6);  // row 2 has none in the new worker
    CHECK(world.failed() == std::vector<std::int64_t>{2});
    world.reset({2});
    CHECK(world.step({2, 3}) == 4);
    CHECK(world.failed().empty());
  }
  CHECK(has_no_children());
}

TEST_CASE("A hang in a reset costs those rows; a row that fails alone leaves its worker as it is") {
  const dvla_test::TemporaryFolder folder;
  World world(
      stub(4, 2, {"--fault", "hang", "--row", "2", "--step", "0", "--once", (folder / "once").string()}));
  world.reset(world.everybody);
  CHECK(world.failed() == std::vector<std::int64_t>{2, 3});
  CHECK(world.failures.why(3) ==
        "its process did not come back from its reset within 1500 ms, and was killed (worker 1)");
  world.reset({2, 3});
  CHECK(world.failed().empty());
  World other(stub(4, 2, {"--fault", "row", "--row", "2", "--step", "1"}));
  const std::vector<pid_t> before = other.environment.processes();
  other.reset(other.everybody);
  CHECK(other.step(other.everybody) == 6);
  CHECK(other.failed() == std::vector<std::int64_t>{2});
  CHECK(other.failures.why(2) == "the gripper fell off");
  CHECK(other.environment.processes() == before);
}

TEST_CASE("A worker that is killed between two calls is begun anew by the next reset, without a failure") {
  World world(stub(4, 2));
  world.reset(world.everybody);
  const std::vector<pid_t> before = world.environment.processes();
  ::kill(before[0], SIGKILL);
  siginfo_t gone{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(before[0]), &gone, WEXITED | WNOWAIT) == 0);
  world.reset(world.everybody);
  CHECK(world.failed().empty());
  CHECK(world.environment.processes().size() == 2);
  ::kill(world.environment.processes()[1], SIGKILL);
  CHECK(world.step(world.everybody) == 4);
  CHECK(world.failed() == std::vector<std::int64_t>{2, 3});
  CHECK(world.failures.why(2) ==
        "its process ended by signal 9 (Killed) (worker 1), 0 control steps into its episode");
}

TEST_CASE("Training does not wait for a worker that is begun anew; an evaluation does, and who is alone") {
  const dvla_test::TemporaryFolder folder;
  const auto slow = [&](std::int64_t rows, int workers, const std::string& once) {
    return stub(rows, workers,
                {"--fault", "exit", "--row", "1", "--once", (folder / once).string(), "--slow", "1.5"});
  };
  World world(slow(4, 2, "once"));
  world.reset(world.everybody, true);
  CHECK(world.step(world.everybody) == 4);
  CHECK(world.failed() == std::vector<std::int64_t>{0, 1});
  world.reset(world.everybody, true);
  CHECK(world.failed() == std::vector<std::int64_t>{0, 1});
  CHECK(world.failures.why(0) == "its process is still being started (worker 0)");
  std::vector<float> action(1);
  CHECK_THROWS_WITH_AS(world.environment.expert(0, action), "its process is still being started (worker 0)",
                       dvla::Error);
  CHECK(world.step(world.everybody) == 4);
  CHECK(world.failed() == std::vector<std::int64_t>{0, 1});
  world.reset(world.everybody);
  CHECK(world.failed().empty());
  CHECK(world.step(world.everybody) == 8);

  World alone(slow(2, 1, "once alone"));
  alone.reset(alone.everybody, true);
  CHECK(alone.step(alone.everybody) == 0);
  alone.reset(alone.everybody, true);
  CHECK(alone.failed().empty());
  CHECK(alone.step(alone.everybody) == 4);
}

TEST_CASE("The expert's word and a picture come from the row's worker; what it cannot do, it says") {
  World world(stub(4, 2));
  world.reset(world.everybody);
  std::vector<float> action(1);
  world.environment.expert(3, action);
  CHECK(action[0] != 0);
  std::vector<std::uint8_t> picture(3 * 4 * 5, 0xEE);
  world.environment.render(3, 5, 4, picture);
  for (const std::uint8_t each : picture) CHECK(each == world.all->observation.frames[0][3 * 2 * 3 * 3]);
  CHECK(world.step(world.everybody) == 8);
  const pid_t gone = world.environment.processes()[1];
  ::kill(gone, SIGKILL);
  siginfo_t info{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(gone), &info, WEXITED | WNOWAIT) == 0);
  CHECK_THROWS_WITH_AS(world.environment.expert(3, action),
                       "its process ended by signal 9 (Killed) (worker 1)", dvla::Error);
  CHECK_THROWS_AS(world.environment.render(2, 5, 4, picture), dvla::Error);
  world.environment.expert(0, action);
  World other(stub(4, 2, {"--refuse", "expert"}));
  other.reset(other.everybody);
  CHECK_THROWS_WITH_AS(other.environment.expert(1, action), "it has no hands", dvla::Error);
}

TEST_CASE("Where the process that has a batch is killed, its workers are killed with it, a stopped one too") {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    World world(stub(4, 2));
    const auto both = world.environment.processes();
    ::kill(both[1], SIGSTOP);
    if (::write(ends[1], both.data(), sizeof(pid_t) * 2) < 0) ::_exit(1);
    ::kill(::getpid(), SIGKILL);
  }
  std::array<pid_t, 2> workers{};
  REQUIRE(::read(ends[0], workers.data(), sizeof workers) == sizeof workers);
  int status = 0;
  REQUIRE(::waitpid(parent, &status, 0) == parent);
  CHECK(WIFSIGNALED(status));
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  const auto runs = [](pid_t process) {  // a zombie, where nobody reaps it, does not
    std::ifstream stat("/proc/" + std::to_string(process) + "/stat");
    std::string id, name, state;
    stat >> id >> name >> state;
    return !state.empty() && state != "Z" && state != "X";
  };
  while ((runs(workers[0]) || runs(workers[1])) && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK_FALSE(runs(workers[0]));
  CHECK_FALSE(runs(workers[1]));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("What cannot be started is one sentence before anything is stepped") {
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  const auto refuses = [&](dvla::ApartOptions options, const std::string& why,
                           std::pmr::memory_resource& memory) {
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(ApartBatch(std::move(options), memory), doctest::Contains(why.c_str()),
                         dvla::ConfigError);
    CHECK(has_no_children());
  };
  refuses(stub(4, 2), "this one cannot be given to a child process; choose DualPool",
          *std::pmr::new_delete_resource());
  refuses(stub(2, 3), "from 1 to as many workers are needed", pool);
  dvla::ApartOptions nothing = stub(4, 2);
  nothing.program = {"no-such-simulator"};
  refuses(
      nothing,
      "an environment's worker cannot be started: cannot run the program 'no-such-simulator': No such file",
      pool);
  refuses(stub(4, 2, {"--refuse", "start"}), "an environment's worker cannot be started: there is no robot",
          pool);
  refuses(stub(4, 2, {"--refuse", "differ"}), "its environment is not that of the other workers", pool);
  nothing.program = {"false"};
  refuses(nothing, "an environment's worker cannot be started: its process ended with exit code 1", pool);
  nothing.program = {"sleep", "1000"};
  nothing.start_deadline = std::chrono::milliseconds(200);
  refuses(nothing, "its process did not come back from its start within 200 ms, and was killed", pool);
}

TEST_CASE("A signal that is handled meanwhile neither ends a call nor prolongs it") {
  const dvla_test::TemporaryFolder folder;
  World world(stub(4, 2, {"--fault", "hang", "--row", "2", "--once", (folder / "once").string()}));
  world.reset(world.everybody);
  static std::atomic<int> heard{0};
  struct sigaction action {
  }, usual{};
  action.sa_handler = [](int) { ++heard; };
  REQUIRE(::sigaction(SIGTERM, &action, &usual) == 0);
  const pthread_t self = ::pthread_self();
  const auto begin = std::chrono::steady_clock::now();
  std::jthread sender([self](std::stop_token stop) {
    for (int i = 0; i < 20 && !stop.stop_requested(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      ::pthread_kill(self, SIGTERM);
    }
  });
  CHECK(world.step(world.everybody) == 4);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(8));
  sender.join();
  ::sigaction(SIGTERM, &usual, nullptr);
  CHECK(heard > 10);
  CHECK(world.failed() == std::vector<std::int64_t>{2, 3});
}
