// The presets of examples/presets: each is taken by the pipeline that it names, with the numbers of its published original, and by
// no other.
#include <doctest/doctest.h>

#include <algorithm>
#include <dvla/dvla.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dvla/pipeline/command_line.hpp"

using namespace dvla;

namespace {

template <class Model, class Algorithm>
using Job = Pipeline<Sampler<ManiSkill, Model>, Trainer<Algorithm, FSDP>, ControlPlane<Gloo>>;
using Interpolated = BasicDecoupledClip<ProximalSource::interpolated>;
using GrpoOfOpenVla = Job<LoRA<OpenVLAOFT>, GRPO>;

template <class P>
std::optional<Config<P>> parse(std::vector<std::string> arguments, std::ostream& out,
                               const Config<P>& defaults = {}) {
  std::vector<const char*> argv{"/bin/program"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return parse_command_line<P>(static_cast<int>(argv.size()), argv.data(), defaults, out);
}
template <class P>
std::string complaint(std::vector<std::string> arguments) {
  std::ostringstream out;
  try {
    parse<P>(std::move(arguments), out);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

/// The preset in the pipeline that it is for, whose weights are the program's to say.
template <class P>
Config<P> taken(const std::string& name) {
  CAPTURE(name);
  std::ostringstream out;
  Config<P> other;  // a program's own defaults, which a preset overrides
  if constexpr (requires { other.environment.rendering; })
    other.environment.rendering = LiberoRendering::fast;
  if constexpr (requires { other.environment.frames; }) other.environment.frames = LiberoFrames::upright;
  const auto config = parse<P>({"--preset", name, "--random", "full"}, out, other);
  REQUIRE(config);
  CHECK(out.str().starts_with("not expressed by " + name + ": "));
  return *config;
}

template <class Model>
using LiberoJob = Pipeline<Sampler<LIBERO, Model>, Trainer<GRPO, FSDP>, ControlPlane<Gloo>>;

/// A file in the folder for temporary files, gone at the end of its scope.
struct TemporaryFile {
  explicit TemporaryFile(const std::string& text)
      : path((std::filesystem::temp_directory_path() / "dvla_presets.toml").string()) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  std::string path;
};

/// Of all rows: environments x passes, horizon, chunk; micro and global batch, epochs; learning rate, clip.
struct Row {
  int environments, passes, chunk, micro, global, epochs;
  double learning_rate, clip_high;
  int staleness;
};
template <class Config>
void check_row(const Config& config, const Row& row) {
  CHECK(config.environment.environments == row.environments);
  CHECK(config.environment.max_episode_steps == 80);
  CHECK(config.algorithm.rollout_epochs == row.passes);
  CHECK(config.model.chunk == row.chunk);
  CHECK(config.algorithm.micro_batch == row.micro);
  CHECK(config.algorithm.global_batch == row.global);
  CHECK(config.algorithm.epochs == row.epochs);
  CHECK(config.algorithm.learning_rate == row.learning_rate);
  CHECK(config.algorithm.clip_low == 0.2);
  CHECK(config.algorithm.clip_high == row.clip_high);
  CHECK(config.schedule.staleness == row.staleness);
}
template <class Config>
void check_critic(const Config& config, double value_learning_rate, int pass) {
  CHECK(config.model.value_learning_rate * config.algorithm.learning_rate ==
        doctest::Approx(value_learning_rate).epsilon(1e-12));
  CHECK(config.algorithm.gamma == 0.99);
  CHECK(config.algorithm.lambda == 0.95);
  CHECK(config.run.auto_reset);
  CHECK(config.run.pass_steps == pass);
}

}  // namespace

TEST_CASE("each preset is taken by the pipeline that it names, with its original's numbers") {
  const auto openvla = taken<GrpoOfOpenVla>("maniskill_grpo_openvla_oft");
  check_row(openvla, {256, 1, 8, 40, 640, 1, 1e-4, 0.28, 0});
  CHECK(openvla.algorithm.group == 8);
  CHECK(openvla.algorithm.log_prob_level == LogProbLevel::token);
  CHECK(openvla.model.temperature == 1);
  CHECK(openvla.model.lora_rank == 32);
  CHECK(openvla.model.lora_alpha == 32);
  const auto pi05 = taken<Job<Pi05, GRPO>>("maniskill_grpo_pi05");
  check_row(pi05, {3264, 4, 5, 34, 2176, 2, 7.91e-6, 0.2, 1});
  CHECK(pi05.algorithm.group == 8);
  CHECK(pi05.model.horizon == 8);
  CHECK(pi05.model.pictures == Pictures::openpi);
}

TEST_CASE("so are those of LIBERO") {
  const auto openvla = taken<LiberoJob<OpenVLAOFT>>("libero_grpo_openvla_oft");
  CHECK(openvla.environment.environments == 64);
  CHECK(openvla.environment.suite == "10");
  CHECK(openvla.environment.horizon == 512);
  CHECK(openvla.algorithm.rollout_epochs == 16);
  CHECK(openvla.algorithm.group == 8);
  CHECK(openvla.algorithm.micro_batch == 32);
  CHECK(openvla.algorithm.global_batch == 16384);
  CHECK(openvla.algorithm.learning_rate == 2e-5);
  CHECK(openvla.algorithm.clip_high == 0.28);
  CHECK(openvla.algorithm.filter_lower * 5 == 0.5);
  CHECK(openvla.algorithm.filter_upper * 5 == 4.5);
  CHECK(openvla.model.temperature == 1.6f);
  CHECK(openvla.model.pictures == OpenVlaPictures::rlinf);
  CHECK(openvla.model.cameras == "agentview");
  const auto pi05 = taken<LiberoJob<Pi05>>("libero_grpo_pi05");
  CHECK(pi05.environment.environments == 64);
  CHECK(pi05.environment.horizon == 240);
  CHECK(pi05.algorithm.rollout_epochs == 8);
  CHECK(pi05.algorithm.micro_batch == 128);
  CHECK(pi05.algorithm.global_batch == 2048);
  CHECK(pi05.algorithm.learning_rate == 5e-6);
  CHECK(pi05.algorithm.clip_high == 0.2);
  CHECK(pi05.model.noise == FlowNoise::flow_sde);
  CHECK(pi05.model.noise_level == 0.5f);
  CHECK(pi05.model.denoise_steps == 3);
  CHECK(pi05.model.chunk == 5);
  CHECK(pi05.model.horizon == 10);
  CHECK(pi05.model.pictures == Pictures::openpi);
  CHECK_FALSE(pi05.model.discrete_state_input);
  const auto alike = [](const auto& config) {
    CHECK(config.environment.settling == 15);
    CHECK(config.environment.placement_seed == 0);
    CHECK(config.environment.camera_pixels == 256);
    CHECK(config.environment.frames == LiberoFrames::rotated);
    CHECK(config.environment.rendering == LiberoRendering::original);
    CHECK(config.algorithm.dual_clip == 3);
    CHECK(config.algorithm.weight_decay == 0.01);
  };
  alike(openvla);
  alike(pi05);
}

TEST_CASE("so are those with a critic") {
  using OpenVla = WithValue<LoRA<OpenVLAOFT>>;
  const auto openvla = taken<Job<OpenVla, PPO>>("maniskill_ppo_openvla_oft");
  check_row(openvla, {128, 1, 8, 40, 640, 1, 1e-4, 0.28, 0});
  check_critic(openvla, 3e-3, 160);
  const auto late_openvla = taken<Job<OpenVla, BasicPPO<Interpolated>>>("maniskill_async_ppo_openvla_oft");
  check_row(late_openvla, {128, 1, 8, 40, 640, 1, 1e-4, 0.28, 1});
  check_critic(late_openvla, 3e-3, 160);
  CHECK(late_openvla.algorithm.weight_limit == 2);
  const auto pi05 = taken<Job<WithValue<Pi05>, PPO>>("maniskill_ppo_pi05");
  check_row(pi05, {320, 1, 5, 32, 5120, 5, 7.91e-6, 0.2, 0});
  check_critic(pi05, 1.55e-4, 80);
  CHECK(pi05.model.horizon == 8);
  CHECK(pi05.model.denoise_steps == 4);
  CHECK(pi05.model.noise == FlowNoise::flow_noise);
  const auto late_pi05 = taken<Job<WithValue<Pi05>, BasicPPO<Interpolated>>>("maniskill_async_ppo_pi05");
  check_row(late_pi05, {320, 1, 5, 32, 5120, 2, 7.91e-6, 0.2, 1});
  check_critic(late_pi05, 1.55e-4, 80);
  CHECK(late_pi05.algorithm.weight_limit == 2);
}

TEST_CASE("a program of another pipeline refuses a preset by the slot, its policy and its own") {
  const std::string written = "written by another pipeline: its model is \"";
  CHECK(complaint<Job<Pi05, GRPO>>({"--preset", "maniskill_grpo_openvla_oft"})
            .ends_with("maniskill_grpo_openvla_oft.toml:12: " + written +
                       "LoRA<OpenVLAOFT>\", here it is \"Pi05\""));
  CHECK(complaint<GrpoOfOpenVla>({"--preset", "maniskill_grpo_pi05"})
            .ends_with(written + "Pi05\", here it is \"LoRA<OpenVLAOFT>\""));
  for (const char* name : {"maniskill_ppo_openvla_oft", "maniskill_async_ppo_openvla_oft"})
    CHECK(complaint<GrpoOfOpenVla>({"--preset", name})
              .ends_with(written + "WithValue<LoRA<OpenVLAOFT>>\", here it is \"LoRA<OpenVLAOFT>\""));
  for (const char* name : {"maniskill_ppo_pi05", "maniskill_async_ppo_pi05"})
    CHECK(complaint<Job<Pi05, GRPO>>({"--preset", name})
              .ends_with(written + "WithValue<Pi05>\", here it is \"Pi05\""));
  CHECK(complaint<Job<LoRA<OpenVLAOFT>, BasicGRPO<Uncorrected>>>({"--preset", "maniskill_grpo_openvla_oft"})
            .ends_with(
                "its algorithm is \"GRPO<DecoupledClip<recomputed>>\", here it is \"GRPO<Uncorrected>\""));
  CHECK(complaint<GrpoOfOpenVla::replace<Separated<3, 1>>>({"--preset", "maniskill_grpo_openvla_oft"})
            .ends_with("its placement is \"CoLocated\", here it is \"Separated<3, 1>\""));
  CHECK(complaint<Pipeline<Sampler<MuJoCo<Push>>, Trainer<GRPO>>>({"--preset", "maniskill_grpo_pi05"})
            .ends_with("its environment is \"ManiSkill\", here it is \"MuJoCo<Push>\""));
}

TEST_CASE("files and flags override a preset, wherever it stands") {
  const TemporaryFile file("[algorithm]\ngroup = 4\nepochs = 7\n");
  std::ostringstream out;
  const auto config = parse<GrpoOfOpenVla>({"--group", "2", "--config", file.path, "--preset",
                                            "maniskill_grpo_openvla_oft", "--random", "tiny", "--quiet"},
                                           out);
  CHECK(config->algorithm.group == 2);
  CHECK(config->algorithm.epochs == 7);
  CHECK(config->algorithm.global_batch == 640);
  CHECK(out.str().empty());  // quiet
}

TEST_CASE("what is printed with a preset is a file again, whose comments say what is not expressed") {
  std::ostringstream out;
  CHECK_FALSE(parse<GrpoOfOpenVla>(
      {"--preset", "maniskill_grpo_openvla_oft", "--random", "full", "--print-config"}, out));
  CHECK(out.str().starts_with("# not expressed by maniskill_grpo_openvla_oft: "));
  CHECK(from_toml<GrpoOfOpenVla>(out.str()).algorithm.global_batch == 640);
}

TEST_CASE("a preset that is not there, or that says too little or too much, is refused in a sentence") {
  CHECK(complaint<GrpoOfOpenVla>({"--preset", "maniskill"}) ==
        "--preset: there is no 'maniskill'; there are libero_grpo_openvla_oft, libero_grpo_pi05, "
        "maniskill_async_ppo_openvla_oft, "
        "maniskill_async_ppo_pi05, "
        "maniskill_grpo_openvla_oft, maniskill_grpo_pi05, maniskill_ppo_openvla_oft, maniskill_ppo_pi05; a "
        "TOML "
        "file's path may be given too");
  CHECK(complaint<GrpoOfOpenVla>({"--preset", "./nowhere.toml"}) ==
        "--preset: cannot read './nowhere.toml'; check that it exists and is readable");
  CHECK(complaint<GrpoOfOpenVla>({"--preset"}) == "--preset needs a value (the name of a preset)");
  const auto of_text = [](const std::string& text) {
    const TemporaryFile file(text);
    return complaint<GrpoOfOpenVla>({"--preset", file.path, "--random", "tiny"});
  };
  CHECK(of_text("[pipeline]\nmodel = \"LoRA<OpenVLAOFT>\"\nenvironment = \"ManiSkill\"")
            .ends_with("dvla_presets.toml: a preset names its 9 policies under [pipeline], and this one 2"));
  CHECK(of_text("").ends_with("a preset names its 9 policies under [pipeline], and this one 0"));
  CHECK(of_text("[pipeline]\nmodell = \"LoRA<OpenVLAOFT>\"")
            .ends_with("dvla_presets.toml:2: [pipeline] has no slot 'modell'; did you mean model?"));
  CHECK(of_text("[pipeline]\nmodel = 3").ends_with("its model is 3, here it is \"LoRA<OpenVLAOFT>\""));
  CHECK(of_text("pipeline = 3").ends_with(":1: 'pipeline' must be a section of policy names, [pipeline]"));
  CHECK(of_text("not_expressed = [1]").ends_with(":1: not_expressed must be an array of sentences"));
}

TEST_CASE(
    "any configuration may name its policies, and is refused for others before its knobs are looked at") {
  using P = Pipeline<Sampler<MuJoCo<Push>>, Trainer<GRPO>>;
  const TemporaryFile file("[algorithm]\nunknown = 1\n[pipeline]\nmodel = \"Pi05\"");
  CHECK(complaint<P>({"--config", file.path})
            .ends_with("dvla_presets.toml:4: written by another pipeline: its model is \"Pi05\", here it is "
                       "\"TinyVLA<TokenHead>\""));
}
