// dvla-test: gpu serial
// Whole pipelines on a GPU: every policy that one process has, TinyVLA on the device.
#include <cmath>
#include <string>

#include "dvla/memory/single_pool.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "test/gpu.hpp"
#include "test/pipeline/toy_pipeline.hpp"

using namespace dvla;

namespace {
template <class Head, class... More>
using OnGpu = Pipeline<Sampler<Toy, TinyVLA<Head>>, Trainer<GRPO>, More...>;

template <class P>
Config<P> short_run() {
  auto config = dvla_test::small_config<P>(6);
  config.model.chunk = 1;
  config.memory.device = Device::cuda;
  return config;
}
}  // namespace

DOCTEST_TEST_CASE_TEMPLATE("a run on the GPU trains, and its weights change", P, OnGpu<TokenHead>,
                           OnGpu<FlowHead>, OnGpu<TokenHead, Synchronous>, OnGpu<TokenHead, SinglePool>) {
  Run<P> run(short_run<P>());
  DOCTEST_CHECK(run.self_test().error <= 1e-5);
  const auto before = dvla_test::values(run.model());
  const RunReport report = run.train();
  DOCTEST_CHECK(report.batches == 6);
  DOCTEST_CHECK_FALSE(dvla_test::same_bits(before, dvla_test::values(run.model())));
  for (const float value : dvla_test::values(run.model())) DOCTEST_CHECK(std::isfinite(value));
  const auto pools = run.memory().report();
  DOCTEST_CHECK(pools.back().in_use > 0);  // it was the GPU that computed
}
