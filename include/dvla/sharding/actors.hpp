// What weights that several actors share tell an algorithm beside ShardingMachinery (sharding/concept.hpp):
// how many actors there are, figures over all of them, and the passes that all make together.
// Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "dvla/placement/group.hpp"

namespace dvla {

/// Makes one group of all actors, in the order of actors. Weights ask for one per purpose ("gradients", ...),
/// on each actor the same ones in the same order.
using GroupSource = std::function<std::shared_ptr<Group>(const std::string& purpose)>;

/// The source of a job with one actor.
inline std::unique_ptr<Group> lone_group(const std::string&) { return std::make_unique<LoneGroup>(); }

/// Bytes that this actor has sent to the others; it received as many.
struct ShardTraffic {
  std::int64_t gathered = 0, reduced = 0;
  std::int64_t total() const { return gathered + reduced; }
};

/// A pass of the model's forward or imitate, with the backward pass that follows it or without.
struct Pass {
  bool backward = true;
  bool last = true;  ///< the optimiser step's last one with a backward pass
};

/// The answers of weights that know no other actor; derive from it. Weights of several actors have the same
/// members:
/// - `actor()` in [0, actors()); the trainer checks `actors()` against its batch sizes.
/// - `sum(values)`, `max(values)` over the actors: collectives, called on each with the same sizes.
/// - `begin_pass(pass)` before each pass of the model, the same on every actor: as many as the actor with the
///   most needs, also where it is empty here and the model is not called. Values may be gathered and gradients
///   travel from then on, until the next pass, sum, max or step. Without several actors it may be left out.
struct LoneActor {
  static constexpr int actor() { return 0; }
  static constexpr int actors() { return 1; }
  static void sum(std::span<double>) {}
  static void max(std::span<std::int64_t>) {}
  static void begin_pass(const Pass&) {}
};

}  // namespace dvla
