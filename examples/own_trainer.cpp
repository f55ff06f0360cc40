// dvla-example: smoke
// A training program of your own on Run: stop by a rule, log each batch, save, resume, and keep the loop.
//
// run.train(n, ...) returns after exactly n batches, and all four lanes work within it; between two calls the
// program may do as it likes with weights, environments and files. `on_iteration` sees every finished batch
// off the lanes' way, `after_update` stands between two updates, where weights may be saved, and a stop_flag
// ends a call at the next batch from wherever it is set: here by SIGINT and SIGTERM.
//
//   build/release/examples/own_trainer /tmp/reach 0.9      # and again, to go on
#include <cstdio>
#include <cstdlib>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/handoff/signals.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/checkpoint.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/linear_model.hpp>
#include <string_view>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) try {
  const bool smoke = argc > 1 && std::string_view(argv[1]) == "--smoke";
  const dvla::io::CheckpointFolder checkpoints(argc > 1 && !smoke ? argv[1] : "runs/own_trainer");
  const double target = argc > 2 ? std::atof(argv[2]) : smoke ? 0.3 : 0.9;
  dvla::Config<P> config;
  config.environment.environments = 64;
  config.algorithm.learning_rate = 0.02;
  config.algorithm.micro_batch = config.algorithm.global_batch = 64;

  dvla::stop_flag stop;
  const dvla::signal_guard guard(stop);
  dvla::Run<P> run(config);
  if (const auto latest = checkpoints.latest().checkpoint) {
    dvla::load_checkpoint(run, latest->file);
    std::printf("going on after batch %lld\n", static_cast<long long>(run.next_batch()));
  }
  double success = run.evaluate(256);
  while (success < target && run.next_batch() < 2000 && !stop.stop_requested()) {
    const dvla::RunReport report = run.train(
        25,
        [](const dvla::Iteration& iteration) {
          if (iteration.batch % 5 == 0)
            std::printf("batch %4lld: success %.2f, gradient norm %.2g\n",
                        static_cast<long long>(iteration.batch), iteration.update.success_rate,
                        iteration.update.gradient_norm);
        },
        [&](std::int64_t batch) {
          if ((batch + 1) % 10 == 0) dvla::save_checkpoint(run, checkpoints);
        },
        &stop);
    success = run.evaluate(256);
    std::printf("%lld batches, %.0f env steps/s; on fresh episodes %.3f\n",
                static_cast<long long>(report.batches), report.env_steps_per_s(), success);
  }
  std::printf("saved to %s\n", dvla::save_checkpoint(run, checkpoints).c_str());
  return success >= target || stop.stop_requested() ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
