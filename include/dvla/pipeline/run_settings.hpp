// What a run makes of its configuration: seeds, limits, counts and options for the parts that a rank builds.
// Knobs that a policy does not have are filled in here, and values that fit no job of this kind are refused.
// Torch-free; knows what a rank's place in its job is, and no machinery at work.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

#include "dvla/algorithm/concept.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/process_limits.hpp"
#include "dvla/core/streams.hpp"
#include "dvla/environment/action_statistics.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/validate.hpp"
#include "dvla/schedule/recording_file.hpp"

namespace dvla {

/// Plain values after its construction; any thread may read them.
template <class P>
class RunSettings {
 public:
  /// Whether the schedule repeats a recorded run.
  static constexpr bool replays = requires { P::schedule::staleness_is_recorded; };
  /// Whether shares of the work move while the run goes on.
  static constexpr bool adapts = requires { P::placement::adapts; };

  /// Throws ConfigError where a value is wrong, and where the recording to be repeated is. `ranks_here`: of the
  /// job, on this machine, which share its cores.
  explicit RunSettings(const Config<P>& config, int ranks_here = 1)
      : config_(checked(config, ranks_here)), replayed_(recording_to_repeat()) {}

  const Config<P>& config() const { return config_; }
  /// The run that Replay repeats; empty for all other schedules.
  const Recording& replayed() const { return replayed_; }

  /// Throws ConfigError where this pipeline, so configured, is not for this job.
  void check(const Job& job) const {
    if (config_.run.auto_reset && !takes_several_episodes<typename P::algorithm>)
      throw ConfigError("run.auto_reset is true, but the algorithm ", P::algorithm::name,
                        " takes one episode a row; leave it false, or choose an algorithm that says "
                        "takes_several_episodes");
    if (config_.run.pass_steps > 0 && !config_.run.auto_reset)
      throw ConfigError(
          "run.pass_steps is ", config_.run.pass_steps,
          ", but run.auto_reset is false, and a pass is as long as an episode then; leave it 0");
    if ((replays || config_.run.record) && !job.alone())
      throw ConfigError(replays ? "the schedule Replay" : "run.record",
                        " is for a run of one process, and the job has ", job.cluster().world());
    if constexpr (adapts) {
      if (config_.run.record)
        throw ConfigError("run.record is for a run whose shares stand still, and Adaptive moves them");
      if (job.incarnation() > 0)
        throw ConfigError(
            job.name(), " comes again, but Adaptive's ranks change their roles: the others go on without it");
    }
    if constexpr (requires { config_.sharding.shard_frozen; }) {
      if (config_.sharding.shard_frozen && job.actors() > 1 &&
          (adapts || (job.roles().overlap() && !requires { P::schedule::in_turn; })))
        throw ConfigError(
            "sharding.shard_frozen is true, but ranks that train also sample, at the same time or later, and "
            "need the frozen weights whole; place rollouts and actors apart, choose the schedule "
            "Synchronous, "
            "or leave it false");
    }
  }
  // ---- Seeds and limits
  std::uint64_t seed() const { return static_cast<std::uint64_t>(config_.run.seed); }
  std::uint64_t weight_seed() const { return stream_seed(seed(), Stream::weights); }
  /// K.
  int staleness() const {
    if constexpr (replays)
      return replayed_.staleness;
    else if constexpr (requires { config_.schedule.staleness; })
      return config_.schedule.staleness;
    else
      return 0;
  }
  std::chrono::nanoseconds deadline() const { return detail::nanoseconds(config_.schedule.deadline_s); }
  /// Of a wait inside a stage, for another rank: shorter, so that its error, which knows more, comes before
  /// that of the lane that waits for this one.
  std::chrono::nanoseconds inner_deadline() const { return deadline() * 3 / 4; }
  std::chrono::nanoseconds heartbeat() const { return detail::nanoseconds(config_.run.heartbeat_s); }

  // ---- Episodes of a batch
  // An algorithm without groups, or without several passes a batch, need not have knobs for them.
  std::int64_t group() const {
    if constexpr (requires { config_.algorithm.group; })
      return config_.algorithm.group;
    else
      return 1;
  }
  std::int64_t rollout_epochs() const {
    if constexpr (requires { config_.algorithm.rollout_epochs; })
      return config_.algorithm.rollout_epochs;
    else
      return 1;
  }
  /// Control steps of a pass where rows are reset within it; 0: the environment's horizon.
  std::int64_t pass_steps() const { return config_.run.auto_reset ? config_.run.pass_steps : 0; }
  /// S.
  std::int64_t table() const { return config_.run.auto_reset ? config_.run.episodes_per_row : 1; }
  /// Of a pass, over all rollouts.
  std::int64_t groups() const {
    if constexpr (requires { config_.environment.environments; })
      return config_.environment.environments / group();
    else
      return 1;
  }
  /// Those of them that are this rollout's own. Throws ConfigError where a rollout would have none.
  Share own_groups(const Job& job) const { return job.share_of_groups(groups(), job.rollout()); }
  /// How many environments that rollout has.
  std::int64_t environments_of(const Job& job, int rollout) const {
    return job.share_of_groups(groups(), rollout).count * group();
  }

  // ---- Rows of one call of the model
  std::int64_t sampling_rows(std::int64_t environments) const {
    const std::int64_t stages = std::max(config_.schedule.sampling_stages, 1);
    const std::int64_t rows = (environments + stages - 1) / stages, most = config_.run.inference_rows;
    return most > 0 ? std::min(rows, most) : rows;
  }
  /// `all`: rows of a batch.
  std::int64_t training_rows(std::int64_t all) const {
    if constexpr (requires { config_.algorithm.micro_batch; })
      return std::min<std::int64_t>(config_.algorithm.micro_batch, all);
    else
      return all;
  }

  // ---- For the parts
  /// A rollout has its share of the environments, another rank none.
  auto environment_knobs(const Job& job) const {
    auto knobs = config_.environment;
    if constexpr (requires { knobs.environments; }) {
      knobs.environments = static_cast<int>(own_groups(job).count * group());  // refuses too few
    } else if (job.rollouts() > 1) {
      throw ConfigError(P::environment::name, " has no knob 'environments', so they cannot be shared by ",
                        job.rollouts(), " rollouts");
    }
    return knobs;
  }
  ModelInputs model_inputs(const EnvironmentSpec& spec) const {
    ModelInputs inputs{spec.observation, spec.action, config_.model.chunk};
    if constexpr (requires { config_.memory.device; }) inputs.device = config_.memory.device;
    return inputs;
  }
  BatchShape shape(const EnvironmentSpec& spec, std::int64_t episodes) const {
    const std::int64_t chunk = config_.model.chunk;
    return {decisions_in(pass_steps() > 0 ? pass_steps() : spec.horizon, chunk), episodes, chunk, table(),
            detail::has_value_head<typename P::model>};
  }
  /// Of demonstrations, whose rows are never reset within a pass.
  BatchShape demonstrations(const EnvironmentSpec& spec, std::int64_t episodes) const {
    return {decisions_in(spec.horizon, config_.model.chunk), episodes, config_.model.chunk};
  }
  Adapter adapter(const EnvironmentSpec& spec) const {
    Adapter adapter = make_adapter(config_.run, spec.observation, spec.action);
    if constexpr (requires { config_.model.checkpoint; })
      if (!config_.model.checkpoint.empty()) adapter.expect_any_action();
    return adapter;
  }
  /// `threads`: cores of the sampling lane.
  RolloutOptions rollout_options(const Job& job, int threads) const {
    RolloutOptions options;
    options.seed = seed();
    options.chunk = config_.model.chunk;
    options.group = group();
    options.rollout_epochs = rollout_epochs();
    options.threads = threads;
    options.stages = config_.schedule.sampling_stages;
    options.deadline = deadline();
    options.pass_steps = pass_steps();
    options.table = table();
    options.failure_costs = config_.run.failure_costs;
    options.failed_share = config_.run.failed_share;
    options.inference_rows = config_.run.inference_rows;
    options.reward_scale = config_.run.reward_scale;
    if (job.rolls_out() && !job.alone()) {
      options.first_episode = own_groups(job).first * group();
      options.all_episodes = groups() * group();
    }
    return options;
  }

 private:
  /// With threads for a lane that has none: as many as it may have to itself; and with the statistics of the model's
  /// checkpoint, unless others are named.
  static Config<P> checked(Config<P> config, int ranks_here) {
    validate(config);
    if constexpr (requires { config.model.checkpoint; }) {
      const std::string& folder = config.model.checkpoint;
      std::error_code code;
      if (!folder.empty() && !std::filesystem::is_directory(folder, code))
        throw ConfigError("model.checkpoint is '" + folder +
                          "', which is no folder; give the folder of a published model");
      if (config.run.action_statistics.empty()) config.run.action_statistics = folder;
    }
    const int cores = std::max(usable_cores() / ranks_here, 1);
    const int lanes = requires { P::schedule::in_turn; }
    ? 1 : 2;
    for (int* threads : {&config.schedule.sampling_threads, &config.schedule.training_threads})
      if (*threads == 0) *threads = std::max(cores / lanes, 1);
    return config;
  }
  Recording recording_to_repeat() const {
    Recording recording;
    if constexpr (replays) {
      recording = read_recording(config_.schedule.recording);
      if (recording.staleness > P::algorithm::max_staleness)
        throw ConfigError("schedule.recording '", config_.schedule.recording, "' is of a run with staleness ",
                          recording.staleness, ", but the algorithm allows ", P::algorithm::max_staleness);
    }
    return recording;
  }

  const Config<P> config_;
  const Recording replayed_;
};

}  // namespace dvla
