// Config<Pipeline>: one knobs struct per slot and one for the run, with every default filled in. Plain data:
// copy it, set fields, compare nothing. Ranges are checked by validate() (pipeline/validate.hpp), which the
// command line and the start of a run call. Pipeline comes with it, so no header of a run needs dvla.hpp
// beside it.
#pragma once

#include <string_view>

#include "dvla/core/knobs.hpp"
#include "dvla/core/slot.hpp"
#include "dvla/pipeline/composition.hpp"
#include "dvla/pipeline/run_knobs.hpp"

namespace dvla {

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
