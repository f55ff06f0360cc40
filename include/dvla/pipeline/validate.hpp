// validate(config): everything that can be wrong with a configuration, found before anything starts, whatever
// filled it in. Ranges come from the knobs' documentation; rules between the members of one struct from its
// free function `check(const Knobs&)` (found by argument); rules between slots from check_config below.
// Throws ConfigError: one sentence with field, value and what is allowed. Thread-safe.
#pragma once

#include <string>

#include "dvla/core/device.hpp"
#include "dvla/io/run_name.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/model/flow_noise.hpp"
#include "dvla/pipeline/knob_list.hpp"
#include "dvla/placement/make_group.hpp"

namespace dvla {

/// Rules between members; found by validate(config). Here, not beside the knobs, because every program would
/// pay for its sentence.
inline void check(const RunKnobs& knobs) {
  io::check_run_name(knobs.name);
  if (knobs.folder.empty())
    throw ConfigError("run.folder is empty; name the folder that runs are written to");
}

namespace detail {
inline void check_multiple(const char* field, std::int64_t value, const char* of, std::int64_t divisor) {
  if (divisor < 1 || value % divisor != 0)
    throw ConfigError(field, " is ", value, "; it must be a multiple of ", of, ", which is ", divisor);
}
}  // namespace detail

/// Rules between slots, as far as the policies have the knobs in question.
template <class Pipeline>
void check_config(const Config<Pipeline>& config) {
  if constexpr (requires { config.environment.environments % config.algorithm.group; })
    detail::check_multiple("environment.environments", config.environment.environments, "algorithm.group",
                           config.algorithm.group);
  if constexpr (requires { config.model.noise == FlowNoise::ode; })
    if (config.model.noise == FlowNoise::ode && config.run.iterations > 0)
      throw ConfigError(
          "model.noise is ode, which has no log-probabilities to train on, and run.iterations is ",
          config.run.iterations, "; make it 0 to clone and evaluate, or choose another noise");
  if constexpr (requires { config.algorithm.reward_level == config.model.value_level; } &&
                detail::needs_values<typename Pipeline::algorithm>)
    if (config.algorithm.reward_level != config.model.value_level)
      throw ConfigError("algorithm.reward_level is ", enum_name(config.algorithm.reward_level),
                        " and model.value_level is ", enum_name(config.model.value_level),
                        "; give rewards and values the same level");
  if constexpr (requires { steps_together(config.environment); })
    if (steps_together(config.environment) && config.schedule.sampling_stages > 1)
      throw ConfigError("schedule.sampling_stages is ", config.schedule.sampling_stages,
                        ", and the environment steps all its rows together: leave it at 1");
  if constexpr (requires { longest_call_s(config.environment); })
    if (const double longest = longest_call_s(config.environment); !(config.run.step_deadline_s > longest))
      throw ConfigError(
          "run.step_deadline_s is ", detail::number_text(config.run.step_deadline_s),
          "; it must be more than ", detail::number_text(longest),
          ", which the environment's own deadlines allow one call: else what is late ends the run");
  if constexpr (requires { config.memory.device; } && !detail::runs_on_cuda<typename Pipeline::model>)
    if (config.memory.device != Device::cpu)
      throw ConfigError("memory.device is cuda, but the model ", Pipeline::model::name,
                        " computes on the CPU only; choose another model, or cpu");
  Device device = Device::cpu;
  if constexpr (requires { config.memory.device; }) device = config.memory.device;
  check_collectives(config.run.collectives, device);
  if (config.run.checkpoint_weights == CheckpointWeights::whole && device != Device::cpu)
    throw ConfigError(
        "run.checkpoint_weights is whole, but with memory.device cuda frozen weights lie in the GPU's "
        "memory, "
        "from which no file is written; choose trainable");
}

template <class Pipeline>
void validate(const Config<Pipeline>& config) {
  Config<Pipeline> copy = config;
  for (const KnobRef& knob : list_knobs(copy)) detail::check_knob(knob);
  for_each_section(config, [](std::string_view, const auto& knobs) {
    if constexpr (requires { check(knobs); }) check(knobs);
  });
  check_config(config);
}

}  // namespace dvla
