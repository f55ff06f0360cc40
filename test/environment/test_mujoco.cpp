// dvla-test: mujoco
// The MuJoCo environments: the concept's promises, experts, memory, and what happens when physics goes wrong.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory_resource>
#include <string>
#include <vector>

#include "dvla/environment/mujoco.hpp"
#include "dvla/testing/environment.hpp"

// Every allocation of the process passes here: operator new, and MuJoCo's and TBB's malloc.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}
namespace {
std::atomic<bool> counting{false};
std::atomic<long> allocations{0};
void note() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace
extern "C" {
void* malloc(std::size_t size) { return note(), __libc_malloc(size); }
void* calloc(std::size_t n, std::size_t size) { return note(), __libc_calloc(n, size); }
void* realloc(void* data, std::size_t size) { return note(), __libc_realloc(data, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  return note(), __libc_memalign(alignment, size);
}
void* memalign(std::size_t alignment, std::size_t size) { return note(), __libc_memalign(alignment, size); }
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  note();
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? 12 : 0;
}
}

using namespace dvla;

namespace {

/// Fields for n rows and chunks of C on the heap.
struct Buffers {
  Buffers(const ObservationSpec& spec, int actions, std::int64_t n, std::int64_t chunk)
      : observation(observation_layout(spec, {n})),
        proprioception(static_cast<std::size_t>(n * spec.proprioception)),
        actions_of(static_cast<std::size_t>(n * chunk * actions)),
        rewards(static_cast<std::size_t>(n * chunk)),
        instructions(static_cast<std::size_t>(n)),
        ends(static_cast<std::size_t>(n * chunk)),
        cuts(static_cast<std::size_t>(n * chunk)),
        action({n, chunk, actions}, actions_of.data()),
        reward({n, chunk}, rewards.data()),
        terminated({n, chunk}, ends.data()),
        truncated({n, chunk}, cuts.data()) {
    observation.proprioception.place(proprioception.data());
    observation.instruction.place(instructions.data());
    for (std::int64_t i = 0; i < n; ++i) {
      starts.push_back({mix_seed(5, i)});
      indices.push_back(i);
    }
  }
  Outcome outcome() const { return {reward, terminated, truncated, observation}; }
  /// All rows, or one.
  template <class Batch>
  void reset(Batch& batch, Arena& arena) {
    Rows rows(indices, arena, failures);
    batch.reset(rows, starts, observation);
  }
  template <class Batch>
  std::int64_t step(Batch& batch, Arena& arena) {
    Rows rows(indices, arena, failures);
    return batch.step(rows, action, outcome());
  }
  template <class Batch>
  std::int64_t step(Batch& batch, std::int64_t row, Arena& arena) {
    Rows rows({&row, 1}, arena, failures);
    return batch.step(rows, action, outcome());
  }
  Observation observation;
  std::vector<float> proprioception, actions_of, rewards;
  std::vector<std::int32_t> instructions;
  std::vector<std::uint8_t> ends, cuts;
  std::vector<Start> starts;
  std::vector<std::int64_t> indices;
  RowFailures failures{256};
  Field<float> action, reward;
  Field<std::uint8_t> terminated, truncated;
};

class CountingResource : public std::pmr::memory_resource {
 public:
  std::atomic<std::size_t> held{0}, most{0}, calls{0};
  std::size_t limit = std::numeric_limits<std::size_t>::max();

 private:
  void* do_allocate(std::size_t size, std::size_t alignment) override {
    if (held + size > limit) throw std::bad_alloc();
    ++calls;
    most = std::max<std::size_t>(most, held += size);
    return std::pmr::new_delete_resource()->allocate(size, alignment);
  }
  void do_deallocate(void* data, std::size_t size, std::size_t alignment) override {
    held -= size;
    std::pmr::new_delete_resource()->deallocate(data, size, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }

MujocoKnobs knobs(int environments, int horizon) {
  MujocoKnobs result;
  result.environments = environments;
  result.horizon = horizon;
  return result;
}

/// Push, sabotaged through the action: > 0.5 makes a velocity NaN, < -0.5 raises an mju_error.
struct Sabotaged : Push {
  using Push::Push;
  static constexpr std::string_view name = "Sabotaged";
  void apply(const mjModel& model, mjData& data, const Goal& goal, std::span<const float> action) const {
    Push::apply(model, data, goal, action);
    if (action[0] > 0.5f) data.qvel[0] = std::numeric_limits<double>::quiet_NaN();
    if (action[0] < -0.5f) mju_error("the sabotage worked\nsecond line");
  }
};

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE_TEMPLATE("the tasks that ship conform to the environment concept", Task, Push, Reach,
                   PickAndPlace) {
  MujocoBatch<Task> environment(knobs(20, 16), heap());
  for (const std::string& sentence : testing::check_environment(environment)) FAIL_CHECK(sentence);
  static_assert(Task::proprioception < 32 && Task::instructions.size() >= 2);
}

TEST_CASE("a dense reward conforms too and grows as the expert works") {
  MujocoKnobs dense = knobs(20, 16);
  dense.dense_reward = true;
  MujocoBatch<Push> environment(dense, heap());
  for (const std::string& sentence : testing::check_environment(environment)) FAIL_CHECK(sentence);
}

TEST_CASE_TEMPLATE("the scripted expert solves fresh seeds within the advised horizon", Task, Push, Reach,
                   PickAndPlace) {
  constexpr int n = 200;
  MujocoBatch<Task> environment(knobs(n, Task::advised_horizon), heap());
  Buffers buffers(environment.observation_spec(), Task::actions, n, 1);
  Arena arena(2);
  buffers.reset(environment, arena);
  float rewards = 0;
  for (int step = 0; step < Task::advised_horizon; ++step) {
    for (int i = 0; i < n; ++i) environment.expert(i, buffers.action.at(i).span());
    buffers.step(environment, arena);
    for (const float reward : buffers.rewards) rewards += reward;
  }
  int solved = 0;
  for (int i = 0; i < n; ++i) solved += environment.succeeded(i);
  MESSAGE(Task::name, ": ", solved, " of ", n, " solved within ", Task::advised_horizon, " control steps");
  CHECK(solved >= 0.95 * n);
  CHECK(rewards == solved);  // sparse: exactly 1 per solved episode
}

TEST_CASE("the instruction decides which target counts") {
  constexpr int n = 64;
  MujocoBatch<Push> environment(knobs(n, 16), heap());
  Buffers buffers(environment.observation_spec(), 2, n, 16);
  Arena arena(1);
  buffers.reset(environment, arena);
  int red = 0;
  for (int i = 0; i < n; ++i) {
    red += buffers.instructions[static_cast<std::size_t>(i)] == 0;
    Buffers one(environment.observation_spec(), 2, n, 1);
    while (one.terminated[i] + one.truncated[i] == 0) {
      environment.expert(i, one.action.at(i).span());
      one.step(environment, i, arena);
    }
    if (!environment.succeeded(i)) continue;
    const float* seen = one.observation.proprioception.at(i).data();
    const bool to_red = one.observation.instruction[i] == 0;
    const float* named = seen + (to_red ? 10 : 12);
    const float* other = seen + (to_red ? 12 : 10);
    CHECK(std::hypot(seen[4] - named[0], seen[5] - named[1]) <
          std::hypot(seen[4] - other[0], seen[5] - other[1]));
  }
  CHECK(red > n / 4);
  CHECK(red < n * 3 / 4);
}

TEST_CASE("stepping and resetting allocate nothing") {
  counting = true;
  ::operator delete(::operator new(8));
  mju_free(mju_malloc(64));
  counting = false;
  REQUIRE(allocations == 2);  // the counter sees both C++ and libmujoco
  for (const int threads : {1, 2}) {
    CAPTURE(threads);
    constexpr int n = 16;
    MujocoBatch<PickAndPlace> environment(knobs(n, 16), heap());
    Buffers buffers(environment.observation_spec(), PickAndPlace::actions, n, 4);
    Arena arena(threads);
    auto episode = [&] {
      buffers.reset(environment, arena);
      for (int step = 0; step < 4; ++step) {
        environment.expert(3, buffers.action.at(3).at(0).span());
        buffers.step(environment, arena);
      }
    };
    for (int warm_up = 0; warm_up < 5; ++warm_up) episode();
    allocations = 0;
    counting = true;
    for (int i = 0; i < 5; ++i) episode();
    counting = false;
    MESSAGE(threads, " threads: ", allocations.load(), " allocations in ", 5 * 17 * n, " row calls");
    CHECK(allocations == 0);
  }
}

TEST_CASE("all of MuJoCo's memory comes from the environment pool and goes back to it") {
  CountingResource pool, other;
  {
    MujocoBatch<Push> environment(knobs(8, 16), pool);
    MujocoBatch<Reach> beside(knobs(4, 16), other);
    CHECK(pool.calls > 8 * 3);  // struct, buffer and arena of each row
    CHECK(pool.held > 8 * 64 * 1024);
    const std::size_t before = pool.calls;
    Buffers buffers(environment.observation_spec(), 2, 8, 4);
    Arena arena(1);
    buffers.reset(environment, arena);
    buffers.step(environment, arena);
    CHECK(pool.calls == before);
  }
  CHECK(pool.held == 0);
  CHECK(other.held == 0);
}

TEST_CASE("a pool that is too small is one sentence, whenever it runs out") {
  CountingResource measure;
  { MujocoBatch<Push> environment(knobs(4, 16), measure); }
  const std::size_t needed = measure.most;
  for (std::size_t limit = 0; limit < measure.most; limit += measure.most / 20) {
    CountingResource pool;
    pool.limit = limit;
    try {
      MujocoBatch<Push> environment(knobs(4, 16), pool);
      FAIL_CHECK("a pool of ", limit, " bytes of ", measure.most.load(), " was enough");
    } catch (const Error& error) {
      CHECK(has(error.what(), "pool is too small"));
      CHECK(has(error.what(), "raise --environment-pool-mib"));
      const std::string said = error.what(), before = "4 environments of MuJoCo take ";
      if (has(said, "for the model")) continue;
      REQUIRE(has(said, before.c_str()));
      const double mib = std::stod(said.substr(said.find(before) + before.size()));
      CHECK(mib * (1 << 20) <= static_cast<double>(needed));
      CHECK(mib * (1 << 20) > 0.5 * static_cast<double>(needed));
    } catch (const std::bad_alloc&) {
      // the batch's own list of rows, by the resource's own exception
    }
    CHECK(pool.held == 0);
  }
}

TEST_CASE("a row whose physics goes wrong has failed, with the reason; the others go on") {
  constexpr int n = 6;
  MujocoBatch<Sabotaged> environment(knobs(n, 16), heap());
  Buffers buffers(environment.observation_spec(), 2, n, 2);
  for (const int threads : {1, 2}) {
    Arena arena(threads);
    struct Case {
      float action;
      std::string text;
    };
    for (const Case& bad : {Case{1.0f, "not a sane number"}, Case{-1.0f, "'the sabotage worked'"},
                            Case{std::numeric_limits<float>::quiet_NaN(), "action is not a finite number"}}) {
      CAPTURE(bad.text);
      buffers.reset(environment, arena);
      std::fill(buffers.actions_of.begin(), buffers.actions_of.end(), 0.1f);
      buffers.step(environment, arena);
      buffers.action.at(2)[2] = bad.action;  // row 2, second control step of the chunk
      buffers.step(environment, arena);
      for (std::int64_t row = 0; row < n; ++row) CHECK(buffers.failures.has(row) == (row == 2));
      CHECK(has(buffers.failures.why(2), "control step 3 ("));
      CHECK(has(buffers.failures.why(2), bad.text.c_str()));
      buffers.failures.clear();
      CHECK(buffers.terminated[2 * 2] == 0);
      CHECK(buffers.terminated[2 * 2 + 1] == 1);
      for (const float value : buffers.proprioception) CHECK(std::isfinite(value));
      CHECK(buffers.terminated[5 * 2 + 1] == 0);  // row 5 was stepped all the same
      buffers.action.at(2)[2] = 0.1f;
      CHECK(buffers.step(environment, arena) == (n - 1) * 2);
    }
  }
}

/// A model text with a fault, or with something that the compiler warns about.
struct Faulty : Push {
  using Push::Push;
  static constexpr std::string_view mjcf = "<mujoco><worldbody><body><geom/></worldbody></mujoco>";
};
struct Deprecated : Push {
  using Push::Push;
  static constexpr std::string_view mjcf = R"(<mujoco><compiler settotalmass="1"/><worldbody>
    <body name="red" mocap="true"/><body name="blue" mocap="true"/></worldbody></mujoco>)";
};

TEST_CASE(
    "a model text that is no model is one sentence; the compiler's warnings do not go into a log file") {
  CHECK(has(message_of([] { MujocoBatch<Faulty> bad(knobs(1, 16), heap()); }), "is no model: XML"));
  MujocoBatch<Deprecated> old(knobs(1, 16), heap());
  CHECK(!std::filesystem::exists("MUJOCO_LOG.TXT"));
}

TEST_CASE("a case is an instruction and an initial state that all instructions share") {
  MujocoBatch<Push> environment(knobs(4, 16), heap());
  CHECK(environment.cases() == 1000);
  Buffers buffers(environment.observation_spec(), 2, 4, 1);
  Arena arena(1);
  buffers.starts = {{.case_index = 0}, {.case_index = 1}, {.case_index = 2}, {.case_index = 0}};
  buffers.reset(environment, arena);
  const auto seen = [&](std::int64_t row) {
    const auto span = buffers.observation.proprioception.at(row).span();
    return std::vector<float>(span.begin(), span.end());
  };
  CHECK(buffers.instructions == std::vector<std::int32_t>{0, 1, 0, 0});
  CHECK(seen(0) == seen(1));
  CHECK(seen(0) != seen(2));
  CHECK(seen(0) == seen(3));
}

TEST_CASE("wrong use is one sentence") {
  CHECK(
      has(message_of([] { MujocoBatch<Push> bad(knobs(0, 16), heap()); }), "environment.environments is 0"));
  CHECK(has(message_of([] { MujocoBatch<Push> bad(knobs(1, 10001), heap()); }), "from 1 to 10000"));
  MujocoKnobs camera = knobs(1, 16);
  camera.camera_pixels = 8;
  CHECK(has(message_of([&] { MujocoBatch<Push> bad(camera, heap()); }), "camera_pixels is 8"));

  MujocoBatch<Push> environment(knobs(4, 16), heap());
  Arena arena(1);
  Buffers buffers(environment.observation_spec(), 2, 4, 2);
  buffers.step(environment, arena);
  CHECK(has(buffers.failures.why(3), "before its first reset"));
  buffers.indices = {1, 4};
  CHECK(has(message_of([&] { buffers.reset(environment, arena); }), "row 4 of a batch of 4"));
  Buffers fewer(environment.observation_spec(), 2, 3, 2);
  CHECK(has(message_of([&] { fewer.reset(environment, arena); }), "observation_layout"));
  CHECK(has(message_of([&] { environment.succeeded(4); }), "no row 4"));
  float little[1];
  CHECK(has(message_of([&] { environment.expert(0, little); }), "2 numbers"));
}
