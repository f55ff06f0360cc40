// dvla-example: torch mujoco io
// Evaluate: plays a checkpoint of the quickstart and prints its success rate.
//
// A checkpoint is one safetensors file: the weights by name, the optimiser's moments, and, as metadata, the
// pipeline and the configuration that made it. So nothing has to be repeated here: the configuration comes
// out of the file, and a file of another environment or model is refused in one sentence; how it was trained
// (by one process or a job of many, sharded or not) does not matter. Without --seed and --episodes
// the episodes are the ones behind `success_rate` in the run's report.json, and the figure comes out again;
// with --seed they are others. Training saw neither.
//
//   build/release/examples/evaluate --checkpoint runs/push
//   build/release/examples/evaluate --checkpoint step-150.safetensors --episodes 1024 --seed 7
#include <algorithm>
#include <charconv>
#include <cmath>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/checkpoint.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>

/// Environment and model must be those that the checkpoint was trained with: here quickstart.cpp's.
using Quickstart = dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::TinyVLA<dvla::TokenHead>>,
                                  dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

namespace {

constexpr std::string_view usage =
    "usage: evaluate --checkpoint PATH [--episodes N] [--seed N]\n"
    "  --checkpoint PATH  a step-N.safetensors file, or a run's folder, whose newest sound one is taken\n"
    "  --episodes N       fresh episodes to play; 1 to 1000000 (default: as many as its report.json has)\n"
    "  --seed N           of the episodes; 0 or more (default: the checkpoint's, as in its report.json)\n";

struct Arguments {
  std::filesystem::path checkpoint;
  std::int64_t episodes = -1;  ///< -1: as the run's own evaluation
  std::int64_t seed = -1;      ///< -1: the checkpoint's
  bool help = false;
};

std::int64_t whole(std::string_view flag, std::string_view text, std::int64_t least, std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most)
    throw dvla::ConfigError(std::string(flag) + ": '" + std::string(text) + "' is not a whole number in [" +
                            std::to_string(least) + ", " + std::to_string(most) + "]");
  return value;
}

Arguments parse(int argc, char** argv) {
  Arguments all;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--help" || flag == "-h") {
      all.help = true;
      return all;
    }
    if (flag != "--checkpoint" && flag != "--episodes" && flag != "--seed")
      throw dvla::ConfigError("'" + std::string(flag) +
                              "' is not a flag; there are --checkpoint, --episodes and --seed");
    if (++i == argc) throw dvla::ConfigError(std::string(flag) + " needs a value");
    if (flag == "--checkpoint") all.checkpoint = argv[i];
    if (flag == "--episodes") all.episodes = whole(flag, argv[i], 1, 1000000);
    if (flag == "--seed") all.seed = whole(flag, argv[i], 0, std::int64_t{1} << 62);
  }
  if (all.checkpoint.empty()) throw dvla::ConfigError("say which checkpoint: --checkpoint runs/push");
  return all;
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments = parse(argc, argv);
  if (arguments.help) {
    std::cout << usage;
    return 0;
  }
  const dvla::io::SafetensorsFile file = dvla::io::open_checkpoint(arguments.checkpoint);
  auto config = dvla::load_config<Quickstart>(file);
  config.memory.device = dvla::Device::cpu;  // wherever it was trained
  config.run.collectives = dvla::Collectives::gloo;
  if (arguments.seed >= 0) config.run.seed = arguments.seed;
  const std::int64_t episodes =
      arguments.episodes > 0 ? arguments.episodes : std::max(config.run.evaluation_episodes, 1);

  dvla::Run<Quickstart> run(config);
  dvla::load_checkpoint_weights(run.model(), file);
  const double success = run.evaluate(episodes);
  const double error = std::sqrt(success * (1 - success) / static_cast<double>(episodes));
  std::cout << file.path().string() << "\nsuccess " << success << " +- " << error << " (standard error) on "
            << episodes << " fresh episodes of " << Quickstart::environment::name << ", seed "
            << config.run.seed << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
