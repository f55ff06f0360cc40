// dvla-bench: torch mujoco smoke=1,1,16
// What composing costs: the plainest hand-written loop over the same parts (environment, model, GRPO update,
// weights copied to the sampler) against Run under Synchronous, same work, co-located, interleaved. Aim: at
// most 1 % more.
//   bench_overhead [rounds = 7] [iterations = 4] [environments = 64]
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/trace/off.hpp>

#include "../interleaved.hpp"

namespace {

using P = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>,
                         dvla::Trainer<dvla::GRPO>, dvla::Schedule<dvla::Synchronous>>;

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

dvla::Config<P> configuration(int iterations, int environments) {
  dvla::Config<P> config;
  config.run.iterations = iterations;
  config.environment.environments = environments;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  return config;
}

double pipeline(int iterations, int environments) {
  dvla::Run<P, dvla::trace::Off> run(configuration(iterations, environments));
  return seconds([&] { run.train(); });
}

double by_hand(int iterations, int environments) {
  using Model = dvla::machinery_t<P::model, P>;
  const dvla::Config<P> config = configuration(iterations, environments);
  dvla::DualPoolMachinery memory(config.memory);
  const dvla::TorchAllocator tensors(memory.model());
  dvla::MujocoBatch<dvla::Push> environment(config.environment, memory.environment());
  const dvla::ModelInputs inputs{environment.observation_spec(), environment.action_spec(),
                                 config.model.chunk};
  const std::uint64_t seed = dvla::stream_seed(1, dvla::Stream::weights);
  Model model(config.model, inputs, seed);  // Synchronous samples from the trainer's own
  dvla::UnshardedWeights<Model> weights(model, memory.model());
  const std::int64_t C = config.model.chunk, T = environment.horizon() / C, N = environment.size();
  dvla::GrpoTrainer<Model, dvla::UnshardedWeights<Model>, dvla::DecoupledClip> trainer(
      config.algorithm, {T, N, C}, environment.action_spec().dimensions, 1);
  dvla::OwnedRecord<dvla::Transition> batch(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(), {T, N, C}),
      memory.environment());
  dvla::OwnedRecord<Model::Decision> decisions(model.decision_layout({T, N}), memory.environment());
  std::vector<dvla::Start> starts(static_cast<std::size_t>(N));
  std::vector<std::int64_t> every(starts.size());
  std::iota(every.begin(), every.end(), std::int64_t{0});
  dvla::Arena arena(1);
  dvla::RowFailures failures(N);
  dvla::Rows all(every, arena, failures);
  std::vector<std::int64_t> running;
  dvla::trace::Off off;
  Model::use_threads(1);
  return seconds([&] {
    for (std::int64_t n = 0; n < iterations; ++n) {
      for (std::int64_t b = 0; b < N; ++b)
        starts[static_cast<std::size_t>(b)].seed =
            dvla::stream_seed(1, dvla::Stream::episode, n, b / config.algorithm.group);
      environment.reset(all, starts, dvla::cut_record(batch->observation, [](auto f) { return f.at(0); }));
      running = every;
      for (std::int64_t t = 0; t < T && !running.empty(); ++t) {
        auto decision = dvla::cut_record(*decisions, [&](auto f) { return f.at(t); });
        dvla::Rows of(running, arena, failures);
        model.act(dvla::cut_record(batch->observation, [&](auto f) { return f.at(t); }), running,
                  dvla::Decoding::sample, dvla::stream_seed(1, dvla::Stream::action, n, t, 0), decision,
                  batch->action.at(t));
        for (std::int64_t& version : batch->version.at(t).span()) version = n;
        environment.step(of, batch->action.at(t),
                         {batch->reward.at(t), batch->terminated.at(t), batch->truncated.at(t),
                          dvla::cut_record(batch->observation, [&](auto f) { return f.at(t + 1); })});
        std::erase_if(running, [&](std::int64_t b) { return batch->ended(t, b); });
      }
      for (std::int64_t b = 0; b < N; ++b) {
        batch->episode.success[b] = environment.succeeded(b);
        batch->group[b] = static_cast<std::int32_t>(b / config.algorithm.group);
      }
      trainer.update(
          model, weights, *batch, *decisions, n, [] {}, off);
    }
  });
}

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::atoi(argv[index]) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argument(argc, argv, 1, 7), iterations = argument(argc, argv, 2, 4);
  const int environments = argument(argc, argv, 3, 64);
  bench::print_header(argc, argv);
  bench::compare("hand-written loop against Run, Synchronous, one thread, MuJoCo Push, TinyVLA, " +
                     std::to_string(iterations) + " iterations of " + std::to_string(environments) +
                     " episodes",
                 {{"hand-written loop", [&] { return by_hand(iterations, environments); }},
                  {"Run<P>", [&] { return pipeline(iterations, environments); }}},
                 rounds, 1.0, "s");
  return 0;
}
