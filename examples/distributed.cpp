// dvla-example: torch c10d mujoco io
// Distributed: the quickstart's task as a job of many processes. What changes between one process and a
// hundred is the placement, a policy like any other, and the launcher:
//
//   torchrun --no-python --nproc-per-node 4 build/release/examples/distributed --placement separated:3:1
//   mpirun -n 4 build/release/examples/distributed --placement separated:2:2
//   mpirun -n 2 build/release/examples/distributed --placement colocated
//   mpirun -n 4 build/release/examples/distributed --placement hybrid:2
//   mpirun -n 4 build/release/examples/distributed --placement adaptive:1:3
//
// colocated: every rank samples and trains, a full replica each, and gradients are summed. separated:R:A: of
// every R + A ranks R roll out and A train; the actors share the weights under FSDP, trajectories go from
// rollouts to actors over the data plane, weights back over the control plane. hybrid:A: all ranks roll out
// and A of them train. adaptive:R:A: begins as separated:R:A, then ranks change their roles between two
// batches until rollout and actor times meet. The number of environments is the whole job's. All other
// options are the quickstart's: see --help.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/broadcast.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/data_plane/routed.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/job_main.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/fsdp.hpp>
#include <dvla/sharding/unsharded.hpp>

namespace {

using Sampling = dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>;
using GRPO = dvla::BasicGRPO<dvla::Uncorrected>;

using CoLocated =
    dvla::Pipeline<Sampling, dvla::Trainer<GRPO, dvla::Unsharded>, dvla::Placement<dvla::CoLocated>>;
using Separated =
    dvla::Pipeline<Sampling, dvla::Trainer<GRPO, dvla::FSDP>, dvla::Placement<dvla::Separated<>>>;
using Hybrid = dvla::Pipeline<Sampling, dvla::Trainer<GRPO, dvla::FSDP>, dvla::Placement<dvla::Hybrid>>;
using Adaptive = dvla::Pipeline<Sampling, dvla::Trainer<GRPO, dvla::FSDP>, dvla::Placement<dvla::Adaptive>>;

template <class P>
dvla::Config<P> defaults(const std::string& name) {
  dvla::Config<P> config;
  config.run.name = name;
  config.run.iterations = 200;
  config.run.checkpoint_every = 10;  // what a job that loses an actor goes on from
  config.run.demonstrations = 64;
  config.run.demonstration_noise = 0.2;
  config.environment.environments = 256;
  config.algorithm.learning_rate = 6e-4;
  config.algorithm.decay_batches = 200;
  config.algorithm.beta2 = 0.999;
  config.algorithm.filter_lower = 0.01;
  config.algorithm.filter_upper = 0.99;
  return config;
}

/// "separated:3:1": a word and whole numbers.
struct PlacementChoice {
  std::string word;
  std::vector<int> numbers;
  template <class Config>
  void ratio(Config& config) const {
    if (!numbers.empty()) config.placement.rollouts = numbers[0], config.placement.actors = numbers[1];
  }

  explicit PlacementChoice(const std::string& text) {
    std::vector<std::string> parts = CLI::detail::split(text, ':');
    word = parts.front();
    const bool apart = word == "separated" || word == "adaptive";
    const std::size_t most = apart ? 2 : word == "hybrid" ? 1 : 0;
    bool good =
        (word == "colocated" || apart || word == "hybrid") && (parts.size() == 1 || parts.size() == most + 1);
    for (std::size_t i = 1; i < parts.size() && good; ++i) {
      numbers.push_back(0);
      good = CLI::detail::lexical_cast(parts[i], numbers.back()) && numbers.back() >= 1;
    }
    if (!good)
      throw dvla::ConfigError("--placement is '" + text +
                              "'; it must be colocated, separated:<rollouts>:<actors>, hybrid:<actors> or "
                              "adaptive:<rollouts>:<actors>");
  }
};

}  // namespace

int main(int argc, char** argv) {
  try {
    CLI::App app;
    std::string placement = "colocated";
    app.add_option("--placement", placement);
    app.set_help_flag();
    app.allow_extras();
    app.parse(argc, argv);
    std::vector<std::string> rest = app.remaining();
    if (std::find(rest.begin(), rest.end(), "--help") != rest.end() &&
        dvla::Launch::from_environment().rank == 0)
      std::cout << "this program's own:\n"
                   "  --placement NAME                  colocated, separated:<rollouts>:<actors>, "
                   "hybrid:<actors> or "
                   "adaptive:<rollouts>:<actors>; chooses the pipeline whose knobs follow (default "
                   "\"colocated\")\n\n";
    const PlacementChoice choice(placement);
    std::vector<const char*> arguments{argv[0]};
    for (const std::string& each : rest) arguments.push_back(each.c_str());
    const int count = static_cast<int>(arguments.size());
    if (choice.word == "colocated")
      return dvla::job_main<CoLocated>(count, arguments.data(), defaults<CoLocated>("push-colocated"));
    if (choice.word == "separated") {
      auto config = defaults<Separated>("push-separated");
      choice.ratio(config);
      return dvla::job_main<Separated>(count, arguments.data(), config);
    }
    if (choice.word == "adaptive") {
      auto config = defaults<Adaptive>("push-adaptive");
      choice.ratio(config);
      return dvla::job_main<Adaptive>(count, arguments.data(), config);
    }
    auto config = defaults<Hybrid>("push-hybrid");
    if (!choice.numbers.empty()) config.placement.actors = choice.numbers[0];
    return dvla::job_main<Hybrid>(count, arguments.data(), config);
  } catch (const std::exception& error) {
    std::cerr << ("error: " + std::string(error.what()) + "\n");
    return 1;
  }
}
