// dvla-bench: mujoco smoke=--benchmark_filter=Push,--benchmark_min_time=0.001
// MujocoBatch (reset, action, physics, success, reward, done, observation) against the plainest loop over
// mj_step that does the same physics on the same number of threads: each row's saved initial state is put
// back, the same controls are written, mj_step is called. The two take turns within one benchmark, so that
// other load on the machine meets both alike. `ratio` is the median over turns of raw time / batch time (1 =
// no overhead; 0.9 is the aim), `cpu_ratio` the same in processor time, which a busy machine disturbs less.
// Also: frames per second of the "top" camera (a reset and a frame per item).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory_resource>
#include <numeric>
#include <thread>
#include <vector>

#include "dvla/environment/mujoco.hpp"

namespace {

using namespace dvla;
using Clock = std::chrono::steady_clock;

/// A planar runner of HalfCheetah's class: 9 degrees of freedom, 6 motors, floor contacts, 5 x 10 ms a step.
struct Cheetah {
  static constexpr std::string_view name = "Cheetah";
  static constexpr std::array<std::string_view, 2> instructions = {"run forward", "run backward"};
  static constexpr int actions = 6, proprioception = 17, substeps = 5;
  struct Goal {
    std::int32_t instruction = 0;
  };
  static constexpr std::string_view mjcf = R"(
<mujoco model="cheetah">
  <compiler angle="radian" inertiafromgeom="true"/>
  <option timestep="0.01"/>
  <default>
    <joint armature=".1" damping="3" limited="true" stiffness="100"/>
    <geom contype="1" conaffinity="0" condim="3" friction=".4 .1 .1" solimp="0 .8 .01" solref=".02 1"/>
    <motor ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <camera name="top" pos="0 -3 1.2" xyaxes="1 0 0 0 .2 1"/>
    <geom type="plane" size="40 40 1" conaffinity="1"/>
    <body name="torso" pos="0 0 .7">
      <joint name="x" type="slide" axis="1 0 0" armature="0" damping="0" limited="false" stiffness="0"/>
      <joint name="z" type="slide" axis="0 0 1" armature="0" damping="0" limited="false" stiffness="0"/>
      <joint name="pitch" type="hinge" axis="0 1 0" armature="0" damping="0" limited="false" stiffness="0"/>
      <geom type="capsule" fromto="-.5 0 0 .5 0 0" size=".046"/>
      <geom type="capsule" fromto=".5 0 0 .68 0 .2" size=".046"/>
      <body pos="-.5 0 0">
        <joint name="back_thigh" axis="0 1 0" damping="6" stiffness="240" range="-.52 1.05"/>
        <geom type="capsule" fromto="0 0 0 .16 0 -.25" size=".046"/>
        <body pos=".16 0 -.25">
          <joint name="back_shin" axis="0 1 0" damping="4.5" stiffness="180" range="-.785 .785"/>
          <geom type="capsule" fromto="0 0 0 -.28 0 -.14" size=".046"/>
          <body pos="-.28 0 -.14">
            <joint name="back_foot" axis="0 1 0" range="-.4 .785"/>
            <geom type="capsule" fromto="0 0 0 .06 0 -.19" size=".046"/>
          </body>
        </body>
      </body>
      <body pos=".5 0 0">
        <joint name="front_thigh" axis="0 1 0" damping="4.5" stiffness="180" range="-1 .7"/>
        <geom type="capsule" fromto="0 0 0 -.14 0 -.24" size=".046"/>
        <body pos="-.14 0 -.24">
          <joint name="front_shin" axis="0 1 0" stiffness="120" range="-1.2 .87"/>
          <geom type="capsule" fromto="0 0 0 .13 0 -.18" size=".046"/>
          <body pos=".13 0 -.18">
            <joint name="front_foot" axis="0 1 0" damping="1.5" stiffness="60" range="-.5 .5"/>
            <geom type="capsule" fromto="0 0 0 .045 0 -.13" size=".046"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="back_thigh" gear="120"/><motor joint="back_shin" gear="90"/><motor joint="back_foot" gear="60"/>
    <motor joint="front_thigh" gear="120"/><motor joint="front_shin" gear="60"/><motor joint="front_foot" gear="30"/>
  </actuator>
</mujoco>)";

  explicit Cheetah(const mjModel&) {}
  Goal reset(const mjModel& model, mjData& data, SplitMix64& random, std::int32_t wanted) const {
    for (int i = 0; i < model.nq; ++i) data.qpos[i] += random.uniform(-0.1, 0.1);
    for (int i = 0; i < model.nv; ++i) data.qvel[i] = 0.1 * random.normal();
    const auto drawn = static_cast<std::int32_t>(random.below(2));
    return {wanted < 0 ? drawn : wanted};
  }
  std::int32_t instruction(const Goal& goal) const { return goal.instruction; }
  void apply(const mjModel&, mjData& data, const Goal&, std::span<const float> action) const {
    for (std::size_t i = 0; i < action.size(); ++i) data.ctrl[i] = static_cast<mjtNum>(action[i]);
  }
  bool success(const mjData&, const Goal&) const { return false; }
  float dense_reward(const mjData& data, const Goal& goal) const {
    mjtNum effort = 0;
    for (int i = 0; i < actions; ++i) effort += data.ctrl[i] * data.ctrl[i];
    return static_cast<float>((goal.instruction == 0 ? 1 : -1) * data.qvel[0] - 0.1 * effort);
  }
  void observe(const mjData& data, const Goal&, std::span<float> out) const {
    for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<float>(data.qpos[i + 1]);
    for (std::size_t i = 0; i < 9; ++i) out[8 + i] = static_cast<float>(data.qvel[i] / 10);
  }
  void expert(const mjModel&, const mjData&, const Goal&, std::span<float> action) const {
    std::fill(action.begin(), action.end(), 0.0f);
  }
};

constexpr std::int64_t rows = 128, chunk = 4, decisions = 4, steps = chunk * decisions;

template <class Task>
void against_raw(benchmark::State& state) {
  Arena arena(static_cast<int>(state.range(0)));
  std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
  MujocoKnobs knobs;
  knobs.environments = rows;
  knobs.horizon = steps;
  knobs.dense_reward = true;
  MujocoBatch<Task> batch(knobs, heap);
  Observation next = observation_layout(batch.observation_spec(), {rows});
  std::vector<float> proprioception(static_cast<std::size_t>(next.proprioception.count()));
  std::vector<std::int32_t> instruction(rows);
  next.proprioception.place(proprioception.data());
  next.instruction.place(instruction.data());
  std::vector<dvla::Start> starts;
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < rows; ++i) {
    starts.push_back({mix_seed(1, i)});
    indices.push_back(i);
  }
  dvla::RowFailures failures(rows);
  dvla::Rows every(indices, arena, failures);
  std::vector<float> actions(static_cast<std::size_t>(decisions * rows * chunk * Task::actions));
  SplitMix64 random(2);
  for (float& value : actions) value = random.uniform(-1.0f, 1.0f);
  std::vector<float> rewards(static_cast<std::size_t>(rows * chunk));
  std::vector<std::uint8_t> ends(rewards.size()), cuts(rewards.size());
  const Field<float> reward({rows, chunk}, rewards.data());
  const Field<std::uint8_t> terminated({rows, chunk}, ends.data()), truncated({rows, chunk}, cuts.data());
  const Field<float> action({decisions, rows, chunk, Task::actions}, actions.data());

  // The raw loop: the same model, the same initial states, the same controls.
  const auto model = detail::load_mujoco_model(Task::name, Task::mjcf, heap);
  const Task task(*model);
  std::vector<detail::MujocoPointer<mjData>> data;
  std::vector<typename Task::Goal> goals;
  const int state_size = mj_stateSize(model.get(), mjSTATE_INTEGRATION);
  std::vector<mjtNum> initial(static_cast<std::size_t>(state_size * rows));
  for (std::int64_t i = 0; i < rows; ++i) {
    data.push_back(detail::make_mujoco_data(*model, heap, rows));
    SplitMix64 seeded(starts[static_cast<std::size_t>(i)].seed);
    goals.push_back(task.reset(*model, *data.back(), seeded, -1));
    mj_forward(model.get(), data.back().get());
    mj_getState(model.get(), data.back().get(), initial.data() + i * state_size, mjSTATE_INTEGRATION);
  }
  auto raw = [&] {
    for (std::int64_t t = -1; t < decisions; ++t) {
      auto block = [&](std::int64_t thread) {
        const std::int64_t share = rows / arena.threads();
        for (std::int64_t i = thread * share; i < (thread + 1) * share; ++i) {
          mjData* const row = data[static_cast<std::size_t>(i)].get();
          if (t < 0) {
            mj_setState(model.get(), row, initial.data() + i * state_size, mjSTATE_INTEGRATION);
            continue;
          }
          for (std::int64_t c = 0; c < chunk; ++c) {
            task.apply(*model, *row, goals[static_cast<std::size_t>(i)], action.at(t).at(i).at(c).span());
            for (int k = 0; k < Task::substeps; ++k) mj_step(model.get(), row);
          }
        }
      };
      arena.for_each(arena.threads(), block);
    }
    return rows * steps;
  };
  auto whole = [&] {
    std::int64_t made = 0;
    batch.reset(every, starts, next);
    for (std::int64_t t = 0; t < decisions; ++t)
      made += batch.step(every, action.at(t), {reward, terminated, truncated, next});
    return made;
  };
  struct Cost {
    double wall, cpu;  // seconds per environment step
  };
  auto cost = [](auto& work) {
    const std::clock_t cpu = std::clock();
    const auto start = Clock::now();
    const double made = static_cast<double>(work());
    return Cost{std::chrono::duration<double>(Clock::now() - start).count() / made,
                static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC / made};
  };
  raw();
  whole();
  std::vector<double> ratios, cpu_ratios, raws, wholes;
  for (auto _ : state) {
    const Cost plain = cost(raw), full = cost(whole);
    raws.push_back(plain.wall);
    wholes.push_back(full.wall);
    ratios.push_back(plain.wall / full.wall);
    cpu_ratios.push_back(plain.cpu / full.cpu);
    state.SetIterationTime(full.wall * static_cast<double>(rows * steps));
  }
  auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                     values.end());
    return values[values.size() / 2];
  };
  state.counters["ratio"] = median(ratios);
  state.counters["cpu_ratio"] = median(cpu_ratios);
  state.counters["raw_env_steps/s"] = 1 / median(raws);
  state.counters["env_steps/s"] = 1 / median(wholes);
}

template <class Task>
void frames(benchmark::State& state) {
  constexpr std::int64_t n = 16;
  Arena arena(1);
  MujocoKnobs knobs;
  knobs.environments = n;
  knobs.camera_pixels = static_cast<int>(state.range(0));
  MujocoBatch<Task> batch(knobs, *std::pmr::new_delete_resource());
  Observation next = observation_layout(batch.observation_spec(), {n});
  std::vector<float> proprioception(static_cast<std::size_t>(next.proprioception.count()));
  std::vector<std::int32_t> instruction(n);
  std::vector<std::uint8_t> pixels(next.frames[0].bytes());
  next.proprioception.place(proprioception.data());
  next.instruction.place(instruction.data());
  next.frames[0].place(pixels.data());
  const std::vector<dvla::Start> starts(n, {1});
  std::vector<std::int64_t> indices(n);
  std::iota(indices.begin(), indices.end(), std::int64_t{0});
  dvla::RowFailures failures(n);
  dvla::Rows every(indices, arena, failures);
  for (auto _ : state) batch.reset(every, starts, next);
  state.SetItemsProcessed(state.iterations() * n);
}

}  // namespace

BENCHMARK(against_raw<Push>)
    ->Name("push/threads")
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(2);
BENCHMARK(against_raw<Cheetah>)
    ->Name("cheetah/threads")
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(2);
BENCHMARK(against_raw<Reach>)
    ->Name("reach/threads")
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(2);
BENCHMARK(against_raw<PickAndPlace>)
    ->Name("pick_and_place/threads")
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(2);
BENCHMARK(frames<Push>)
    ->Name("push/reset_with_frames/pixels")
    ->Arg(64)
    ->Arg(128)
    ->Arg(224)
    ->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();
