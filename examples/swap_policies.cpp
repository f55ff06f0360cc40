// dvla-example: smoke
// Swap policies: the same run with another action head, task, schedule or memory, by one template parameter.
//
// `P::replace<Policy>` puts a policy into its slot and leaves the other eight alone; the policy knows its
// slot, so no position has to be counted. Four swaps are described, so that the line that changed can be
// seen; then the base, and one composition with all four swapped at once, are trained for three iterations.
// What is swapped at compile time is the same program afterwards, with the same knobs, command line,
// checkpoints and trace. Baselines such as staleness 0 or a single pool cost a line.
#include <cstdio>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/memory/single_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/sharding/unsharded.hpp>

using Base = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>,
                            dvla::Trainer<dvla::GRPO>>;
using OtherHead = Base::replace<dvla::TinyVLA<dvla::FlowHead>>;
using OtherTask = Base::replace<dvla::MuJoCo<dvla::Reach>>;
using OtherSchedule = Base::replace<dvla::Synchronous>;
using OtherMemory = Base::replace<dvla::SinglePool>;
using AllOfThem = Base::replace<dvla::TinyVLA<dvla::FlowHead>, dvla::MuJoCo<dvla::Reach>, dvla::Synchronous,
                                dvla::SinglePool>;

template <class P>
void describe(const char* title) {
  std::printf("-- %s\n%s\n", title, P::describe().c_str());
}

/// Warm start and three iterations, small enough for seconds.
template <class P>
void train(const char* title) {
  dvla::Config<P> config;
  config.environment.environments = 32;
  config.model.width = 64;
  config.model.blocks = 1;
  config.algorithm.learning_rate = 1e-4;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.demonstrations = 16;
  config.run.imitation_steps = 10;
  config.run.iterations = 3;
  dvla::Run<P> run(config);
  const double ratio = run.self_test().error;
  const dvla::WarmStartResult cloned = run.warm_start();
  const dvla::RunReport report = run.train();
  std::printf(
      "%-12s ratio self-test %.0e, imitation loss %.2f, %lld batches in %.2f s, %.0f env_steps/s, overlap "
      "%.0f %%, lag at most %lld; pools:",
      title, ratio, cloned.loss, static_cast<long long>(report.batches), report.train_wall_s,
      report.env_steps_per_s(), report.timing.overlap, static_cast<long long>(report.max_staleness));
  for (const auto& pool : run.memory().report())
    std::printf(" %s %.0f MiB", pool.name.c_str(), static_cast<double>(pool.high_water) / (1 << 20));
  std::printf("\n");
}

int main() try {
  describe<Base>("Base");
  describe<OtherHead>("Base::replace<TinyVLA<FlowHead>>");
  describe<OtherTask>("Base::replace<MuJoCo<Reach>>");
  describe<OtherSchedule>("Base::replace<Synchronous>");
  describe<OtherMemory>("Base::replace<SinglePool>");
  train<Base>("Base");
  train<AllOfThem>("all swapped");
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
