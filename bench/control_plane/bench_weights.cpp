// dvla-bench:
// A weight version's way to the samplers, stage by stage, at 2.4 MB (TinyVLA, 0.6 M parameters) and 256 MB,
// against plain memcpy of the same bytes in the same run: pack (copy into the plane's buffer), publish
// (checksum, then visible), receive (copy and proof of the copy), swap, and all of them in a row.
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <vector>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/control_plane/in_process.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace {

using Weights = std::vector<std::byte>;
constexpr std::size_t mib = std::size_t{1} << 20;

struct Stage {
  explicit Stage(benchmark::State& state)
      : bytes(static_cast<std::size_t>(state.range(0))),
        pool(2 * bytes + 4 * mib),
        plane(bytes, pool),
        trained(bytes, std::byte{3}),
        received(bytes, std::byte{1}) {}
  void pack() { std::memcpy(plane.begin(++version).data(), trained.data(), bytes); }
  void done(benchmark::State& state) const {
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
  }
  std::size_t bytes;
  dvla::EnvironmentPool pool;
  dvla::InProcessWeightPlane plane;
  Weights trained, received;
  std::int64_t version = -1;
};

void plain_memcpy(benchmark::State& state) {
  Stage stage(state);
  for (auto _ : state) {
    std::memcpy(stage.received.data(), stage.trained.data(), stage.bytes);
    benchmark::ClobberMemory();
  }
  stage.done(state);
}
void two_plain_memcpy(
    benchmark::State& state) {  // what pack + receive would be without versions and checksums
  Stage stage(state);
  Weights between(stage.bytes, std::byte{2});
  for (auto _ : state) {
    std::memcpy(between.data(), stage.trained.data(), stage.bytes);
    benchmark::ClobberMemory();
    std::memcpy(stage.received.data(), between.data(), stage.bytes);
    benchmark::ClobberMemory();
  }
  stage.done(state);
}
void pack(benchmark::State& state) {
  Stage stage(state);
  for (auto _ : state) stage.pack();
  stage.done(state);
}
void publish(benchmark::State& state) {
  Stage stage(state);
  stage.pack();
  for (auto _ : state) {
    stage.plane.publish(stage.version);
    (void)stage.plane.begin(++stage.version);
  }
  stage.done(state);
}
void receive(benchmark::State& state) {
  Stage stage(state);
  stage.pack();
  stage.plane.publish(stage.version);
  for (auto _ : state)
    benchmark::DoNotOptimize(stage.plane.receive(stage.received, 0, std::chrono::seconds(1)));
  stage.done(state);
}
void swap(benchmark::State& state) {
  Stage stage(state);
  dvla::FrontBack<Weights> copies(Weights(stage.bytes), Weights(stage.bytes));
  for (auto _ : state) {
    copies.fill([](Weights&) {});
    benchmark::DoNotOptimize(copies.try_swap());
  }
}
void swap_with_nothing_new(benchmark::State& state) {
  Stage stage(state);
  dvla::FrontBack<Weights> copies(Weights(stage.bytes), Weights(stage.bytes));
  for (auto _ : state) benchmark::DoNotOptimize(copies.try_swap());
}
void pack_publish_receive_swap(benchmark::State& state) {
  Stage stage(state);
  dvla::FrontBack<Weights> copies(Weights(stage.bytes, std::byte{1}), Weights(stage.bytes, std::byte{1}));
  for (auto _ : state) {
    stage.pack();
    stage.plane.publish(stage.version);
    copies.fill([&](Weights& back) { stage.plane.receive(back, stage.version, std::chrono::seconds(1)); });
    benchmark::DoNotOptimize(copies.try_swap());
  }
  stage.done(state);
}

void sizes(benchmark::internal::Benchmark* bench) { bench->Arg(2400000)->Arg(256 * 1000 * 1000); }
BENCHMARK(plain_memcpy)->Apply(sizes);
BENCHMARK(two_plain_memcpy)->Apply(sizes);
BENCHMARK(pack)->Apply(sizes);
BENCHMARK(publish)->Apply(sizes);
BENCHMARK(receive)->Apply(sizes);
BENCHMARK(swap)->Arg(2400000);
BENCHMARK(swap_with_nothing_new)->Arg(2400000);
BENCHMARK(pack_publish_receive_swap)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
