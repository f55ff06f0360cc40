// Config<Pipeline>: one knobs struct per slot and one for the run, with every default filled in. Plain data:
// copy it, set fields, compare nothing. Ranges are checked by validate() (pipeline/validate.hpp), which the
// command line and the start of a run call.
#pragma once

#include <string_view>

#include "dvla/core/slot.hpp"
#include "dvla/fwd.hpp"
#include "dvla/pipeline/run_knobs.hpp"

namespace dvla {

namespace detail {

/// A policy's knobs as they start: `Policy::default_knobs()` if it has one.
template <class Policy>
auto default_knobs() {
  if constexpr (requires { Policy::default_knobs(); }) {
    return Policy::default_knobs();
  } else if constexpr (requires { typename Policy::knobs; }) {
    return typename Policy::knobs{};
  } else {
    return NoKnobs{};
  }
}
template <class Policy>
using knobs_t = decltype(default_knobs<Policy>());

}  // namespace detail

template <class Pipeline>
struct Config {
  using pipeline = Pipeline;

  detail::knobs_t<typename Pipeline::environment> environment =
      detail::default_knobs<typename Pipeline::environment>();
  detail::knobs_t<typename Pipeline::model> model = detail::default_knobs<typename Pipeline::model>();
  detail::knobs_t<typename Pipeline::algorithm> algorithm =
      detail::default_knobs<typename Pipeline::algorithm>();
  detail::knobs_t<typename Pipeline::sharding> sharding =
      detail::default_knobs<typename Pipeline::sharding>();
  detail::knobs_t<typename Pipeline::data_plane> data_plane =
      detail::default_knobs<typename Pipeline::data_plane>();
  detail::knobs_t<typename Pipeline::control_plane> control_plane =
      detail::default_knobs<typename Pipeline::control_plane>();
  detail::knobs_t<typename Pipeline::memory> memory = detail::default_knobs<typename Pipeline::memory>();
  detail::knobs_t<typename Pipeline::placement> placement =
      detail::default_knobs<typename Pipeline::placement>();
  detail::knobs_t<typename Pipeline::schedule> schedule =
      detail::default_knobs<typename Pipeline::schedule>();
  RunKnobs run{};
};

/// Calls visit(section, knobs) for the nine slots and "run", in that order. `config` may be const.
template <class Config, class Visit>
void for_each_section(Config& config, Visit visit) {
  visit(environment_slot::name, config.environment);
  visit(model_slot::name, config.model);
  visit(algorithm_slot::name, config.algorithm);
  visit(sharding_slot::name, config.sharding);
  visit(data_plane_slot::name, config.data_plane);
  visit(control_plane_slot::name, config.control_plane);
  visit(memory_slot::name, config.memory);
  visit(placement_slot::name, config.placement);
  visit(schedule_slot::name, config.schedule);
  visit(std::string_view("run"), config.run);
}

}  // namespace dvla
