// Trajectory: what crosses the data plane: one batch of whole GRPO groups. Paper: the data plane carries
// trajectories. The environment's Transition and the model's Decision as one record, so storage in the pool,
// wire layout, checksum and tests all come from one list of fields. Does not know how it travels.
#pragma once

#include <boost/hana/define_struct.hpp>
#include <cstdint>

#include "dvla/core/observation.hpp"
#include "dvla/core/record.hpp"

namespace dvla {

/// `Decision`: the model's record. Both records are views into one block of pool memory.
template <class Decision>
struct Trajectory {
  BOOST_HANA_DEFINE_STRUCT(Trajectory, (Transition, transition), (Decision, decision));
  std::int64_t id = -1;  ///< the batch that it holds: Token::batch
};

/// A trajectory with extents and no storage: give it to record_bytes, then to place_record.
template <class Decision>
Trajectory<Decision> trajectory_layout(const Transition& transition, const Decision& decision) {
  Trajectory<Decision> trajectory;
  trajectory.transition = transition;
  trajectory.decision = decision;
  return trajectory;
}

}  // namespace dvla
