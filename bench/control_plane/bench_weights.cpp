// dvla-bench:
// A weight version's way to the samplers in one process, at 2.4 MB (TinyVLA, 0.6 M parameters) and 256 MB of
// trainable bytes, against plain memcpy of the same bytes in the same run: publish and receive (one copy into
// the samplers' model; every 16th is hashed on both sides), swap, and all of them in a row.
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <vector>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/control_plane/in_process.hpp"

namespace {

using Weights = std::vector<std::byte>;
using Units = std::vector<dvla::WeightUnit>;

struct Stage {
  explicit Stage(benchmark::State& state)
      : bytes(static_cast<std::size_t>(state.range(0))),
        trained(bytes, std::byte{3}),
        received(bytes, std::byte{1}),
        from{{.values = trained}},
        to{{.values = received}},
        plane(from) {}
  void publish_and_receive() {
    plane.publish(++version);
    benchmark::DoNotOptimize(plane.receive(to, version, std::chrono::seconds(1)));
  }
  void done(benchmark::State& state) const {
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
  }
  std::size_t bytes;
  Weights trained, received;
  Units from, to;
  dvla::InProcessWeightPlane plane;
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
void publish_receive(benchmark::State& state) {
  Stage stage(state);
  for (auto _ : state) {
    stage.publish_and_receive();
    benchmark::ClobberMemory();
  }
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
void publish_receive_swap(benchmark::State& state) {
  Stage stage(state);
  dvla::FrontBack<Units> copies(stage.to, stage.to);
  for (auto _ : state) {
    copies.fill([&](Units&) { stage.publish_and_receive(); });
    benchmark::DoNotOptimize(copies.try_swap());
  }
  stage.done(state);
}

void sizes(benchmark::internal::Benchmark* bench) { bench->Arg(2400000)->Arg(256 * 1000 * 1000); }
BENCHMARK(plain_memcpy)->Apply(sizes);
BENCHMARK(publish_receive)->Apply(sizes);
BENCHMARK(swap)->Arg(2400000);
BENCHMARK(swap_with_nothing_new)->Arg(2400000);
BENCHMARK(publish_receive_swap)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
