// An AdamW step with a gradient of 0 on ordinary and on denormal first moments, in a thread that reads and
// writes denormals as 0 and in one that does not. Arguments: denormal moments (0 or 1), flush (0 or 1).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/denormals.hpp"

namespace {

constexpr std::size_t count = std::size_t{1} << 18;

void adamw(benchmark::State& state) {
  const bool denormal = state.range(0) != 0, flush = state.range(1) != 0;
  std::thread([&] {  // the flag is a thread's own
    if (flush) dvla::flush_denormals();
    std::vector<float> parameter(count, 1.0F), first(count), second(count, 1.0F);
    const std::vector<float> gradient(count, 0.0F);
    for (auto _ : state) {
      state.PauseTiming();  // a step shrinks a moment to 0.9 of it, and with the flag makes it 0
      std::fill(first.begin(), first.end(), denormal ? 1e-39F : 1e-9F);
      state.ResumeTiming();
      dvla::AdamWState adamw{parameter, first, second, 0};
      dvla::adamw_update(adamw, gradient, {});
      benchmark::DoNotOptimize(parameter.data());
    }
  })
      .join();
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count));
}
BENCHMARK(adamw)->ArgNames({"denormal", "flush"})->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

}  // namespace
